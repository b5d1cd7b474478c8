"""Where words go: results to standard output, everything else to standard error."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from llm_decoder.outputs import RequestOutput

STDOUT = "stdout"  # the place of an error that its writing met
# Control characters that a model may have learnt but a terminal must not obey; newline and tab stay.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def console() -> Console:
    """Standard error as rich sees it: colour only on a terminal and without NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    console().print(text, style="dim", markup=False)


def complain(label: str, text: str) -> None:
    """`label: text` as one line on standard error."""
    out = console()
    out.print(f"{label}:", style="bold red", end=" ", markup=False)
    out.print(" ".join(text.split()), markup=False)


def without_controls(text: str) -> str:
    """For a terminal."""
    return text.translate(_CONTROL)


def emit_text(text: str) -> None:
    """Text of a model, as it comes. A terminal is spared control characters; a file or pipe gets every byte."""
    if sys.stdout.isatty():
        text = without_controls(text)
    _write(text)


def emit_aside(text: str) -> None:
    """What a model writes beside its answer, dimmed: for a person at a terminal, and not for a file or pipe."""
    if sys.stdout.isatty():
        text = without_controls(text)
        _write(text if os.environ.get("NO_COLOR") else f"\x1b[2m{text}\x1b[22m")


def emit_json(value: Any) -> None:
    """One JSON document on one line."""
    emit_line(to_json(value))


def emit_line(text: str = "") -> None:
    """A line of a result."""
    _write(text + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        error.filename = STDOUT
        raise


def emit_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns two spaces apart, never cut: made for eyes and for awk alike."""
    table = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    for row in table:
        emit_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def to_json(value: Any) -> str:
    """JSON as other programs accept it: UTF-8 where it can be, no NaN or Infinity (they become null)."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, copied from an input's escape sequence
        text = json.dumps(plain(value), allow_nan=False)
    return text


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as what JSON knows; fields of dataclasses that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def size(n_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def describe_speed(output: RequestOutput) -> str:
    """Counts, times and tokens a second of a finished request, as one line."""
    metrics = output.metrics
    cached = f" ({metrics.n_cached_tokens} cached)" if metrics.n_cached_tokens else ""
    drafted = ""
    if metrics.n_drafted_tokens:
        drafted = f" | {metrics.n_accepted_tokens} of {metrics.n_drafted_tokens} drafted tokens accepted"
    reasons = ", ".join(sorted({completion.finish_reason or "unfinished" for completion in output.outputs}))
    return (
        f"{metrics.n_generated_tokens} tokens in {metrics.total_s:.2f} s, {metrics.tokens_per_s:.1f} tokens/s"
        f" | prompt {metrics.n_prompt_tokens} tokens{cached}, first token after {metrics.time_to_first_token_s:.3f} s"
        f"{drafted} | {reasons}"
    )


class Progress:
    """Counts work that is done. Draws nothing by itself: see `progress`."""

    def __init__(self) -> None:
        self.n_done = 0
        self.n_tokens = 0
        self.started = time.monotonic()

    def advance(self, n_done: int, n_tokens: int = 0) -> None:
        self.n_done += n_done
        self.n_tokens += n_tokens

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0


@contextmanager
def progress(label: str, total: int | None, n_done: int = 0) -> Iterator[Progress]:
    """A progress bar with tokens a second on a terminal's standard error; elsewhere the counts alone."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    speed = TextColumn("{task.fields[tokens_per_s]:.1f} tokens/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with RichProgress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=n_done, tokens_per_s=0.0)

        class Drawn(Progress):
            def advance(self, n_done: int, n_tokens: int = 0) -> None:
                super().advance(n_done, n_tokens)
                bar.update(task, advance=n_done, tokens_per_s=self.tokens_per_s)

        yield Drawn()


@contextmanager
def loading_bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback (n_done_bytes, n_total_bytes, what) that draws on a terminal's standard error; elsewhere None.

    It may be called from any thread.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("loading", total=None, visible=False)  # a mapped model is there before one could look

        def show(n_done: int, n_total: int, what: str) -> None:
            bar.update(task, completed=n_done, total=n_total, description=what, visible=True)

        yield show
