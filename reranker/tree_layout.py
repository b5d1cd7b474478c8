"""Where everything stands in the picture of a search.

Time goes down. Tokens that follow each other without a branch are one card, its text wrapped. A card ends where a
branch is, or an answer; the cards below a branch begin at one height, which is that of their step everywhere, so that
what stands side by side was looked at together. The branch of the best answer goes straight down; the others stand
beside it, each where its outline (Reingold and Tilford 1981) fits between those that stand there already, so that
neither cards nor lines cross.

Units are those of a picture: 1/96 inch, y downward. Text is measured in cells of a terminal, as wcwidth counts them,
for the pictures' fonts have one width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len

from llm_decoder.search.run_file import SearchRun
from llm_decoder.search.tree import TreeNode

__all__ = ["CELL", "FONT_SIZE", "LINE", "SMALL", "Card", "Cell", "TreeLayout", "cut", "lay_out", "visible"]

FONT_SIZE = 12.0
SMALL = 10.0  # labels
CELL = 0.6025  # of a font's size: a character of DejaVu Sans Mono
LINE = 18.0  # height of a line of tokens
WRAP = 18  # cells a line
PAD = 5.0  # in a card, left and right
GAP = 16.0  # between a card and those below it
BESIDE = 10.0  # between cards that stand side by side
LABEL = 15.0  # height of the label under a leaf
_BIN = 2.0  # height of a step of an outline

# Joiners have no look of their own; other marks of format, which could turn what stands around them, are told as "�".
_VISIBLE = {"\n": "↵", "\r": "↵", "\u2028": "↵", "\u2029": "↵", "\t": "⇥", "\u00a0": " ", "\u200c": "", "\u200d": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """A token in a card. x: from the card's left edge."""

    node: TreeNode
    text: str
    x: float
    width: float
    line: int


@dataclass(slots=True)
class Card:
    """Tokens without a branch between them. x: of its middle. parent: of `TreeLayout.cards`, -1 = none. end: y of what
    was looked at after its last step, but for GAP.

    is_alive: an answer or an open beam comes from it. rank: of the candidate that ends here, 0 = the best. is_best: on
    the way to candidate 0. label: under a leaf: a score, or why it was let go.
    """

    nodes: list[TreeNode]
    parent: int
    end: float = 0.0
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    cells: list[Cell] = field(default_factory=list)
    is_leaf: bool = False
    is_alive: bool = False
    is_best: bool = False
    rank: int | None = None
    label: str = ""

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def label_width(self) -> float:
        return cell_len(self.label) * SMALL * CELL


@dataclass(slots=True)
class TreeLayout:
    """cards: the first is the prompt's, each behind its parent. steps: (step, y of its end), where one is known."""

    cards: list[Card]
    steps: list[tuple[int, float]]
    left: float
    right: float
    height: float


def lay_out(run: SearchRun) -> TreeLayout:
    """The picture of one search. A run without a tree (best of n) has the prompt's card alone."""
    cards = _cards_of(run)
    prompt = run.header.get("prompt")
    prompt = _end_of(visible(prompt), WRAP) if isinstance(prompt, str) and prompt.strip() else "prompt"
    _fill(cards[0], [(run.tree.nodes[0], prompt)])
    for card in cards[1:]:
        _fill(card, [(node, shown(run.texts.get(node.id, ""), node)) for node in card.nodes])
    _place_in_time(cards)
    _place_beside(cards)
    left = min(min(card.left, card.x - card.label_width / 2) for card in cards)
    right = max(max(card.left + card.width, card.x + card.label_width / 2) for card in cards)
    height = max(card.bottom + (LABEL if card.label else 0.0) for card in cards)
    steps = {card.end: card.nodes[-1].step for card in sorted(cards, key=lambda card: card.nodes[-1].step)}
    return TreeLayout(cards, [(step, y) for y, step in steps.items()], left, right, height)


def shown(text: str, node: TreeNode) -> str:
    """A token's text on a card: one line, in which what cannot be seen has a sign."""
    text = visible(text)
    if not text:
        return f"⟨{node.token_id}⟩"
    return "␣" * len(text) if text.isspace() else text


def visible(text: str) -> str:
    return "".join(_VISIBLE.get(c, c if c.isprintable() else "�") for c in text)


def cut(text: str, n_cells: int) -> str:
    """Its beginning, where it is longer."""
    if cell_len(text[: 4 * n_cells]) <= n_cells:
        return text[: 4 * n_cells]
    text = text[: 4 * n_cells]
    while text and cell_len(text) > n_cells - 1:
        text = text[:-1]
    return text + "…"


def _end_of(text: str, n_cells: int) -> str:
    """What the tree goes on from."""
    return cut(" ".join(text.split())[::-1], n_cells)[::-1]


def _cards_of(run: SearchRun) -> list[Card]:
    """The tree cut at its branches."""
    nodes = run.tree.nodes
    children: list[list[TreeNode]] = [[] for _ in nodes]
    for node in nodes[1:]:
        children[node.parent].append(node)
    alive = [not below and node.state != "pruned" for node, below in zip(nodes, children, strict=True)]
    best = [math.inf] * len(nodes)
    ranks = _ranks(run)
    for leaf, rank in ranks.items():
        best[leaf] = rank
    depth = [node.step for node in nodes]
    for node in reversed(nodes[1:]):
        parent = node.parent
        alive[parent] |= alive[node.id]
        best[parent] = min(best[parent], best[node.id])
        depth[parent] = max(depth[parent], depth[node.id])

    def order(node: TreeNode) -> tuple[float, bool, int, float]:
        return best[node.id], not alive[node.id], -depth[node.id], -node.score

    cards = [Card([nodes[0]], -1, is_leaf=not children[0], is_alive=True, is_best=best[0] == 0)]
    open_cards = [0]
    while open_cards:
        parent = open_cards.pop(0)
        for first in sorted(children[cards[parent].nodes[-1].id], key=order):
            members = [first]
            while len(children[members[-1].id]) == 1:
                members += children[members[-1].id]
            last = members[-1]
            card = Card(members, parent, is_leaf=not children[last.id], is_alive=alive[first.id])
            card.is_best = best[first.id] == 0
            card.rank = ranks.get(last.id)
            card.label = _label(run, card) if card.is_leaf else ""
            open_cards.append(len(cards))
            cards.append(card)
    return cards


