"""What the verbs about rerankers have in common: the groups of files, and figures as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_decoder.cli._output import complain, emit_line, emit_table

if TYPE_CHECKING:
    from llm_decoder.errors import LLMDecoderError
    from llm_decoder.reranker.evaluate import Evaluation, Interval
    from llm_decoder.reranker.groups import Group

FilesArgument = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Logged runs, or a group a line: JSONL.")]
PromptsFlag = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Prompts of runs without them: {"prompt_hash": ..., "prompt": ...} a line.'),
]


def read_files(paths: Sequence[Path], prompts: Path | None) -> list[Group]:
    """The groups of all files. What is left out is told on standard error."""
    from llm_decoder.reranker.groups import read_groups

    known = {} if prompts is None else read_texts(prompts, "prompt_hash", "prompt")
    groups: list[Group] = []
    for path in paths:
        found, problems = read_groups(path, known)
        groups += found
        _tell(problems)
    return groups


def read_texts(path: Path, key: str, value: str) -> dict[str, str]:
    from llm_decoder.reranker import groups

    texts, problems = groups.read_texts(path, key, value)
    _tell(problems)
    return texts


def _tell(problems: Iterable[LLMDecoderError]) -> None:
    for problem in problems:
        complain("warning", str(problem))


def emit_evaluation(evaluation: Evaluation) -> None:
    """Two tables: of every scorer, and how much better the first one is than each other."""
    from llm_decoder.reranker.metrics import METRICS

    heads = [f"NDCG@{evaluation.k}" if metric == "ndcg" else metric.upper() for metric in METRICS]
    first = evaluation.scorers[0].name
    tables = [("SCORER", evaluation.scorers), (f"{first} minus", evaluation.differences)]
    for title, rows in tables:
        cells = [
            (figures.name, *(_cell(getattr(figures, metric), title != "SCORER") for metric in METRICS))
            for figures in rows
        ]
        if cells:
            emit_table((title, *heads), cells)
            emit_line()
    emit_line(
        f"{evaluation.n_groups} groups of {evaluation.n_queries} queries; in brackets 95 % intervals over queries, "
        "differences paired"
    )


def _cell(interval: Interval, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
