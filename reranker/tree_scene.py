"""The picture of a search as shapes: what is drawn where, and in which colours, before anything draws it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from llm_decoder.reranker.tree_layout import (
    CELL,
    FONT_SIZE,
    GAP,
    LABEL,
    LINE,
    SMALL,
    Card,
    TreeLayout,
    cut,
    lay_out,
    visible,
)
from llm_decoder.search.run_file import SearchRun

__all__ = [
    "COLOURS",
    "Line",
    "Rect",
    "Scene",
    "Words",
    "draw_legend",
    "draw_scene",
    "given_scores",
    "score_text",
    "tint_of",
    "title_of",
]

# Of log probabilities: a token has the tint of the first bound that it reaches, the last one below all.
BOUNDS = (-0.05, -0.2, -0.5, -1.0, -2.0, -3.5, -5.0)
N_TINTS = len(BOUNDS) + 1
TITLE = 15.0
MARGIN = 24.0
AXIS = 34.0  # room for the numbers of steps
ROW = 17.0  # of the header
MIN_WIDTH = 800.0  # of the legend
MAX_HEADER = 1200.0  # of a candidate's text

# Of each kind of shape: (light, dark).
COLOURS: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14171c"),
    "ink": ("#1d2430", "#e7eaf0"),
    "faint": ("#808894", "#8b93a1"),
    "rule": ("#edf0f4", "#22272f"),
    "line": ("#b9c1cd", "#4a5260"),
    "edge": ("#aab3c0", "#586172"),
    "pale": ("#dfe3e9", "#2f3641"),
    "done": ("#2f6db5", "#6ea8ea"),
    "best": ("#c77700", "#f0b347"),
    "p0": ("#e6f1ee", "#1f3a38"),
    "p1": ("#d5ebe2", "#22483f"),
    "p2": ("#d9edc9", "#31502f"),
    "p3": ("#eef0bd", "#4b5127"),
    "p4": ("#fbe6ae", "#5f4c20"),
    "p5": ("#fbd0a1", "#6e4122"),
    "p6": ("#f6b29b", "#7b3630"),
    "p7": ("#ea9aa5", "#85304a"),
}

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Rect:
    """kind: of its fill, "" = none. edge: kind of its outline, "" = none. node: of a token, whose shape this is."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    edge: str = ""
    thickness: float = 1.0
    radius: float = 0.0
    pale: bool = False
    node: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """From (x, y) down to `turn`, over to `to_x`, and down to `to_y`, its corners rounded."""

    kind: str
    x: float
    y: float
    turn: float
    to_x: float
    to_y: float
    thickness: float = 1.2

    @property
    def radius(self) -> float:
        return min(6.0, abs(self.to_x - self.x) / 2, self.turn - self.y, self.to_y - self.turn)


@dataclass(frozen=True, slots=True)
class Words:
    """y: of the baseline. weight: "bold" or "normal"."""

    kind: str
    x: float
    y: float
    text: str
    size: float = FONT_SIZE
    anchor: Anchor = "start"
    weight: str = "normal"
    node: int | None = None


Shape = Rect | Line | Words


@dataclass(slots=True)
class Scene:
    """Shapes in the order they are drawn, and the size of their page."""

    title: str
    width: float
    height: float
    shapes: list[Shape]


def tint_of(logprob: float) -> str:
    """p0 = nearly certain ... p7 = hardly expected."""
    return f"p{bisect_left([-bound for bound in BOUNDS], -logprob)}"


def draw_scene(run: SearchRun, *, with_header: bool = True) -> Scene:
    """One search. with_header: its title, its candidates, and what the colours mean, above the tree."""
    layout = lay_out(run)
    width = max(MIN_WIDTH, layout.right - layout.left + AXIS + 2 * MARGIN)
    title = title_of(run)
    shapes: list[Shape] = []
    top = MARGIN
    if with_header:
        shapes += _header(run, title, width)
        top = max(shape.y for shape in shapes if isinstance(shape, Words)) + 30.0
    free = width - AXIS - 2 * MARGIN - (layout.right - layout.left)
    height = top + layout.height + MARGIN
    shapes += _Tree(layout, MARGIN + AXIS + free / 2 - layout.left, top, width - MARGIN).shapes()
    return Scene(title, width, height, shapes)


def given_scores(run: SearchRun) -> list[str]:
    """Which scores the candidates have."""
    names = ("beam_score", "rerank_score", "final_score")
    return [name for name in names if any(isinstance(c.get(name), float | int) for c in run.candidates)]


def score_text(score: object) -> str:
    return f"{score:.3f}" if isinstance(score, float | int) else "-"


def draw_legend() -> Scene:
    """What tints and outlines mean, by themselves."""
    shapes = list(_legend(0.0, 14.0))
    last = shapes[-1]
    assert isinstance(last, Words)
    return Scene("", last.x + len(last.text) * SMALL * CELL + 2, 32.0, shapes)


def title_of(run: SearchRun) -> str:
    """What was searched, in a line."""
    params = run.header.get("params")
    params = params if isinstance(params, dict) else {}
    method = {"sample": "best of", "steps": "steps, width"}.get(str(params.get("method")), "beam search, width")
    model = str(run.header.get("model", "")).rstrip("/").rsplit("/", 1)[-1]
    # SearchParams' own width where none is told: a header has the fields that differ from their defaults.
    size = f", {len(run.tree) - 1} tokens looked at" if len(run.tree) > 1 else ""
    return visible(f"{model}: {method} {params.get('width', 4)}{size}".removeprefix(": "))


