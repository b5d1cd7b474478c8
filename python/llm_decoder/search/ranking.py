"""In what order the answers of a search come: by log probability, and by what a scorer thinks of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_decoder.outputs import CandidateScores, Completion
from llm_decoder.search.params import Normalise, SearchParams

__all__ = ["by_beam_score", "by_final_score", "scores_of", "with_beam_scores"]

Doubles = npt.NDArray[np.float64]


def with_beam_scores(samples: list[Completion], params: SearchParams) -> list[Completion]:
    """Samples with the score that beams have: their log probability over a power of their length."""
    for sample in samples:
        sample.beam_score = sample.cumulative_logprob / max(1, len(sample.token_ids)) ** params.length_penalty
    return samples


def by_beam_score(candidates: list[Completion]) -> list[Completion]:
    """The best first, with their beam_rank; the first come, among equals."""
    order = sorted(candidates, key=lambda candidate: -_beam_score(candidate))
    for rank, candidate in enumerate(order):
        candidate.index = candidate.beam_rank = rank
    return order


def by_final_score(candidates: list[Completion], scores: Sequence[float], params: SearchParams) -> list[Completion]:
    """The best first, with their rerank_score and final_score; the lowest beam_rank, among equals. `candidates` come
    in the order of these, scores are one for each."""
    normalised = _normalised(np.array(scores, np.float64), params.normalise).tolist()
    for candidate, raw, score in zip(candidates, scores, normalised, strict=True):
        candidate.rerank_score = raw
        candidate.final_score = params.alpha * score + (1 - params.alpha) * _beam_score(candidate)
    order = sorted(candidates, key=lambda candidate: -(candidate.final_score or 0.0))
    for index, candidate in enumerate(order):
        candidate.index = index
    return order


def _normalised(scores: Doubles, how: Normalise) -> Doubles:
    if how == "sigmoid":
        return 0.5 + 0.5 * np.tanh(0.5 * scores)  # never overflows
    if how == "zscore":
        scores = scores / max(np.abs(scores).max(), 1e-300)  # nor do these squares
        spread = scores.std()
        return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
    return scores


def scores_of(candidates: list[Completion]) -> tuple[CandidateScores, ...]:
    """The scores of candidates that were scored, in their order."""
    return tuple(
        CandidateScores(
            index=candidate.index,
            tree_leaf=candidate.tree_leaf,
            beam_rank=candidate.beam_rank or 0,
            beam_score=_beam_score(candidate),
            rerank_score=candidate.rerank_score or 0.0,
            final_score=candidate.final_score or 0.0,
        )
        for candidate in candidates
    )


def _beam_score(candidate: Completion) -> float:
    assert candidate.beam_score is not None, "every candidate has one"
    return candidate.beam_score
