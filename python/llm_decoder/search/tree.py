"""What a search has looked at: every token that a beam was given, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["NodeState", "SearchTree", "TreeNode"]

NodeState = Literal["live", "finished", "pruned"]


@dataclass(slots=True)
class TreeNode:
    """A token behind those of its parents; the root has none. step: 1 = the first token of an answer. logprob: of the
    raw logits. cum_logprob: their sum from the root on. score: the sum by which beams are compared; of a search by
    steps, the beam_score of an answer that ended here, and where a step ends the score by which it was ranked.

    state: "live" = it went on, or would have when the search ended; "finished" = an answer ends here; "pruned" = it was
    let go, for the `reason`."""

    id: int
    parent: int
    step: int
    token_id: int
    logprob: float
    cum_logprob: float
    score: float
    state: NodeState = "live"
    reason: str = ""


class SearchTree:
    """Nodes in the order they came; node i has id i, and a parent of a lower id."""

    ROOT = 0

    def __init__(self) -> None:
        self.nodes = [TreeNode(self.ROOT, -1, 0, -1, 0.0, 0.0, 0.0)]

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[TreeNode]:
        return iter(self.nodes)

    def add(self, parent: int, token_id: int, logprob: float, score: float, state: NodeState, reason: str) -> int:
        """Its id."""
        above = self.nodes[parent]
        step, total = above.step + 1, above.cum_logprob + logprob
        node = TreeNode(len(self.nodes), parent, step, token_id, logprob, total, score, state, reason)
        self.nodes.append(node)
        return node.id

    def finish(self, node: int, reason: str) -> None:
        self.nodes[node].state = "finished"
        self.nodes[node].reason = reason

    def prune(self, node: int, reason: str) -> None:
        self.nodes[node].state = "pruned"
        self.nodes[node].reason = reason

    def path(self, node: int) -> list[TreeNode]:
        """From the first token of the answer to this one."""
        path: list[TreeNode] = []
        while node != self.ROOT:
            path.append(self.nodes[node])
            node = self.nodes[node].parent
        return path[::-1]
