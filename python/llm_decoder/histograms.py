"""How long requests take and how large they are, counted as the engine goes. For one thread, the engine's."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_decoder.sequence import Request

__all__ = ["SECONDS", "EngineHistograms", "Histogram"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
# Finer where a reader notices.
_TOKEN_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
                  0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 50)  # fmt: skip
_TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
_STEP_TOKENS = tuple(1 << power for power in range(15))


class Histogram:
    """counts[i]: values above bounds[i - 1] and at most bounds[i]; the last count is of those above all bounds."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """`value`, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def as_dict(self) -> dict[str, Any]:
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class EngineHistograms:
    """Times in seconds. Every request that is over is in prompt_tokens, generated_tokens and total; in the others where
    it came as far: one that was cancelled in the queue has no time to its first token.

    inter_token: between two tokens of an answer; several that one step gave, where drafts were right, share the time
    equally. per_token: of a request after its first token, a token of one answer. prefill: from a place in a step to
    the first token; decode: from there to the end; inference: both. scoring: from when answers of a search are given to
    their scorer to its scores.
    """

    def __init__(self) -> None:
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.inter_token = Histogram(_TOKEN_SECONDS)
        self.per_token = Histogram(_TOKEN_SECONDS)
        self.time_to_first_token = Histogram(SECONDS)
        self.total = Histogram(SECONDS)
        self.queue = Histogram(SECONDS)
        self.prefill = Histogram(SECONDS)
        self.decode = Histogram(SECONDS)
        self.inference = Histogram(SECONDS)
        self.scoring = Histogram(SECONDS)
        self.prompt_tokens = Histogram(_TOKENS)
        self.generated_tokens = Histogram(_TOKENS)

    def add_request(self, request: Request, ended_s: float) -> None:
        metrics = request.metrics
        self.prompt_tokens.add(metrics.n_prompt_tokens)
        self.generated_tokens.add(metrics.n_generated_tokens)
        self.total.add(metrics.total_s)
        if request.admitted_s:
            self.queue.add(metrics.queue_s)
            self.inference.add(ended_s - request.admitted_s)
        if request.first_token_s:
            decode_s = ended_s - request.first_token_s
            self.time_to_first_token.add(metrics.time_to_first_token_s)
            self.prefill.add(request.first_token_s - request.admitted_s)
            self.decode.add(decode_s)
            n_later = metrics.n_generated_tokens / request.n_side_by_side - 1
            if n_later > 0:
                self.per_token.add(decode_s / n_later)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {name: histogram.as_dict() for name, histogram in vars(self).items()}
