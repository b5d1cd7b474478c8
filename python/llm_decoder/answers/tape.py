"""A text that arrives in pieces, for readers written as if it were there: a reader is a generator that yields where it
needs more of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

__all__ = ["Reader", "Tape"]

Result = TypeVar("Result")
Reader: TypeAlias = Generator[None, None, Result]

_SPACES = re.compile(r"[ \t\r\n]*")


def _nothing(text: str) -> None:
    """For what is taken and not wanted."""


class Tape:
    """Each character is taken once, so that reading takes time linear in the text. Whoever runs a reader pushes text,
    then resumes it."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._is_whole = False
        self._recorded: list[str] | None = None
        self._record_from = 0

    def push(self, text: str) -> None:
        self._cut()
        self._text += text

    def end(self) -> None:
        """Nothing more will come."""
        self._is_whole = True

    @property
    def is_empty(self) -> bool:
        """Whether all that was pushed is taken."""
        return self._at == len(self._text)

    def record(self) -> None:
        """From here on what is taken is kept for `recorded`."""
        self._recorded = []
        self._record_from = self._at

    def recorded(self) -> str:
        """What was taken since `record`, and no more of it is kept."""
        assert self._recorded is not None
        text = "".join(self._recorded) + self._text[self._record_from : self._at]
        self._recorded = None
        return text

    def _cut(self) -> None:
        if self._recorded is not None:
            self._recorded.append(self._text[self._record_from : self._at])
            self._record_from = 0
        self._text = self._text[self._at :]
        self._at = 0

    # -- readers

    def peek(self) -> Reader[str]:
        """The next character, "" at the end."""
        while self._at == len(self._text):
            if self._is_whole:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> str:
        """Takes the character that `peek` has seen."""
        self._at += 1
        return self._text[self._at - 1]

    def run(self, pattern: re.Pattern[str], out: Callable[[str], object] = _nothing) -> Reader[None]:
        """Takes all that comes of characters that `pattern`, a class with a star, matches, and hands it to `out` as it
        comes."""
        while (yield from self.peek()):
            match = pattern.match(self._text, self._at)
            end = match.end() if match else self._at
            if end == self._at:
                return
            out(self._text[self._at : end])
            self._at = end

    def spaces(self, out: Callable[[str], object] = _nothing) -> Reader[None]:
        """Takes what JSON calls white space."""
        yield from self.run(_SPACES, out)

    def literal(self, mark: str) -> Reader[bool]:
        """Takes `mark` if it comes next; whether it did."""
        while True:
            there = self._text[self._at : self._at + len(mark)]
            if there == mark:
                self._at += len(mark)
                return True
            if self._is_whole or not mark.startswith(there):
                return False
            yield

    def until(self, mark: str, out: Callable[[str], object]) -> Reader[bool]:
        """Takes all up to the next `mark` and hands it to `out` as it comes; takes the mark too. False when the text
        ends before it."""
        is_there = yield from self.before(mark, out)
        self._at += len(mark) * is_there
        return is_there

    def before(self, mark: str, out: Callable[[str], object]) -> Reader[bool]:
        """As `until`, but the mark is still to be taken."""
        while True:
            found_at = self._text.find(mark, self._at)
            if found_at >= 0:
                self._pass(found_at, out)
                return True
            self._pass(len(self._text) - (0 if self._is_whole else self._n_held(mark)), out)
            if self._is_whole:
                return False
            yield

    def rest(self, out: Callable[[str], object]) -> Reader[None]:
        """Takes all that comes and hands it to `out`."""
        while (yield from self.peek()):
            self._pass(len(self._text), out)

    def _n_held(self, mark: str) -> int:
        """How many characters at the end may be the beginning of the mark."""
        n_there = len(self._text) - self._at
        return next((n for n in range(min(len(mark) - 1, n_there), 0, -1) if self._text.endswith(mark[:n])), 0)

    def _pass(self, end: int, out: Callable[[str], object]) -> None:
        if end > self._at:
            out(self._text[self._at : end])
            self._at = end
