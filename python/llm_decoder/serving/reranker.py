"""The reranker behind the routes: which it is, what it scores for them, and how often it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_decoder.errors import InvalidRequestError
from llm_decoder.histograms import SECONDS, Histogram
from llm_decoder.search.scorers import RequestScorer, Reranker, blamed_on, checked_scores
from llm_decoder.serving.errors import HttpError

if TYPE_CHECKING:
    from llm_decoder.llm import LLM

__all__ = ["Pairs", "ScoringCounts", "need_reranker"]


def need_reranker(llm: LLM, param: str) -> Reranker:
    """Opens it, which a request waits for once. param: the field that asks for it. Raises HttpError 400 when there is
    none."""
    try:
        reranker: Reranker = llm.reranker
    except InvalidRequestError:
        raise HttpError(
            400, f"[{param}] this server has no reranker; start it with --reranker", param=param, code="unsupported"
        ) from None
    return reranker


@dataclass(frozen=True, slots=True)
class Pairs:
    """Queries and documents, scored. scores: as the reranker gave them, one a pair. n_tokens: of the pairs as they were
    read, n_truncated: pairs that were too long to be read whole; None of a reranker that does not count."""

    scores: list[float]
    n_tokens: int | None
    n_truncated: int | None

    @classmethod
    def scored(cls, reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> Pairs:
        """All of them in one call of a CrossEncoder's read_pairs; of a reranker that has only `score` in one a query.

        Raises RequestFailedError for what is no finite score a pair.
        """
        read_pairs = getattr(reranker, "read_pairs", None)
        if read_pairs is None:
            return cls(_scores_by_query(reranker, pairs), None, None)
        with blamed_on("reranker"):
            read = read_pairs(pairs)
        scores = checked_scores("reranker", read.scores, len(pairs))
        return cls(scores, int(read.n_tokens.sum()), int(read.is_cut.sum()))

    def likelihoods(self) -> list[float]:
        """The scores in 0..1, in the same order: the sigmoid of each."""
        return [float(value) for value in np.exp(-np.logaddexp(0.0, -np.asarray(self.scores, np.float64)))]

    @property
    def usage(self) -> dict[str, int]:
        return {} if self.n_tokens is None else {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.n_truncated is None else {"x-llm-decoder-truncated": str(self.n_truncated)}


def _scores_by_query(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> list[float]:
    places: dict[str, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        places.setdefault(query, []).append(place)
    scores = [0.0] * len(pairs)
    for query, own in places.items():
        found = RequestScorer("reranker", query, reranker.score)([pairs[place][1] for place in own])
        for place, score in zip(own, found, strict=True):
            scores[place] = score
    return scores


class ScoringCounts:
    """What the routes have had scored, beside the engine's own counts of searches. Safe to use from several threads."""

    def __init__(self) -> None:
        self._n_pairs = 0
        self._latency = Histogram(SECONDS)
        self._lock = threading.Lock()

    def timed(self, reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> Pairs:
        """Pairs.scored, counted when it went well."""
        begin_s = time.perf_counter()
        scored = Pairs.scored(reranker, pairs)
        with self._lock:
            self._n_pairs += len(pairs)
            self._latency.add(time.perf_counter() - begin_s)
        return scored

    def added_to(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        """EngineCore.stats with these in its n_scored and its histogram `scoring`."""
        scoring = stats["histograms"]["scoring"]
        with self._lock:
            counts = [one + other for one, other in zip(scoring["counts"], self._latency.counts, strict=True)]
            n_scored, total_s = stats["n_scored"] + self._n_pairs, scoring["sum"] + self._latency.sum
        histogram = scoring | {"counts": counts, "sum": total_s}
        return {**stats, "n_scored": n_scored, "histograms": stats["histograms"] | {"scoring": histogram}}
