"""llm-decoder batch: a file of prompts in, a file of answers out."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, QuietFlag, SamplingOptions
from llm_decoder.cli._output import Progress, emit_json, note, progress
from llm_decoder.cli._stream import samples_path, stdin

if TYPE_CHECKING:
    from llm_decoder.cli._batch_lines import Line
    from llm_decoder.cli._journal import Journal
    from llm_decoder.llm import LLM
    from llm_decoder.sampling import SamplingParams


def batch(
    *,
    source: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="Prompts, a JSON object a line; - reads standard input.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Answers. Without it: standard output.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Lines in flight at a time.")] = 32,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    model: ModelOptions,
    sampling: SamplingOptions,
) -> int:
    """Answer a file of prompts.

    Without INPUT: the packaged samples. A line is {"prompt": ...}, {"messages": [...]} or {"token_ids": [...]}, with
    "id" and any sampling field beside it. Answers are written as they are ready, each with the index of its line. Run
    again with the same --output after a kill, it does the rest. A bad line gets an {"error": ...} record, the others
    go on, and the exit code is 1. The answers are JSON in any case; with --json and --output the counts are, too, on
    standard output.
    """
    params = _open.sampling_params(sampling, model)
    chat_params = _open.sampling_params(sampling, model, in_chat=True)
    with contextlib.ExitStack() as stack:
        lines, total = _open_input(source, stack)
        journal = _open_output(output, stack)
        todo = (line for line in lines if journal is None or not journal.belongs_to(line.index, line.text))
        n_before = len(journal.done) if journal else 0
        if total is not None and n_before >= total:
            for _ in todo:  # every line must still be the one that was answered
                pass
            note(f"nothing to do: {n_before} of {total} lines were done before")
            counts = _Counts(journal.n_failed if journal else 0)
            if as_json and journal:
                emit_json(_summary(journal.path, counts, Progress(), n_before))
            return int(counts.n_failed > 0)
        llm = stack.enter_context(_open.open_for(model, chat_params))
        bar = stack.enter_context(progress("lines", total, n_before))
        counts = _Counts(journal.n_failed if journal else 0)
        try:
            for record, n_tokens in answers(llm, todo, params, chat_params, concurrency):
                journal.append(record) if journal else emit_json(record)
                counts.add(record)
                bar.advance(1, n_tokens)
        except KeyboardInterrupt:
            _report_interrupt(output)
            raise
    if not quiet:
        _report(counts, bar, n_before)
    if as_json and journal:
        emit_json(_summary(journal.path, counts, bar, n_before))
    return int(counts.n_failed > 0)


class _Counts:
    def __init__(self, n_failed: int) -> None:
        self.n_done = 0
        self.n_failed = n_failed

    def add(self, record: dict[str, Any]) -> None:
        self.n_done += 1
        self.n_failed += "error" in record


def answers(
    llm: LLM, lines: Iterable[Line], params: SamplingParams, chat_params: SamplingParams, concurrency: int
) -> Generator[tuple[dict[str, Any], int], None, None]:
    """Records and their tokens as they get ready; at most `concurrency` lines are read ahead.

    One waiting thread a line: the engine makes one batch of them all.
    """
    from llm_decoder.cli._batch_lines import answer

    lines = iter(lines)
    running: set[Future[tuple[dict[str, Any], int]]] = set()
    with ThreadPoolExecutor(concurrency, thread_name_prefix="batch") as pool:
        try:
            while True:
                while len(running) < concurrency and (line := next(lines, None)) is not None:
                    running.add(pool.submit(answer, llm, line, params, chat_params))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BaseException:
            # Closing the engine ends what is in flight, so that the threads do not hold up the exit.
            llm.close()
            raise


def _open_input(source: Path | None, stack: contextlib.ExitStack) -> tuple[Iterator[Line], int | None]:
    """The lines of the input, and how many there are (None: not known beforehand)."""
    from llm_decoder.cli._batch_lines import read_lines

    if source is not None and str(source) == "-":
        return read_lines(stdin().buffer), None
    path = samples_path() if source is None else source
    opened: BinaryIO = stack.enter_context(path.open("rb"))
    if not opened.seekable():  # a pipe: what is counted is gone
        return read_lines(opened), None
    total = sum(1 for _ in read_lines(opened))
    opened.seek(0)
    return read_lines(opened), total


def _open_output(output: Path | None, stack: contextlib.ExitStack) -> Journal | None:
    from llm_decoder.cli._journal import Journal

    if output is None or str(output) == "-":
        return None
    return stack.enter_context(contextlib.closing(Journal(output)))


def _report(counts: _Counts, bar: Progress, n_before: int) -> None:
    before = f" ({n_before} before)" if n_before else ""
    failed = f", {counts.n_failed} failed" if counts.n_failed else ""
    note(
        f"{counts.n_done} lines{before}{failed} | {bar.n_tokens} tokens in {bar.elapsed_s:.2f} s, "
        f"{bar.tokens_per_s:.1f} tokens/s"
    )


def _summary(output: Path, counts: _Counts, bar: Progress, n_before: int) -> dict[str, Any]:
    return {
        "output": output,
        "n_lines": counts.n_done,
        "n_lines_before": n_before,
        "n_failed": counts.n_failed,
        "n_tokens": bar.n_tokens,
        "elapsed_s": bar.elapsed_s,
        "tokens_per_s": bar.tokens_per_s,
    }


def _report_interrupt(output: Path | None) -> None:
    note("stopped" if output is None else f"stopped; the same command goes on where {output} ends")
