"""JSON as it is written, character by character: each value's text leaves as it comes, and the first character that
makes it none is noticed. RFC 8259, but for line breaks and other control characters inside of strings: models forget to
escape them, and here they leave escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from llm_decoder.answers.tape import Reader, Tape

__all__ = ["MAX_DEPTH", "pass_string", "pass_value", "read_string", "read_value", "whole_value"]

MAX_DEPTH = 128

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_CLOSERS = {"{": "}", "[": "]"}
_WORDS = {"t": "true", "f": "false", "n": "null"}
_HEX = frozenset("0123456789abcdefABCDEF")
_DIGITS = frozenset("0123456789")
# Of a number: what may come in each state, and the state behind it. States in _WHOLE may end one.
_NUMBER: dict[str, dict[str, str]] = {
    "": {"-": "-", "0": "0", "1": "int"},
    "-": {"0": "0", "1": "int"},
    "0": {".": ".", "e": "e"},
    "int": {"0": "int", "1": "int", ".": ".", "e": "e"},
    ".": {"0": "fraction", "1": "fraction"},
    "fraction": {"0": "fraction", "1": "fraction", "e": "e"},
    "e": {"-": "e-", "0": "exponent", "1": "exponent"},
    "e-": {"0": "exponent", "1": "exponent"},
    "exponent": {"0": "exponent", "1": "exponent"},
}
_WHOLE = frozenset({"0", "int", "fraction", "exponent"})

Out = Callable[[str], Any]


def pass_value(tape: Tape, out: Out) -> Reader[bool]:
    """Takes one value and hands its text to `out` as it comes; whether it is one. If not, the tape stands before what
    made it none."""
    closers: list[str] = []
    while True:
        if not (yield from _begin_value(tape, out, closers)):
            return False
        # A value is over, or an object or list has begun.
        while True:
            if not closers:
                return True
            yield from tape.spaces(out)
            has_begun = closers[-1] in "{["
            closer = _CLOSERS.get(closers[-1], closers[-1])
            character = yield from tape.peek()
            if character == closer:
                out(tape.take())
                closers.pop()
                continue
            if not has_begun:
                if character != ",":
                    return False
                out(tape.take())
                yield from tape.spaces(out)
            closers[-1] = closer
            if closer == "}" and not (yield from _read_key(tape, out)):
                return False
            break


def _begin_value(tape: Tape, out: Out, closers: list[str]) -> Reader[bool]:
    """Takes a value that is no object or list, or the first character of one, which goes on top of `closers`."""
    character = yield from tape.peek()
    if character == '"':
        return (yield from pass_string(tape, out))
    if character and character in "{[":
        if len(closers) == MAX_DEPTH:
            return False
        out(tape.take())
        closers.append(character)
        return True
    if character in _WORDS:
        return (yield from _read_word(tape, _WORDS[character], out))
    return (yield from _read_number(tape, out))


def _read_key(tape: Tape, out: Out) -> Reader[bool]:
    if not (yield from pass_string(tape, out)):
        return False
    yield from tape.spaces(out)
    if (yield from tape.peek()) != ":":
        return False
    out(tape.take())
    yield from tape.spaces(out)
    return True


def _read_word(tape: Tape, word: str, out: Out) -> Reader[bool]:
    is_there = yield from tape.literal(word)
    if is_there:
        out(word)
    return is_there


def _read_number(tape: Tape, out: Out) -> Reader[bool]:
    state = ""
    while True:
        character = yield from tape.peek()
        kind = "1" if character in _DIGITS and character != "0" else {"E": "e", "+": "-"}.get(character, character)
        if kind not in _NUMBER[state] or (character == "+" and state != "e"):
            return state in _WHOLE
        state = _NUMBER[state][kind]
        out(tape.take())


def pass_string(tape: Tape, out: Out) -> Reader[bool]:
    """Takes a string with its quotes and hands it to `out` as it comes; whether it is one."""
    if (yield from tape.peek()) != '"':
        return False
    out(tape.take())
    while True:
        yield from tape.run(_PLAIN, out)
        character = yield from tape.peek()
        if character == "":
            return False
        if character == "\\":
            if not (yield from _read_escape(tape, out)):
                return False
        elif character == '"':
            out(tape.take())
            return True
        else:
            out(json.dumps(tape.take())[1:-1])


def _read_escape(tape: Tape, out: Out) -> Reader[bool]:
    """An escape leaves whole or not at all."""
    escape = tape.take()
    character = yield from tape.peek()
    if not character or character not in '"\\/bfnrtu':
        return False
    escape += tape.take()
    for _ in range(4 if character == "u" else 0):
        if (yield from tape.peek()) not in _HEX:
            return False
        escape += tape.take()
    out(escape)
    return True


def read_string(tape: Tape, max_chars: int | None = None) -> Reader[str | None]:
    """Takes a string; what it says, or None when it is none or has more than `max_chars` (as it is written)."""
    pieces: list[str] = []
    n_chars = 0

    def count(piece: str) -> None:
        nonlocal n_chars
        n_chars += len(piece)
        pieces.append(piece)

    if not (yield from pass_string(tape, count)) or (max_chars is not None and n_chars > max_chars + 2):
        return None
    return str(json.loads("".join(pieces)))


def read_value(tape: Tape) -> Reader[str | None]:
    """Takes one value; its text, or None."""
    pieces: list[str] = []
    return "".join(pieces) if (yield from pass_value(tape, pieces.append)) else None


def whole_value(text: str) -> str | None:
    """`text` as JSON when it is one value and nothing else, with control characters inside of strings escaped."""
    tape = Tape()
    tape.push(text)
    tape.end()
    pieces: list[str] = []
    try:
        next(pass_value(tape, pieces.append))
    except StopIteration as end:
        return "".join(pieces) if end.value and tape.is_empty else None
    raise AssertionError("a reader wants more of a whole tape")
