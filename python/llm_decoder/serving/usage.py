"""What an answer counts: tokens as OpenAI's clients read them, times as llama.cpp's do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_decoder.outputs import RequestOutput

__all__ = ["timings_of", "usage_of", "usage_so_far"]


def usage_of(
    outputs: Sequence[RequestOutput], reasoning_tokens: int | None = None, *, is_search: bool = False
) -> dict[str, Any]:
    """The whole request's. reasoning_tokens: None = an endpoint that knows no reasoning. A search's completion_tokens
    are those of the answers that it gives, and beam_tokens those of all its beams."""
    n_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    n_cached = sum(output.metrics.n_cached_tokens for output in outputs)
    n_generated = sum(output.metrics.n_generated_tokens for output in outputs)
    usage = usage_so_far(n_prompt, n_generated) | {"prompt_tokens_details": {"cached_tokens": n_cached}}
    details = {} if reasoning_tokens is None else {"reasoning_tokens": reasoning_tokens}
    if is_search:
        n_told = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        usage |= usage_so_far(n_prompt, n_told)
        details["beam_tokens"] = n_generated
    return usage | ({"completion_tokens_details": details} if details else {})


def usage_so_far(n_prompt: int, n_generated: int) -> dict[str, Any]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_generated, "total_tokens": n_prompt + n_generated}


def timings_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """llama.cpp's `timings`, of the prompt that took longest."""
    metrics = max((output.metrics for output in outputs), key=lambda metrics: metrics.total_s)
    prompt_s = max(0.0, metrics.time_to_first_token_s - metrics.queue_s)
    predicted_s = max(0.0, metrics.total_s - metrics.time_to_first_token_s)
    n_prompt = metrics.n_prompt_tokens - metrics.n_cached_tokens
    return {
        "cache_n": metrics.n_cached_tokens,
        "prompt_n": n_prompt,
        "prompt_ms": 1000 * prompt_s,
        "prompt_per_second": n_prompt / prompt_s if prompt_s else 0.0,
        "predicted_n": metrics.n_generated_tokens,
        "predicted_ms": 1000 * predicted_s,
        "predicted_per_second": metrics.tokens_per_s,
    }
