"""A call of a tool as the object that chat models write: {"name": ..., "arguments": {...}}."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from llm_decoder.answers.json_text import pass_value, read_string, read_value, whole_value
from llm_decoder.answers.tape import Reader, Tape

__all__ = ["MAX_NAME_CHARS", "CallObject", "CallSink", "Outcome", "is_name", "read_arguments"]

MAX_NAME_CHARS = 256

# no call: nothing of it has left. broken: the call has begun to leave, and its arguments are no JSON; the tape stands
# before what made them none.
Outcome: TypeAlias = Literal["call", "no call", "broken"]


class CallSink(Protocol):
    """Who gets a call as it comes: its name, then its arguments' JSON in pieces."""

    def begin_call(self, name: str) -> None: ...

    def arguments(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class CallObject:
    """accepts: the names that a call may have. only_calls: an object with a key that calls do not have, or without
    arguments, is none: where no mark says that a call comes, any JSON could be meant."""

    accepts: Callable[[str], bool]
    only_calls: bool = False

    def read(self, tape: Tape, sink: CallSink) -> Reader[Outcome]:
        if not (yield from tape.literal("{")):
            return "no call"
        name: str | None = None
        early: str | None = None  # arguments that came before the name
        has_begun = False
        is_first = True
        while True:
            yield from tape.spaces()
            character = yield from tape.peek()
            if character == "}":
                break
            if not is_first:
                if character != ",":
                    break
                tape.take()
                yield from tape.spaces()
            is_first = False
            key = yield from read_string(tape, MAX_NAME_CHARS)
            yield from tape.spaces()
            if key is None or not (yield from tape.literal(":")):
                break
            yield from tape.spaces()
            if key == "name" and name is None:
                name = yield from read_string(tape, MAX_NAME_CHARS)
                if name is None or not is_name(name) or not self.accepts(name):
                    return "no call"
                if early is not None:
                    has_begun = True
                    sink.begin_call(name)
                    sink.arguments(early)
            elif key in ("arguments", "parameters") and not has_begun and early is None:
                if name is None:
                    early = yield from read_arguments(tape)
                    if early is None:
                        return "no call"
                    continue
                outcome = yield from pass_arguments(tape, name, sink)
                if outcome != "call":
                    return outcome
                has_begun = True
            elif (self.only_calls and key not in ("type", "id")) or (yield from read_value(tape)) is None:
                break
        if character == "}" and name is not None and not has_begun and not self.only_calls:
            has_begun = True
            sink.begin_call(name)
            sink.arguments("{}")
        if not has_begun:
            return "no call"
        if character == "}":
            tape.take()
        return "call"


def pass_arguments(tape: Tape, name: str, sink: CallSink) -> Reader[Outcome]:
    """Takes the arguments of the call `name`. An object leaves as it comes; what else may stand for one, when it is
    there."""
    if (yield from tape.peek()) == "{":
        sink.begin_call(name)
        return "call" if (yield from pass_value(tape, sink.arguments)) else "broken"
    text = yield from read_arguments(tape)
    if text is None:
        return "no call"
    sink.begin_call(name)
    sink.arguments(text)
    return "call"


def read_arguments(tape: Tape) -> Reader[str | None]:
    """Takes arguments and returns their JSON: an object, a string with one inside, or null for none at all. None when
    it is something else."""
    text = yield from read_value(tape)
    if text is None:
        return None
    if text == "null":
        return "{}"
    if text.startswith('"'):
        text = whole_value(str(json.loads(text)).strip()) or ""
    return text if text.startswith("{") else None


def is_name(text: str) -> bool:
    """Whether a tool may be called so: printable, and no longer than MAX_NAME_CHARS."""
    return 0 < len(text) <= MAX_NAME_CHARS and text.isprintable()
