"""AnswerParser: the text of an answer, as it comes, becomes parts."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from llm_decoder.answers.forms import FORMS, read_plain
from llm_decoder.answers.style import ChatStyle
from llm_decoder.answers.tape import Reader, Tape

__all__ = ["AnswerParser", "Part", "PartKind"]

PartKind: TypeAlias = Literal["content", "reasoning", "tool_call"]

_ALPHABET = string.ascii_letters + string.digits
_SPACES = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Part:
    """What an answer gained. text: of its content, of its reasoning, or of a call's arguments, which are JSON. The
    first part of a call has its name and id, later ones its index alone."""

    kind: PartKind
    text: str = ""
    tool_index: int = 0
    tool_id: str = ""
    tool_name: str = ""


class AnswerParser:
    """One answer. The parts do not depend on the pieces in which its text comes, but for where one part is cut in two.

    tools: the names that may be called; none = calls are not looked for. begins_in_reasoning: the prompt ends where the
    model reasons. max_calls: further ones are left out. new_id: makes the id of a call.

    The marks of reasoning and calls are not part of the text, nor is white space beside them. Everything else is: what
    only looks like a call is content, as it was written.
    """

    def __init__(
        self,
        style: ChatStyle,
        *,
        tools: Collection[str] = (),
        begins_in_reasoning: bool = False,
        max_calls: int | None = None,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._style = style
        self._tools = frozenset(tools)
        self._begins_in_reasoning = begins_in_reasoning
        self._max_calls = max_calls
        self._finds_calls = bool(tools) and style.calls is not None
        self._new_id = new_id or (_mistral_id if style.calls in ("mistral", "mistral-args") else _openai_id)
        self._tape = Tape()
        self._parts: list[Part] = []
        self._kind: PartKind | None = None  # of what is being gathered
        self._pieces: list[str] = []
        self._spaces: list[str] = []  # white space that may turn out to stand beside a mark
        self._drops_spaces = False
        self._n_calls = 0
        self._is_dropped = False
        self._reader = self._read()
        self._is_over = False
        self._resume()

    def fresh(self) -> AnswerParser:
        """A parser for another answer to the same prompt."""
        return AnswerParser(
            self._style,
            tools=self._tools,
            begins_in_reasoning=self._begins_in_reasoning,
            max_calls=self._max_calls,
            new_id=self._new_id,
        )

    def push(self, text: str) -> list[Part]:
        """The parts that `text` completes; what could still become a mark is held back."""
        self._tape.push(text)
        self._resume()
        return self._taken()

    def finish(self) -> list[Part]:
        """The parts held back, at the end of the answer; nothing may be pushed afterwards."""
        self._tape.end()
        self._resume()
        return self._taken()

    @property
    def n_calls(self) -> int:
        """How many calls have begun."""
        return self._n_calls

    def _resume(self) -> None:
        if not self._is_over:
            self._is_over = next(self._reader, True) is True

    def _taken(self) -> list[Part]:
        self._flush()
        parts, self._parts = self._parts, []
        return parts

    # -- the reader: reasoning, then content and calls

    def _read(self) -> Reader[None]:
        if self._style.reasoning is not None:
            yield from self._read_reasoning(*self._style.reasoning)
        if self._finds_calls and self._style.calls is not None:
            yield from FORMS[self._style.calls](self._tape, self, self._tools.__contains__)
        else:
            yield from read_plain(self._tape, self)
        if not self._drops_spaces:
            self._add("content", "".join(self._spaces))

    def _read_reasoning(self, begin: str, end: str) -> Reader[None]:
        """Reasoning stands at the beginning or nowhere. Some models write the mark that the prompt ends with again."""
        tape = self._tape
        tape.record()
        yield from tape.spaces()
        has_mark = yield from tape.literal(begin)
        before = tape.recorded()
        if not has_mark and not self._begins_in_reasoning:
            self.content(before)
            return
        self._drops_spaces = True
        yield from tape.until(end, lambda text: self._gather("reasoning", text))
        self._spaces.clear()
        self._drops_spaces = True

    # -- what forms tell (AnswerSink)

    def content(self, text: str) -> None:
        if self._finds_calls:
            self._gather("content", text)
            return
        text = text.lstrip(_SPACES) if self._drops_spaces else text
        self._drops_spaces = self._drops_spaces and not text
        self._add("content", text)

    def begin_call(self, name: str) -> None:
        self._flush()
        self._spaces.clear()
        self._is_dropped = self._max_calls is not None and self._n_calls >= self._max_calls
        if self._is_dropped:
            return
        self._n_calls += 1
        self._kind = "tool_call"
        self._parts.append(Part("tool_call", "", self._n_calls - 1, self._new_id(), name))

    def arguments(self, text: str) -> None:
        if not self._is_dropped:
            self._add("tool_call", text)

    def end_call(self) -> None:
        self._drops_spaces = True

    # -- gathering

    def _gather(self, kind: PartKind, text: str) -> None:
        """White space at the end waits: it belongs to the text when more of it comes."""
        if self._drops_spaces:
            text = text.lstrip(_SPACES)
        bare = text.rstrip(_SPACES)
        if bare:
            self._drops_spaces = False
            self._add(kind, "".join(self._spaces) + bare)
            self._spaces.clear()
        if len(bare) < len(text):
            self._spaces.append(text[len(bare) :])

    def _add(self, kind: PartKind, text: str) -> None:
        if not text:
            return
        if kind != self._kind:
            self._flush()
            self._kind = kind
        self._pieces.append(text)

    def _flush(self) -> None:
        if self._pieces:
            assert self._kind is not None
            index = self._n_calls - 1 if self._kind == "tool_call" else 0
            self._parts.append(Part(self._kind, "".join(self._pieces), index))
            self._pieces.clear()


def _openai_id() -> str:
    return "call_" + _random(24)


def _mistral_id() -> str:
    """Mistral's templates take ids of nine letters and digits, and no others."""
    return _random(9)


def _random(n_characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(n_characters))
