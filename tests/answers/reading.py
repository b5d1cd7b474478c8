"""Answers read as their users get them: parts joined where they belong together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from llm_decoder.answers import AnswerParser, ChatStyle, Part

CHATML = ChatStyle("chatml", ("<think>", "</think>"))
LLAMA3 = ChatStyle("llama3")
MISTRAL = ChatStyle("mistral", ("[THINK]", "[/THINK]"))
STYLES = (CHATML, LLAMA3, MISTRAL)
TOOLS = ("weather", "clock")


def content(text: str) -> Part:
    return Part("content", text)


def reasoning(text: str) -> Part:
    return Part("reasoning", text)


def call(index: int, name: str, arguments: str) -> Part:
    return Part("tool_call", arguments, index, f"id{index}", name)


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours that are one: a call's first part and its arguments, texts of a kind."""
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if last and not part.tool_id and (last.kind, last.tool_index) == (part.kind, part.tool_index):
            whole[-1] = Part(last.kind, last.text + part.text, last.tool_index, last.tool_id, last.tool_name)
        else:
            whole.append(part)
    return whole


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    return [text[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(text)])]


def read(style: ChatStyle, pieces: str | Sequence[str], tools: Sequence[str] = TOOLS, **options: Any) -> list[Part]:
    ids = (f"id{index}" for index in itertools.count())
    parser = AnswerParser(style, tools=tools, new_id=lambda: next(ids), **options)
    parts = [part for piece in ([pieces] if isinstance(pieces, str) else pieces) for part in parser.push(piece)]
    return joined(parts + parser.finish())
