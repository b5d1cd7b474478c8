"""What a load has shown as a picture: how times are spread, and how the load went on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_decoder.cli._load import Load
from llm_decoder.cli._load_report import gaps

__all__ = ["write_load_plot"]

_INK, _FAINT, _BLUE, _ORANGE, _GREEN = "#1f2430", "#8a909c", "#2f6db5", "#d9730d", "#2e8b57"
_N_BINS = 60


def write_load_plot(path: Path, title: str, load: Load) -> None:
    """Raises OSError when the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [outcome for outcome in load.outcomes if outcome.error is None and outcome.event_s]
    figure = Figure(figsize=(12, 7.5), facecolor="white")
    FigureCanvasAgg(figure)
    first, between, over_time, open_requests = figure.subplots(2, 2).flat
    figure.subplots_adjust(left=0.07, right=0.98, top=0.9, bottom=0.08, hspace=0.35, wspace=0.18)
    figure.text(0.015, 0.95, title, fontsize=13, fontweight="bold", color=_INK)
    _draw_shares(first, [outcome.event_s[0] for outcome in good], "time to first token, ms", _BLUE)
    _draw_shares(between, [gap for outcome in good for gap in gaps(outcome)], "between tokens, ms", _ORANGE)

    width_s = load.wall_s / _N_BINS
    moments = [outcome.sent_s + event_s for outcome in good for event_s in outcome.event_s]
    counts, edges = np.histogram(moments, bins=_N_BINS, range=(0.0, load.wall_s))
    over_time.plot(edges[:-1] + width_s / 2, counts / width_s, color=_GREEN)
    _name(over_time, "seconds", "events a second, all answers")

    changes = sorted([(o.sent_s, 1) for o in load.outcomes] + [(o.sent_s + o.total_s, -1) for o in load.outcomes])
    times = [moment for moment, _ in changes]
    open_requests.step(times, np.cumsum([change for _, change in changes]), where="post", color=_INK)
    _name(open_requests, "seconds", "open requests")
    figure.savefig(path, dpi=100)


def _draw_shares(axes: Any, values: Sequence[float], label: str, colour: str) -> None:
    """The share of values up to each; percentiles as lines."""
    ordered = np.sort(np.array(values)) * 1e3
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / max(1, len(ordered)), color=colour)
    for percent in (50, 90, 99) if len(ordered) else ():
        value = float(np.percentile(ordered, percent))
        axes.axvline(value, color=_FAINT, linewidth=0.8, linestyle=":")
        axes.text(value, 0.03, f" p{percent} {value:.1f}", fontsize=8, color=_FAINT, rotation=90, ha="right")
    if len(ordered) and ordered[-1] > 20 * ordered[0] > 0:
        axes.set_xscale("log")
    _name(axes, label, "share")


def _name(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.set_ylim(bottom=0)
    axes.grid(True, color="#e7e9ee", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
