"""The reranker behind the routes: which it is, what it scores for them, and how often it was asked."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_decoder.errors import InvalidRequestError
from llm_decoder.histograms import SECONDS, Histogram
from llm_decoder.search.scorers import RequestScorer, Reranker
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
        """Raises RequestFailedError for what is no finite score a pair."""
        scores: list[float] = []
        measure = getattr(reranker, "measure", None)
        n_tokens = n_truncated = 0
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            documents = [document for _, document in group]
            scores += RequestScorer("reranker", query, reranker.score)(documents)
            if measure is not None:
                counts, is_cut = measure(query, documents)
                n_tokens += int(counts.sum())
                n_truncated += int(is_cut.sum())
        return cls(scores, None, None) if measure is None else cls(scores, n_tokens, n_truncated)

    def likelihoods(self) -> list[float]:
        """The scores in 0..1, in the same order: the sigmoid of each."""
        return [float(value) for value in np.exp(-np.logaddexp(0.0, -np.asarray(self.scores, np.float64)))]

    @property
    def usage(self) -> dict[str, int]:
        return {} if self.n_tokens is None else {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}

    @property
    def headers(self) -> Mapping[str, str]:
        return {} if self.n_truncated is None else {"x-llm-decoder-truncated": str(self.n_truncated)}


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
