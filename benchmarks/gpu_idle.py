"""How long a GPU stood still between kernels, by what a profiler saw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Kernels of one graph, or of one queue that is never empty, follow each other in a microsecond or two; what is longer
# waited for the host.
HOST_GAP_US = 5.0
EDGE = 0.1  # of what a profiler saw: where it begins and ends it holds up the host itself


def middle(intervals: Iterable[tuple[float, float]], edge: float = EDGE) -> list[tuple[float, float]]:
    """Those without the first and the last part of their span. intervals: (begin, end)."""
    known = list(intervals)
    first = min((begin for begin, _ in known), default=0.0)
    last = max((end for _, end in known), default=0.0)
    margin = edge * (last - first)
    return [(begin, end) for begin, end in known if begin >= first + margin and end <= last - margin]


def busy_and_waiting(intervals: Iterable[tuple[float, float]], host_gap_us: float = HOST_GAP_US) -> dict[str, float]:
    """intervals: (begin, end) of kernels and copies, us. span_us from the first to the last; busy_us of it some ran,
    waiting_us lies in gaps of more than host_gap_us; waiting_share is that of the span.

    Raises ValueError without intervals.
    """
    ordered = sorted(intervals)
    if not ordered:
        raise ValueError("need kernels, the profiler saw none")
    first, end = ordered[0]
    busy_us = end - first
    waiting_us = 0.0
    for begin, own_end in ordered[1:]:
        if begin - end > host_gap_us:
            waiting_us += begin - end
        busy_us += max(0.0, own_end - max(begin, end))
        end = max(end, own_end)
    span_us = end - first
    return {
        "span_us": span_us,
        "busy_us": busy_us,
        "waiting_us": waiting_us,
        "waiting_share": waiting_us / span_us if span_us else 0.0,
        "n_kernels": float(len(ordered)),
    }


def intervals_of(torch: Any, profile: Any) -> list[tuple[float, float]]:
    """What ran on the GPU while torch.profiler watched, us."""
    on_gpu = torch.autograd.DeviceType.CUDA
    return [(event.time_range.start, event.time_range.end) for event in profile.events() if event.device_type == on_gpu]
