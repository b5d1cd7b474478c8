"""An evaluation as a picture: a panel a metric, each scorer with its interval, matplotlib from the extra [viz]."""

from __future__ import annotations

from pathlib import Path

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.evaluate import BASELINES, Evaluation, Figures
from llm_decoder.reranker.metrics import METRICS

__all__ = ["check_picture", "write_picture"]

_FORMATS = (".png", ".svg", ".pdf")
_INK, _FAINT, _GRID, _BLUE, _GREY = "#1f2430", "#8a909c", "#e7e9ee", "#2f6db5", "#9aa3b2"
_MOST_CHARS = 32
_TITLES = {"accuracy": "the pick is right", "mrr": "MRR", "ndcg": "NDCG@{k}"}


def check_picture(path: Path) -> None:
    """Raises ConfigError for a name that is no picture's, and where matplotlib is missing."""
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"[plot] need a file that ends in {', '.join(_FORMATS)}, got {path}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"[plot] needs matplotlib to draw, got none ({error}); pip install 'llm_decoder[viz]', or leave it out"
        ) from error


def write_picture(path: Path, evaluation: Evaluation) -> None:
    """Raises OSError when the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [_shortened(figures.name) for figures in evaluation.scorers]
    height = 1.5 + 0.42 * len(names)
    figure = Figure(figsize=(12, height), facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(METRICS), sharey=True)
    longest = max(map(len, names))
    figure.subplots_adjust(
        left=0.03 + 0.0072 * longest, right=0.985, top=1 - 0.75 / height, bottom=0.45 / height, wspace=0.06
    )
    figure.text(
        0.015,
        1 - 0.28 / height,
        f"{evaluation.n_groups} groups of {evaluation.n_queries} queries, 95 % intervals",
        fontsize=11,
        color=_INK,
    )
    for metric, axes in zip(METRICS, panels, strict=True):
        for row, figures in enumerate(evaluation.scorers):
            interval = getattr(figures, metric)
            colour = _colour(figures)
            axes.barh(row, interval.mean, height=0.62, color=colour)
            axes.plot((interval.low, interval.high), (row, row), color=_INK, linewidth=1.4)
            axes.text(interval.high + 0.015, row, f"{interval.mean:.3f}", va="center", fontsize=9, color=_INK)
        axes.set_title(_TITLES[metric].format(k=evaluation.k), loc="left", fontsize=11, color=_INK)
        axes.set(xlim=(0, 1.14), xticks=(0, 0.25, 0.5, 0.75, 1), yticks=range(len(names)), yticklabels=names)
        axes.tick_params(length=0, colors=_FAINT, labelsize=9)
        axes.tick_params(axis="y", colors=_INK)
        axes.grid(axis="x", color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=100)


def _shortened(name: str) -> str:
    return name if len(name) <= _MOST_CHARS else "…" + name[1 - _MOST_CHARS :]


def _colour(figures: Figures) -> str:
    return _GREY if figures.name in BASELINES else _BLUE
