"""llm-decoder finetune-reranker: a cross-encoder that learns from labelled runs."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from llm_decoder.cli._groups import FilesArgument, PromptsFlag, emit_evaluation, read_files
from llm_decoder.cli._options import ConfigFlag, JsonFlag
from llm_decoder.cli._output import complain, console, emit_json, emit_line, note
from llm_decoder.cli._reranker_folder import reranker_folder
from llm_decoder.cli._verb import EXIT_INTERRUPTED, EXIT_OK


def finetune_reranker(
    *,
    runs: FilesArgument,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="FOLDER", help="A cross-encoder, or a BERT of any kind [the settings' reranker]."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the finetuned model goes.")],
    loss: Annotated[str, typer.Option(metavar="NAME", help="pairwise, listwise or pointwise.")] = "pairwise",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="How often all groups are seen.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Groups a step; pairs for pointwise.")] = 16,
    learning_rate: Annotated[float, typer.Option(metavar="R", help="At its highest.")] = 2e-5,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split, a new head, order and dropout.")] = 0,
    eval_share: Annotated[float, typer.Option(metavar="R", help="Share of the queries that are held out.")] = 0.2,
    max_length: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens of a pair [the model's].")] = None,
    checkpoint_steps: Annotated[int, typer.Option(min=1, metavar="N", help="Steps between checkpoints.")] = 200,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads that compute [torch's].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in FOLDER.")] = False,
    prompts: PromptsFlag = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> int:
    """Finetune a cross-encoder on labelled runs, and judge it on queries that it has not seen.

    The folder that is written is one for --reranker. The first Ctrl-C keeps a checkpoint and ends, the second one ends
    at once; --resume goes on. Needs pip install 'llm_decoder[train]'.
    """
    from llm_decoder.errors import ConfigError
    from llm_decoder.reranker.finetune import FinetuneParams, finetune, need_training_libraries

    try:
        params = FinetuneParams(
            loss=loss,  # type: ignore[arg-type]
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            eval_share=eval_share,
            max_length=max_length,
            checkpoint_steps=checkpoint_steps,
            threads=threads,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    need_training_libraries()
    base = reranker_folder(model, config)
    groups = read_files(runs, prompts)
    note(f"{len(groups)} groups; loading the training libraries")
    with _stop_at_ctrl_c() as stopped, _step_bar() as on_step:
        report = finetune(groups, base, out, params, resume=resume, on_step=on_step, should_stop=stopped.is_set)
    if as_json:
        emit_json(report)
    if report.checkpoint is not None:
        note(f"stopped at {report.checkpoint}; the same command with --resume goes on from there")
        return EXIT_INTERRUPTED
    if report.n_left_out:
        complain("warning", f"{report.n_left_out} groups were left out: they have no two labels that differ")
    if report.n_truncated:
        complain("warning", f"{report.n_truncated} pairs were cut: they are longer than the model reads")
    if not as_json and report.evaluation is not None:
        emit_evaluation(report.evaluation)
        emit_line(f"{out}: learnt from {report.n_learnt} groups in {report.elapsed_s:.0f} s")
    return EXIT_OK


@contextlib.contextmanager
def _stop_at_ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one is a KeyboardInterrupt, as ever."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _step_bar() -> Iterator[Callable[[int, int, float | None], None] | None]:
    """Steps and the loss on a terminal's standard error; elsewhere None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(step: int, n_steps: int, loss: float | None) -> None:
            bar.update(task, completed=step, total=n_steps, description="" if loss is None else f"loss {loss:.4f}")

        yield show
