"""llm-decoder rerank-eval: rerankers judged on labelled runs, beside what costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_decoder.cli._callable import import_callable
from llm_decoder.cli._groups import FilesArgument, PromptsFlag, emit_evaluation, read_files
from llm_decoder.cli._options import ConfigFlag, JsonFlag, PlotFlag
from llm_decoder.cli._output import complain, emit_json, progress
from llm_decoder.cli._reranker_folder import reranker_folder

if TYPE_CHECKING:
    from llm_decoder.reranker.evaluate import Scorer


def rerank_eval(
    *,
    runs: FilesArgument,
    reranker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="A cross-encoder to judge, the first beside all others [the settings', else the embedded one].",
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="module:function(query, candidates), judged as well.")
    ] = None,
    quantization: Annotated[str, typer.Option(metavar="NAME", help="Of the cross-encoders: int8 or none.")] = "int8",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that compute [one a physical core].")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, metavar="N", help="Places that NDCG looks at.")] = 10,
    resamples: Annotated[int, typer.Option(min=100, max=1_000_000, metavar="N", help="Of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the bootstrap.")] = 0,
    plot: PlotFlag = None,
    prompts: PromptsFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Judge rerankers on labelled runs: how often their pick is right, MRR and NDCG, with 95 % intervals.

    Beside them stand the log probability of the search, the shortest and the longest candidate, and chance.
    """
    from llm_decoder.reranker.evaluate import evaluate
    from llm_decoder.reranker.evaluation_picture import check_picture, write_picture

    if plot is not None:
        check_picture(plot)
    groups = [group.labelled_part() for group in read_files(runs, prompts)]
    usable = [group for group in groups if group.has_order]
    if usable and len(usable) < len(groups):
        complain("warning", f"{len(groups) - len(usable)} groups were left out: they have no two labels that differ")
    if not reranker and not scorer:
        reranker = [str(reranker_folder(None, config))]
    scorers = _scorers(reranker or [], scorer or [], quantization, threads)
    with progress("groups", len(usable) * len(scorers)) as bar:
        evaluation = evaluate(usable, scorers, k=k, n_resamples=resamples, seed=seed, on_group=lambda: bar.advance(1))
    if plot is not None:
        write_picture(plot, evaluation)
    if as_json:
        emit_json(evaluation)
    else:
        emit_evaluation(evaluation)


def _scorers(
    rerankers: Sequence[str], functions: Sequence[str], quantization: str, threads: int | None
) -> dict[str, Scorer]:
    """By name: a folder's own, a callable's as it was given."""
    from llm_decoder import CrossEncoder

    found: dict[str, Scorer] = {}
    for folder in rerankers:
        name = Path(folder).resolve().name
        if name in found:
            raise typer.BadParameter(f"need folders of different names, got {name} twice", param_hint="--reranker")
        found[name] = CrossEncoder(folder, quantization=quantization, threads=threads).score
    for function in functions:
        found[function] = import_callable(function, "--scorer")
    return found
