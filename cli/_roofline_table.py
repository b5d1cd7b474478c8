"""The report of bench as text: the limits, what each column reaches of them, and where its time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_decoder.cli._columns import ColumnResult
from llm_decoder.cli._output import emit_line, emit_table

if TYPE_CHECKING:
    from llm_decoder.roofline import Limits

# What the parts of a step are called, in the order in which they are told; one that is missing has its own name.
PART_LABELS = {
    "embed": "embedding",
    "rows": "norms, gate, quantise",
    "attn_qkv": "product qkv",
    "store_kv": "rope, KV store",
    "attention": "attention",
    "attn_o": "product o",
    "mlp_gate_up": "product gate, up",
    "mlp_down": "product down",
    "lm_head": "output layer",
    "sample": "sampling",
    "plan": "step plan",
    "outside": "engine",
}
BOUND_LABELS = {"read": "reading", "int8": "int8 peak", "float32": "float32 peak"}


def part_names(columns: Sequence[ColumnResult]) -> list[str]:
    """The parts that any column has, in the order of PART_LABELS."""
    found = {name: None for column in columns for name in column.parts}
    return [name for name in PART_LABELS if name in found] + [name for name in found if name not in PART_LABELS]


def part_label(name: str) -> str:
    return PART_LABELS.get(name, name)


def describe_limits(limits: Limits) -> str:
    return (
        f"read {limits.read_bytes_per_s / 1e9:.1f} GB/s, int8 {limits.int8_ops_per_s / 1e9:.0f} GOPS, "
        f"float32 {limits.f32_ops_per_s / 1e9:.0f} GOPS"
    )


def emit_report(title: str, limits: Limits, columns: Sequence[ColumnResult]) -> None:
    """Title, limits and two tables on standard output."""
    emit_line(title)
    emit_line(f"limits: {describe_limits(limits)}")
    emit_line()
    _emit_numbers(
        ("COLUMN", "TOKENS/S", "RANGE", "AT MOST", "SHARE", "BOUND BY", "GB/S", "GOPS"),
        [_summary(column) for column in columns],
    )
    emit_line()
    rows = [("one prompt, or a step", *(f"{1e3 * column.seconds:.2f} ms" for column in columns))]
    rows += [(part_label(name), *(_part(column, name) for column in columns)) for name in part_names(columns)]
    _emit_numbers(("WHERE TIME GOES", *(column.name.upper() for column in columns)), rows)
    emit_line()
    emit_line("in the second table: share of the time, and (of its limit) what a part that has one reaches")


def _summary(column: ColumnResult) -> tuple[str, ...]:
    return (
        column.name,
        f"{column.tokens_per_s:.1f}",
        f"{min(column.runs):.1f} to {max(column.runs):.1f}",
        f"{column.floor_tokens_per_s:.1f}",
        f"{column.share:.0%}",
        BOUND_LABELS[column.bound],
        f"{column.work.read_bytes / column.seconds / 1e9:.1f}",
        f"{column.work.ops / column.seconds / 1e9:.0f}",
    )


def _part(column: ColumnResult, name: str) -> str:
    part = column.parts.get(name)
    if part is None:
        return ""
    reached = "" if part.limit_share is None else f"({part.limit_share:.0%})"
    return f"{part.time_share:.1%} {reached:>6}"


def _emit_numbers(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table whose cells, but for the first of a row, are set to the right."""
    widths = [max(len(cell) for cell in cells) for cells in zip(headers, *rows, strict=True)]
    set_right = [[row[0], *map(str.rjust, row[1:], widths[1:])] for row in (headers, *rows)]
    emit_table(set_right[0], set_right[1:])