def _ranks(run: SearchRun) -> dict[int, int]:
    """Leaf -> rank of its candidate; of candidates without a leaf in this tree none."""
    leaves = [candidate.get("leaf") for candidate in run.candidates]
    return {leaf: i for i, leaf in enumerate(leaves) if isinstance(leaf, int) and 0 < leaf < len(run.tree)}


def _label(run: SearchRun, card: Card) -> str:
    leaf = card.nodes[-1]
    if card.rank is None:
        return visible(leaf.reason) or {"live": "open", "finished": "finished", "pruned": "pruned"}[leaf.state]
    candidate = run.candidates[card.rank]
    score = candidate.get("final_score")
    score = candidate.get("beam_score") if score is None else score
    return f"{card.rank + 1}: {score:.3f}" if isinstance(score, float | int) else f"{card.rank + 1}"


def _fill(card: Card, texts: Sequence[tuple[TreeNode, str]]) -> None:
    """Wraps the tokens into lines."""
    size = FONT_SIZE * CELL
    line, at, widest = 0, 0, 1
    for node, text in texts:
        text = cut(text, WRAP)
        if at and at + cell_len(text) > WRAP:
            line, at = line + 1, 0
        if not at:  # the space before a line's first word is no part of the picture
            text = text.lstrip(" ")
        n_cells = max(1, cell_len(text))
        card.cells.append(Cell(node, text, PAD + at * size, n_cells * size, line))
        at += n_cells
        widest = max(widest, at)
    card.width, card.height = widest * size + 2 * PAD, (line + 1) * LINE


def _place_in_time(cards: Sequence[Card]) -> None:
    """Gives each card its y and its end."""
    by_end: dict[int, list[Card]] = {}
    for card in cards:
        by_end.setdefault(card.nodes[-1].step, []).append(card)
    ends: dict[int, float] = {}
    lowest = 0.0
    for step in sorted(by_end):
        for card in by_end[step]:
            if card.parent >= 0:
                card.y = ends[card.nodes[0].step - 1] + GAP
            lowest = max(lowest, card.bottom)
        ends[step] = lowest
        for card in by_end[step]:
            card.end = lowest


@dataclass(slots=True)
class _Outline:
    """How far a branch reaches to both sides of its axis, from the bin `top` on: float64 [n_bins]."""

    top: int
    left: npt.NDArray[np.float64]
    right: npt.NDArray[np.float64]

    def span(self, low: int, high: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of bins low to high; nothing where it has none."""
        left, right = np.full(high - low, np.inf), np.full(high - low, -np.inf)
        left[self.top - low : self.top - low + len(self.left)] = self.left
        right[self.top - low : self.top - low + len(self.right)] = self.right
        return left, right


def _place_beside(cards: Sequence[Card]) -> None:
    """Gives each card its x: first from its parent's axis, from the leaves up, then from the root's, downward."""
    children: list[list[int]] = [[] for _ in cards]
    for number, card in enumerate(cards[1:], 1):
        children[card.parent].append(number)
    outlines: dict[int, _Outline] = {}
    for number in range(len(cards) - 1, -1, -1):
        whole: _Outline | None = None
        for child in children[number]:
            outline = outlines.pop(child)
            whole = outline if whole is None else _beside(whole, outline, cards[child])
        outlines[number] = _under(_own_outline(cards[number]), whole)
    for card in cards[1:]:
        card.x += cards[card.parent].x


def _own_outline(card: Card) -> _Outline:
    """With the room above it that its line takes; below it a label, or the line to what follows."""
    top = max(0, math.floor((card.y - GAP) / _BIN))
    bottom = math.ceil((card.bottom + LABEL if card.label else max(card.bottom, card.end)) / _BIN)
    half = np.full(bottom - top, max(card.width, card.label_width) / 2)
    if not card.is_leaf:
        half[math.ceil(card.bottom / _BIN) - top :] = 1.0
    return _Outline(top, -half, half)


def _under(own: _Outline, below: _Outline | None) -> _Outline:
    if below is None:
        return own
    low, high = own.top, max(own.top + len(own.left), below.top + len(below.left))
    (left_a, right_a), (left_b, right_b) = own.span(low, high), below.span(low, high)
    return _Outline(low, np.minimum(left_a, left_b), np.maximum(right_a, right_b))


def _beside(whole: _Outline, outline: _Outline, card: Card) -> _Outline:
    """Puts one more branch on that side of its elder siblings where it is nearer to their parent."""
    low = min(whole.top, outline.top)
    high = max(whole.top + len(whole.left), outline.top + len(outline.left))
    (left_a, right_a), (left_b, right_b) = whole.span(low, high), outline.span(low, high)
    to_right = float(np.max(right_a - left_b)) + BESIDE
    to_left = float(np.max(right_b - left_a)) + BESIDE
    card.x = to_right if to_right <= to_left else -to_left
    left = np.minimum(left_a, left_b + card.x)
    right = np.maximum(right_a, right_b + card.x)
    return _Outline(low, left, right)
