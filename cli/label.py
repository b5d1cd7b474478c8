"""llm-decoder label: which of the candidates are right, by a rule or by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_decoder.cli._callable import import_callable
from llm_decoder.cli._groups import FilesArgument, PromptsFlag, read_files, read_texts
from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import console, emit_json, emit_line, note, without_controls
from llm_decoder.cli._stream import read_stdin_line

if TYPE_CHECKING:
    from llm_decoder.reranker.groups import Group
    from llm_decoder.reranker.labels import LabelFile, Rule

_KEYS = "1 right, 0 wrong, a grade between, b the best: right, and all others wrong; s skip for now, q end"


def label(
    *,
    runs: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the labelled groups go.")],
    rule: Annotated[
        str | None, typer.Option(metavar="NAME", help="exact, contains, regex or module:function [labels by hand].")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What exact, contains or regex looks for, in all groups.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='What it looks for by query: {"query": ..., "answer": ...} a line.'),
    ] = None,
    prompts: PromptsFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Label candidates: which of them are right.

    With --rule at once; without it you are asked for each candidate, and each group is written as soon as it is
    labelled: run the same command again, it goes on with the rest.
    """
    from llm_decoder.errors import ConfigError
    from llm_decoder.reranker.labels import LabelFile, label_by_rule

    chosen = _rule(rule, answer, answers)
    groups = read_files(runs, prompts)
    with LabelFile(output) as file:
        n_before = len(file.done)
        if chosen is None:
            _ask_for_all(file, file.rest(groups))
        elif n_before:
            raise ConfigError(f"[{output}] need a new file for the labels of a rule, got one with {n_before} groups")
        else:
            for group in label_by_rule(file.rest(groups), chosen):
                if any(grade is not None for grade in group.labels):
                    file.add(group)
        n_labelled = len(file.done) - n_before
    if as_json:
        emit_json({"output": output, "n_labelled": n_labelled, "n_before": n_before, "n_groups": len(groups)})
    else:
        before = f" ({n_before} before)" if n_before else ""
        emit_line(f"{output}: {n_labelled} of {len(groups)} groups labelled{before}")


def _rule(name: str | None, answer: str | None, answers: Path | None) -> Rule | None:
    from llm_decoder.reranker.labels import RULES

    looked_for = answer if answers is None else read_texts(answers, "query", "answer")
    if name is not None and name in RULES:
        if looked_for is None or (answer is not None and answers is not None):
            raise typer.BadParameter(f"{name} needs one of --answer and --answers", param_hint="--rule")
        return RULES[name](looked_for)
    if looked_for is not None:
        raise typer.BadParameter(f"only {', '.join(RULES)} look for an answer", param_hint="--answer")
    if name is None:
        return None
    if ":" not in name:
        raise typer.BadParameter(f"need {', '.join(RULES)} or module:function, got {name}", param_hint="--rule")
    return import_callable(name, "--rule")


def _ask_for_all(file: LabelFile, groups: Sequence[Group]) -> None:
    try:
        for number, group in enumerate(groups, 1):
            note(f"\n{number} of {len(groups)} | {_KEYS}")
            labels = _ask(group)
            if labels is not None:
                file.add(group.with_labels(labels))
    except EOFError:
        pass


def _ask(group: Group) -> list[float] | None:
    """None to skip the group. Raises EOFError where the person ends."""
    _show(group.query)
    labels: list[float] = []
    for number, candidate in enumerate(group.candidates, 1):
        note(f"\ncandidate {number} of {len(group.candidates)}")
        _show(candidate)
        grade = _read_grade()
        if grade is None:
            return None
        if grade == "best":
            return [float(place == number) for place in range(1, len(group.candidates) + 1)]
        labels.append(float(grade))
    return labels


def _show(text: str) -> None:
    console().print(without_controls(text), markup=False)


def _read_grade() -> float | str | None:
    while True:
        note("1, 0, b, s or q?")
        word = read_stdin_line().strip().lower()
        if word in ("q", "quit"):
            raise EOFError
        if word in ("s", "skip"):
            return None
        if word in ("b", "best"):
            return "best"
        try:
            grade = float(word)
        except ValueError:
            continue
        if 0 <= grade <= 1:
            return grade
