"""Trees of searches that nobody has made."""

from __future__ import annotations

import random

from llm_decoder.search.run_file import SearchRun
from llm_decoder.search.tree import SearchTree

WORDS = [
    " the",
    " cat",
    ",",
    " and",
    "ing",
    " extraordinarily",
    "\n",
    "",
    " 你好",
    "😀",
    " שלום",
    "</b>",
    "&",
    " ",
    "x" * 40,
]


class Grown:
    """A tree that a test puts together: `add` gives the id of a node, `run` the whole."""

    def __init__(self) -> None:
        self.tree = SearchTree()
        self.texts: dict[int, str] = {}

    def add(self, parent: int, text: str, logprob: float = -1.0, state: str = "live", reason: str = "") -> int:
        score = self.tree.nodes[parent].score + logprob
        node = self.tree.add(parent, 7, logprob, score, state, reason)  # type: ignore[arg-type]
        self.texts[node] = text
        return node

    def run(self, *leaves: int, prompt: str | None = "Once upon a time", **header: object) -> SearchRun:
        """leaves: of the candidates, the best first."""
        candidates = [
            {"leaf": leaf, "text": self.text_to(leaf), "beam_score": -0.5 - rank, "finish_reason": "stop"}
            for rank, leaf in enumerate(leaves)
        ]
        given = {"model": "models/story", "params": {"width": 4}} | header
        return SearchRun(given | ({} if prompt is None else {"prompt": prompt}), self.tree, self.texts, candidates)

    def text_to(self, leaf: int) -> str:
        return "".join(self.texts[node.id] for node in self.tree.path(leaf))


def searched(seed: int, width: int = 4, depth: int = 20) -> SearchRun:
    """As beams grow: at each step `width` children of random parents; who has none is let go."""
    draw = random.Random(seed)
    grown = Grown()
    live = [0]
    for step in range(depth):
        parents = [draw.choice(live) for _ in range(width)]
        for node in set(live) - set(parents) - {0}:
            grown.tree.prune(node, "outscored")
        last = step == depth - 1
        live = [
            grown.add(parent, draw.choice(WORDS), -draw.expovariate(1.0), *(("finished", "length") if last else ()))
            for parent in parents
        ]
    best = sorted(live, key=lambda node: -grown.tree.nodes[node].score)
    return grown.run(*best[: max(1, width // 2)])
