"""What a load has shown, as figures and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_decoder.cli._load import Load, Outcome
from llm_decoder.cli._output import emit_line, emit_table
from llm_decoder.cpu_topology import usable_cores

__all__ = ["Spread", "emit_load", "figures", "gaps", "spread"]


@dataclass(frozen=True)
class Spread:
    """Of times in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def spread(values: Sequence[float]) -> Spread | None:
    """None where there are none."""
    if not values:
        return None
    p50, p90, p99, most = (float(value) for value in np.percentile(values, (50, 90, 99, 100)))
    return Spread(float(np.mean(values)), p50, p90, p99, most)


def gaps(outcome: Outcome) -> list[float]:
    """Times between the events of an answer."""
    return [later - earlier for earlier, later in zip(outcome.event_s, outcome.event_s[1:], strict=False)]


def figures(load: Load, server_cpu_s: float | None = None) -> dict[str, Any]:
    """The report's figures, of requests that went well unless it says otherwise. Times in seconds, rates a second.

    time_per_output_token: of each request, from the first event to the last byte, over its tokens but the first.
    own_cpu_share: of all cores. server_cpu_s: None = unknown.
    """
    good = [outcome for outcome in load.outcomes if outcome.error is None]
    n_prompt = sum(outcome.n_prompt_tokens for outcome in good)
    n_answer = sum(outcome.n_answer_tokens for outcome in good)
    per_token = [
        (outcome.total_s - outcome.event_s[0]) / (outcome.n_answer_tokens - 1)
        for outcome in good
        if outcome.event_s and outcome.n_answer_tokens > 1
    ]
    return {
        "n_requests": len(load.outcomes),
        "n_good": len(good),
        "errors": dict(Counter(outcome.error for outcome in load.outcomes if outcome.error is not None)),
        "wall_s": load.wall_s,
        "requests_per_s": len(good) / load.wall_s,
        "n_prompt_tokens": n_prompt,
        "n_cached_tokens": sum(outcome.n_cached_tokens for outcome in good),
        "n_answer_tokens": n_answer,
        "answer_tokens_per_s": n_answer / load.wall_s,
        "total_tokens_per_s": (n_prompt + n_answer) / load.wall_s,
        "time_to_first_token_s": spread([outcome.event_s[0] for outcome in good if outcome.event_s]),
        "inter_token_latency_s": spread([gap for outcome in good for gap in gaps(outcome)]),
        "time_per_output_token_s": spread(per_token),
        "end_to_end_s": spread([outcome.total_s for outcome in good]),
        "own_cpu_s": load.own_cpu_s,
        "own_cpu_share": load.own_cpu_s / load.wall_s / usable_cores(),
        "server_cpu_s": server_cpu_s,
    }


TIMES = {
    "time_to_first_token_s": "time to first token",
    "inter_token_latency_s": "between tokens",
    "time_per_output_token_s": "per token",
    "end_to_end_s": "whole request",
}


def emit_load(title: str, shown: dict[str, Any]) -> None:
    """Title, counts and a table of times on standard output."""
    emit_line(title)
    cached = f" ({shown['n_cached_tokens']} cached)" if shown["n_cached_tokens"] else ""
    emit_line(
        f"{shown['n_good']} of {shown['n_requests']} requests in {shown['wall_s']:.2f} s: "
        f"{shown['requests_per_s']:.2f} requests/s, {shown['answer_tokens_per_s']:.1f} tokens/s generated, "
        f"{shown['total_tokens_per_s']:.1f} tokens/s with the prompts' {shown['n_prompt_tokens']}{cached}"
    )
    server = "" if shown["server_cpu_s"] is None else f", the server {shown['server_cpu_s']:.2f} s"
    emit_line(
        f"this program took {shown['own_cpu_s']:.2f} s of processor time, "
        f"{shown['own_cpu_share']:.1%} of the machine{server}"
    )
    for error, count in shown["errors"].items():
        emit_line(f"failed: {count} x {error}")
    emit_line()
    rows = [(label, *_cells(shown[name])) for name, label in TIMES.items() if shown[name] is not None]
    emit_table(("MS", "MEAN", "P50", "P90", "P99", "MAX"), rows)


def _cells(times: Spread) -> tuple[str, ...]:
    values = (times.mean, times.p50, times.p90, times.p99, times.max)
    return tuple(f"{1e3 * value:.1f}" for value in values)
