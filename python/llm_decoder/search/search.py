"""What every search of one request keeps, by beams or by steps: its tree, and what its answers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_decoder.outputs import FinishReason, TokenLogprob
from llm_decoder.search.params import SearchParams
from llm_decoder.search.tree import SearchTree
from llm_decoder.sequence import Request, Sequence

__all__ = ["Answer", "Rival", "Search"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it will be told. rerank_score: what a scorer has given it already."""

    score: float  # normalised
    tokens: list[int]
    entries: AnySequence[TokenLogprob]
    cumulative_logprob: float
    reason: FinishReason
    stop_reason: str | int | None
    node: int
    rerank_score: float | None = None


class Rival(NamedTuple):
    """An answer so far that may still be the best. tokens: int32. entries: of these, where they were asked for."""

    tokens: npt.NDArray[np.int32]
    entries: AnySequence[TokenLogprob]


class Search(ABC):
    """For the engine's thread. It takes turns: at each, some answers go on, some are finished, some are let go."""

    def __init__(self, request: Request, params: SearchParams) -> None:
        self.request = request
        self.params = params
        self.tree = SearchTree()
        self.n_given_up = 0  # answers, for want of pages
        self.pruned: list[int] = []  # nodes, since the last turn was told
        self.n_pruned = 0  # nodes, since it began
        self._n_nodes = 0  # of the tree, before the last turn

    @property
    @abstractmethod
    def sequences(self) -> list[Sequence]:
        """Those that go on."""

    @property
    @abstractmethod
    def live_nodes(self) -> list[int]:
        """Of the tree: where the answers that go on are, the best first."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether all sequences have come to where its next turn begins."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """Whether nothing goes on any more."""

    @abstractmethod
    def answers(self) -> list[Answer]:
        """The finished answers, the best first."""

    @abstractmethod
    def unfinished(self, reason: FinishReason) -> list[Answer]:
        """The others as answers that end where they are, for this reason."""

    @abstractmethod
    def _rivals(self) -> list[Rival]:
        """Whatever may still be the best answer."""

    @property
    def new_nodes(self) -> range:
        """Of the tree, since the last turn began."""
        return range(self._n_nodes, len(self.tree))

    def _prune(self, node: int, reason: str) -> None:
        self.tree.prune(node, reason)
        self.pruned.append(node)
        self.n_pruned += 1

    def n_decided(self, n_known: int) -> int:
        """How many tokens all answers have in common that may still be the best, of which n_known are known to be."""
        rivals = [rival.tokens for rival in self._rivals()]
        n_least = min(len(tokens) for tokens in rivals)
        first = rivals[0][n_known:n_least]
        differs = np.zeros(len(first), bool)
        for tokens in rivals[1:]:
            differs |= tokens[n_known:n_least] != first
        return n_known + int(differs.argmax() if differs.any() else len(first))

    def decided_tokens(self, n: int) -> list[int]:
        """The first n tokens, once so many are decided."""
        tokens: list[int] = self._rivals()[0].tokens[:n].tolist()
        return tokens

    def decided_entries(self, n: int) -> list[TokenLogprob]:
        """The same of their log probabilities."""
        return list(self._rivals()[0].entries[:n])
