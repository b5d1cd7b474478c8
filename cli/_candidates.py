"""The answers of a search, as a table or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_decoder.cli._output import emit_table, plain, to_json, without_controls

if TYPE_CHECKING:
    from llm_decoder.outputs import RequestOutput

SCORES = ("beam_score", "rerank_score", "final_score")


def plain_output(output: RequestOutput) -> dict[str, Any]:
    """The output without its tree, which has files of its own."""
    values: dict[str, Any] = plain(output)
    values.pop("tree", None)
    return values


def emit_candidates(output: RequestOutput) -> None:
    """The best first: as it reads at a terminal; elsewhere one line each, the text as a JSON string."""
    names = ("text", "finish_reason", *SCORES)
    emit_rows([{name: getattr(answer, name) for name in names} for answer in output.outputs])


def emit_rows(candidates: Sequence[Mapping[str, Any]]) -> None:
    """The same for the candidates of a run."""
    scores = [name for name in SCORES if any(candidate.get(name) is not None for candidate in candidates)]
    headers = ["#", *(name.removesuffix("_score") for name in scores), "end", "text"]
    is_terminal = sys.stdout.isatty()
    rows = []
    for rank, candidate in enumerate(candidates, 1):
        text = str(candidate.get("text", ""))
        text = without_controls(text).strip() if is_terminal else to_json(text)
        numbers = [_number(candidate.get(name)) for name in scores]
        rows.append([str(rank), *numbers, without_controls(str(candidate.get("finish_reason") or "-")), text])
    if not is_terminal:
        emit_table(headers, rows)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        is_number = header not in ("#", "end", "text")
        table.add_column(header, justify="right" if is_number else "left", no_wrap=header != "text")
    for number, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="bold" if number == 0 else None)
    Console(file=sys.stdout, highlight=False).print(table)


def _number(score: Any) -> str:
    return f"{score:.4f}" if isinstance(score, float | int) else "-"