def _header(run: SearchRun, title: str, width: float) -> Iterator[Shape]:
    y = MARGIN + 10.0
    yield Words("ink", MARGIN, y, _fit(title, width - 2 * MARGIN, TITLE), TITLE, weight="bold")
    y += ROW + 6.0
    given = given_scores(run)
    column = 9 * FONT_SIZE * CELL
    x = MARGIN + 3 * FONT_SIZE * CELL
    if run.candidates:
        for i, name in enumerate(given):
            yield Words("faint", x + (i + 1) * column - 8, y, name.removesuffix("_score"), SMALL, "end")
        y += ROW
    for rank, candidate in enumerate(run.candidates):
        kind, weight = ("best", "bold") if rank == 0 else ("ink", "normal")
        yield Words(kind, MARGIN, y, str(rank + 1), weight=weight)
        for i, name in enumerate(given):
            text = score_text(candidate.get(name))
            yield Words(kind, x + (i + 1) * column - 8, y, text, anchor="end", weight=weight)
        left = x + len(given) * column + 4
        text = str(candidate.get("text", ""))
        yield Words(kind, left, y, _fit(text, min(width - MARGIN - left, MAX_HEADER), FONT_SIZE))
        y += ROW
    y += 6.0
    yield from _legend(MARGIN, y)


def _legend(x: float, y: float) -> Iterator[Shape]:
    yield Words("faint", x, y, "log probability", SMALL)
    x += 16 * SMALL * CELL
    side = 33.0
    for number in range(N_TINTS):
        yield Rect(f"p{number}", x + number * side, y - 9, side, 11)
        if number < len(BOUNDS):
            yield Words("faint", x + (number + 1) * side, y + 13, f"{BOUNDS[number]:g}", SMALL - 1.5, "middle")
    yield Words("faint", x - 2, y + 13, "0", SMALL - 1.5)
    x += N_TINTS * side + 22
    for edge, text in (("best", "the best"), ("done", "an answer"), ("edge", "went on"), ("pale", "let go")):
        yield Rect("", x, y - 9, 20, 11, edge=edge, thickness=2.0 if edge in ("best", "done") else 1.0, radius=3)
        x += 26
        yield Words("faint", x, y, text, SMALL)
        x += (len(text) + 2) * SMALL * CELL


def _fit(text: str, width: float, size: float) -> str:
    return cut(visible(" ".join(text.split())), int(width / (size * CELL)))


@dataclass(frozen=True)
class _Tree:
    """The tree's shapes, moved to where it stands on the page."""

    layout: TreeLayout
    dx: float
    dy: float
    right: float

    def shapes(self) -> Iterator[Shape]:
        yield from self._steps()
        cards = self.layout.cards
        # What matters more is drawn over what matters less.
        for card in sorted(cards[1:], key=lambda card: (card.is_best, card.is_alive)):
            yield self._line(cards[card.parent], card)
        for card in cards:
            yield from self._card(card)

    def _steps(self) -> Iterator[Shape]:
        ends = self.layout.steps
        last = -1e9
        for step, y in ends[1:]:
            if y - last > (LINE if step % 5 == 0 else 5 * LINE):
                last = y
                yield Rect("rule", MARGIN + AXIS, self.dy + y + GAP / 2, self.right - MARGIN - AXIS, 1.0)
                yield Words("faint", MARGIN + AXIS - 8, self.dy + y + GAP / 2 + 3.5, str(step), SMALL, "end")

    def _line(self, parent: Card, card: Card) -> Line:
        kind = "best" if card.is_best else "line" if card.is_alive else "pale"
        x, y = self.dx + parent.x, self.dy + parent.bottom
        turn = self.dy + parent.end + GAP / 2
        return Line(kind, x, y, turn, self.dx + card.x, self.dy + card.y, 2.2 if card.is_best else 1.2)

    def _card(self, card: Card) -> Iterator[Shape]:
        left, top = self.dx + card.left, self.dy + card.y
        is_prompt = card.parent < 0
        pale = not card.is_alive
        yield Rect("page", left, top, card.width, card.height, radius=4)
        for cell in card.cells:
            if not is_prompt:
                x, y = left + cell.x, top + cell.line * LINE + 1
                tint = tint_of(cell.node.logprob)
                yield Rect(tint, x, y, cell.width, LINE - 2, pale=pale, node=cell.node.id)
        is_answer = card.is_leaf and card.nodes[-1].state == "finished" and not is_prompt
        edge = "best" if card.is_best else "done" if is_answer else "pale" if pale else "edge"
        thickness = 1.8 if card.is_best or is_answer else 1.0
        yield Rect("", left, top, card.width, card.height, edge=edge, thickness=thickness, radius=4)
        for cell in card.cells:
            bare = cell.text.strip(" ")
            n_before = len(cell.text) - len(cell.text.lstrip(" "))
            middle = left + cell.x + n_before * FONT_SIZE * CELL + cell_len(bare) * FONT_SIZE * CELL / 2
            y = top + cell.line * LINE + LINE - 5
            yield Words("faint" if pale or is_prompt else "ink", middle, y, bare, anchor="middle", node=cell.node.id)
        if card.label:
            kind = "best" if card.rank == 0 else "done" if card.rank is not None else "faint"
            weight = "bold" if card.rank == 0 else "normal"
            label = f"★ {card.label}" if card.rank == 0 else card.label
            size = cell_len(label) * SMALL * CELL
            yield Rect("page", self.dx + card.x - size / 2, top + card.height + 2, size, LABEL - 3)
            yield Words(kind, self.dx + card.x, top + card.height + LABEL - 4, label, SMALL, "middle", weight)
