"""Follows a request event by event."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from llm_decoder.cli._output import emit_text

if TYPE_CHECKING:
    from llm_decoder.outputs import RequestOutput, StreamEvent


class Events(Protocol):
    """An answer as it comes. `close` ends it early."""

    def __iter__(self) -> Iterator[StreamEvent]: ...

    def close(self) -> None: ...


def follow(events: Events, each: Callable[[StreamEvent], None]) -> RequestOutput:
    """Hands every event to `each` and returns the finished request. Leaving early, as by Ctrl-C, cancels it."""
    output = None
    with contextlib.closing(events):
        for event in events:
            each(event)
            output = event.output or output
    assert output is not None, "a stream ends with an event that has the output"
    return output


def follow_text(events: Events) -> RequestOutput:
    """Writes the text of a single answer to standard output as it comes, and a line end behind it, however it ends."""
    try:
        return follow(events, lambda event: emit_text(event.text))
    finally:
        with contextlib.suppress(BrokenPipeError):
            emit_text("\n")


def stdin() -> TextIO:
    """Standard input. Raises ConfigError when the process was started without one."""
    if sys.stdin is None:
        from llm_decoder.errors import ConfigError

        raise ConfigError("[stdin] need an open standard input, got a closed one; give the prompt as an argument")
    return sys.stdin


def read_stdin() -> str:
    """All of standard input, without a byte order mark and the last line end. Raises InvalidRequestError unless it is
    UTF-8."""
    return decode(stdin().buffer.read()).replace("\r\n", "\n").removeprefix("\ufeff").removesuffix("\n")


def read_stdin_line() -> str:
    """The next line of standard input. Raises EOFError at its end, InvalidRequestError unless it is UTF-8."""
    line = stdin().buffer.readline()
    if not line:
        raise EOFError
    return decode(line)


def decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        from llm_decoder.errors import InvalidRequestError

        raise InvalidRequestError(
            f"[stdin] need UTF-8 text, got the byte 0x{raw[error.start]:02x} after {error.start} bytes, which is none; "
            "convert it, as with iconv"
        ) from None


def samples_path() -> Path:
    """The packaged prompts, a JSON object a line."""
    import llm_decoder

    return Path(llm_decoder.__file__).parent / "embedded" / "samples" / "prompts.jsonl"
