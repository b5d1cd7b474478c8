"""The forms of calls, a reader each: it follows an answer's content from its beginning to its end. What only looks like
a call is content."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from llm_decoder.answers.calls import CallObject, CallSink, Outcome, is_name, pass_arguments
from llm_decoder.answers.style import CallForm
from llm_decoder.answers.tape import Reader, Tape

__all__ = ["FORMS", "AnswerSink", "read_plain"]

_STRAY = re.compile(r"[ \t\r\n,}]*")  # small models close a brace too many, or write a comma between calls
_BETWEEN = re.compile(r"[ \t\r\n;,]*")
_NAME = re.compile(r"[^\s{}\[\]\"<>]*")


class AnswerSink(CallSink, Protocol):
    """Who gets an answer, part by part."""

    def content(self, text: str) -> None: ...

    def end_call(self) -> None: ...


IsTool: TypeAlias = Callable[[str], bool]
Form: TypeAlias = Callable[[Tape, AnswerSink, IsTool], Reader[None]]


def read_plain(tape: Tape, sink: AnswerSink) -> Reader[None]:
    """An answer without calls."""
    yield from tape.rest(sink.content)


def read_chatml(tape: Tape, sink: AnswerSink, is_tool: IsTool) -> Reader[None]:
    """Calls between <tool_call> and </tool_call>, anywhere in the answer."""
    begin, end = "<tool_call>", "</tool_call>"
    while (yield from tape.until(begin, sink.content)):
        text = begin
        while True:
            tape.record()
            yield from tape.spaces()
            outcome = yield from _read_object(tape, sink, CallObject(is_name), end)
            text += tape.recorded()
            if outcome == "no call":
                sink.content(text)
                break
            if outcome == "broken":
                yield from tape.literal(end)
                break
            tape.record()
            yield from tape.run(_STRAY)
            is_closed = yield from tape.literal(end)
            text = tape.recorded()
            if is_closed:
                break
            if (yield from tape.peek()) != "{":
                sink.content(text)
                break


def read_llama3(tape: Tape, sink: AnswerSink, is_tool: IsTool) -> Reader[None]:
    """Calls that begin the answer, or follow <|python_tag|>; several with a semicolon between. No mark says that JSON
    is meant as a call: it is one when it has the name of a tool, and parameters."""
    mark = "<|python_tag|>"
    text = ""
    while True:
        tape.record()
        yield from tape.run(_BETWEEN)
        yield from tape.literal(mark)
        yield from tape.spaces()
        outcome = yield from _read_object(tape, sink, CallObject(is_tool, only_calls=True), mark)
        text += tape.recorded()
        if outcome == "no call":
            sink.content(text)
            if not (yield from tape.until(mark, sink.content)):
                return
        text = mark if outcome == "no call" else ""


def read_mistral(tape: Tape, sink: AnswerSink, is_tool: IsTool) -> Reader[None]:
    """[TOOL_CALLS] and a list of calls, or [TOOL_CALLS]name[ARGS]{...} for each: models of either kind are read."""
    begin = "[TOOL_CALLS]"
    while (yield from tape.until(begin, sink.content)):
        tape.record()
        yield from tape.spaces()
        is_list = (yield from tape.peek()) == "["
        outcome = yield from (_read_list if is_list else _read_named)(tape, sink, begin)
        text = tape.recorded()
        if outcome == "no call":
            sink.content(begin + text)


def _read_list(tape: Tape, sink: AnswerSink, end: str) -> Reader[Outcome]:
    """ "no call" when not even the first is one."""
    tape.take()
    result: Outcome = "no call"
    while True:
        yield from tape.spaces()
        outcome = yield from _read_object(tape, sink, CallObject(is_name), end)
        if outcome != "call":
            return outcome if result == "no call" else result
        result = "call"
        yield from tape.spaces()
        if not (yield from tape.literal(",")):
            yield from tape.literal("]")
            return result


def _read_named(tape: Tape, sink: AnswerSink, end: str) -> Reader[Outcome]:
    name: list[str] = []
    yield from tape.run(_NAME, name.append)
    if not is_name("".join(name)):
        return "no call"
    if (yield from tape.literal("[CALL_ID]")):
        yield from tape.run(_NAME)
    yield from tape.literal("[ARGS]")
    yield from tape.spaces()
    return (yield from _ended(tape, sink, pass_arguments(tape, "".join(name), sink), end))


def _read_object(tape: Tape, sink: AnswerSink, call: CallObject, end: str) -> Reader[Outcome]:
    return (yield from _ended(tape, sink, call.read(tape, sink), end))


def _ended(tape: Tape, sink: AnswerSink, call: Reader[Outcome], end: str) -> Reader[Outcome]:
    """Reads a call. Arguments that are no JSON stay what the model wrote, up to the mark `end`: whoever made the
    request can show it what is wrong."""
    outcome = yield from call
    if outcome == "broken":
        yield from tape.before(end, sink.arguments)
    if outcome != "no call":
        sink.end_call()
    return outcome


FORMS: Mapping[CallForm, Form] = {
    "chatml": read_chatml,
    "llama3": read_llama3,
    "mistral": read_mistral,
    "mistral-args": read_mistral,
}
