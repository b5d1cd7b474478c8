"""The report of bench as a picture: the roofline with a point a column, and where the time of each goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llm_decoder.cli._columns import ColumnResult
from llm_decoder.cli._roofline_table import describe_limits, part_label, part_names
from llm_decoder.errors import ConfigError

if TYPE_CHECKING:
    from llm_decoder.roofline import Limits

FORMATS = (".png", ".svg", ".pdf")
_INK, _FAINT, _ROOF = "#1f2430", "#8a909c", "#3b4252"
_KIND_COLOURS = {"prefill": "#2f6db5", "decode": "#d9730d", "batch": "#2e8b57"}
# Products in blues, what reads and writes pages in oranges, what works on rows in greens, the rest in greys and violet.
_PART_COLOURS = {
    "embed": "#cfe3c6",
    "rows": "#6aa84f",
    "attn_qkv": "#1d4e89",
    "store_kv": "#f7c98b",
    "attention": "#e58a2b",
    "attn_o": "#3f7cbf",
    "mlp_gate_up": "#6ba3d6",
    "mlp_down": "#a3c8e8",
    "lm_head": "#163a5f",
    "sample": "#8e6bbf",
    "plan": "#c9ccd3",
    "outside": "#9197a3",
}
_OTHER_COLOUR = "#d9a0c0"
_ROOF_BOXES = 120
_SHOWN_SHARE = 0.07  # of a bar, from which on a part has its percentage written into it


def check_plot(path: Path) -> None:
    """Raises typer.BadParameter for a name that is no picture's, ConfigError where matplotlib is missing: before the
    minutes that measuring may take."""
    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"need a file that ends in {', '.join(FORMATS)}, got {path}", param_hint="--plot")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"[--plot] needs matplotlib to draw, got none ({error}); pip install 'llm_decoder[bench]', or leave it out"
        ) from error


def write_plot(path: Path, title: str, limits: Limits, columns: Sequence[ColumnResult]) -> None:
    """Raises OSError when the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_parts = len(part_names(columns))
    figure = Figure(figsize=(13, 1.9 + 0.42 * max(len(columns), n_parts, 8)), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    figure.subplots_adjust(left=0.06, right=0.815, top=0.83, bottom=0.12, wspace=0.3)
    what, _, where = title.partition(": ")
    figure.text(0.015, 0.945, what, fontsize=15, fontweight="bold", color=_INK)
    figure.text(0.015, 0.9, f"{where}  ·  limits: {describe_limits(limits)}", fontsize=10, color=_FAINT)
    _draw_roofline(left, limits, columns)
    _draw_parts(right, columns)
    figure.savefig(path, dpi=100)


def _draw_roofline(axes: Any, limits: Limits, columns: Sequence[ColumnResult]) -> None:
    points = [(column.work.ops / column.work.read_bytes, column.work.ops / column.seconds / 1e9) for column in columns]
    is_int8 = columns[0].work.int8_ops >= columns[0].work.f32_ops
    peak = (limits.int8_ops_per_s if is_int8 else limits.f32_ops_per_s) / 1e9
    bandwidth = limits.read_bytes_per_s / 1e9
    ridge = peak / bandwidth
    x_limits = min(x for x, _ in points) / 2.5, max(ridge * 4, max(x for x, _ in points) * 3)
    y_limits = min(y for _, y in points) / 2.5, peak * 2

    axes.set(xscale="log", yscale="log", xlim=x_limits, ylim=y_limits)
    axes.fill_between(
        (x_limits[0], ridge, x_limits[1]), (x_limits[0] * bandwidth, peak, peak), color="#eef2f8", zorder=0
    )
    axes.plot((x_limits[0], ridge, x_limits[1]), (x_limits[0] * bandwidth, peak, peak), color=_ROOF, linewidth=2)
    for column, (x, y) in zip(columns, points, strict=True):
        axes.plot((x, x), (y, min(peak, x * bandwidth)), color=_FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axes.scatter((x,), (y,), s=70, color=_kind_colour(column), edgecolor="white", linewidth=1.2, zorder=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("operations a byte read", color=_INK)
    axes.set_ylabel("GOPS", color=_INK)
    axes.set_title("Reached, and the roof over it", loc="left", fontsize=12, color=_INK, pad=10)
    _finish(axes)
    axes.grid(which="major", color="#dfe3ea", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    roof = _label_roof(axes, bandwidth, peak, "int8" if is_int8 else "float32", x_limits)
    _label_points(axes, columns, points, roof)


def _label_roof(axes: Any, bandwidth: float, peak: float, name: str, x_limits: tuple[float, float]) -> list[Any]:
    """Returns what the roof and its words take of the picture, as boxes."""
    ridge = peak / bandwidth
    style = {"fontsize": 9, "color": _ROOF}
    flat = axes.annotate(
        f"{name} peak {peak:.0f} GOPS", (x_limits[1], peak), (-4, 5), textcoords="offset points", ha="right", **style
    )
    (x0, y0), (x1, y1) = axes.transData.transform([(ridge / 10, peak / 10), (ridge, peak)])
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    middle = (x_limits[0] * ridge) ** 0.5
    slope = axes.annotate(
        f"reading {bandwidth:.1f} GB/s",
        (middle, middle * bandwidth),
        (-6, 6),
        textcoords="offset points",
        rotation=angle,
        rotation_mode="anchor",
        ha="center",
        **style,
    )
    steps = [x_limits[0] * (x_limits[1] / x_limits[0]) ** (i / _ROOF_BOXES) for i in range(_ROOF_BOXES + 1)]
    roof = [_box(axes.transData.transform((x, min(peak, x * bandwidth))), 3) for x in steps]
    return roof + [text.get_window_extent(axes.figure.canvas.get_renderer()) for text in (slope, flat)]


def _label_points(
    axes: Any, columns: Sequence[ColumnResult], points: Sequence[tuple[float, float]], roof: list[Any]
) -> None:
    """A name and a share beside each point, where it hides no other point, no other name and nothing of the roof."""
    renderer = axes.figure.canvas.get_renderer()
    taken = roof + [_box(axes.transData.transform(point), 7) for point in points]
    inside = axes.get_window_extent(renderer)
    beside = [(10, -3, "left"), (-10, -3, "right"), (0, 11, "center"), (0, -18, "center")]
    places = [*beside, (8, -20, "left"), (-8, -20, "right"), (-8, -34, "right")]
    for column, point in zip(columns, points, strict=True):
        for dx, dy, align in places:
            label = axes.annotate(
                f"{column.name}  {column.share:.0%}",
                point,
                (dx, dy),
                textcoords="offset points",
                ha=align,
                fontsize=9.5,
                color=_kind_colour(column),
                fontweight="bold",
                zorder=4,
            )
            box = label.get_window_extent(renderer)
            is_free = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if is_free and not any(box.overlaps(other) for other in taken):
                break
            if (dx, dy, align) != places[-1]:
                label.remove()
        taken.append(box)


def _box(centre: Any, radius: float) -> Any:
    from matplotlib.transforms import Bbox

    x, y = centre
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _draw_parts(axes: Any, columns: Sequence[ColumnResult]) -> None:
    places = range(len(columns))
    begins = [0.0] * len(columns)
    for name in part_names(columns):
        colour = _PART_COLOURS.get(name, _OTHER_COLOUR)
        shares = [column.parts[name].time_share if name in column.parts else 0.0 for column in columns]
        axes.barh(
            places,
            shares,
            left=begins,
            color=colour,
            height=0.66,
            label=part_label(name),
            edgecolor="white",
            linewidth=0.6,
        )
        for place, begin, share in zip(places, begins, shares, strict=True):
            if share >= _SHOWN_SHARE:
                axes.text(
                    begin + share / 2,
                    place,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=_readable(colour),
                )
        begins = [begin + share for begin, share in zip(begins, shares, strict=True)]
    for place, column in zip(places, columns, strict=True):
        axes.text(1.015, place, f"{1e3 * column.seconds:.3g} ms", va="center", fontsize=9, color=_INK)
    axes.set_yticks(places, [column.name for column in columns])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=())
    axes.set_title("Where the time of a prompt, or of a step, goes", loc="left", fontsize=12, color=_INK, pad=10)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.11, 1.02), frameon=False, fontsize=9, handlelength=1, handleheight=1
    )
    _finish(axes)
    axes.tick_params(length=0)
    for tick, column in zip(axes.get_yticklabels(), columns, strict=True):
        tick.set(color=_kind_colour(column), fontweight="bold")
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _finish(axes: Any) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)


def _kind_colour(column: ColumnResult) -> str:
    return _KIND_COLOURS["prefill" if column.is_prefill else "decode" if column.n_sequences == 1 else "batch"]


def _readable(colour: str) -> str:
    """Black or white, whatever is easier to read on `colour`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else _INK
