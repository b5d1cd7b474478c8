"""What a chat model writes, taken apart: content, reasoning, calls of tools. Text in, parts out."""

from __future__ import annotations

from llm_decoder.answers.message import AnswerMessage, ToolCall, message_of
from llm_decoder.answers.parser import AnswerParser, Part, PartKind
from llm_decoder.answers.style import PLAIN, CallForm, ChatStyle, find_style

__all__ = [
    "PLAIN",
    "AnswerMessage",
    "AnswerParser",
    "CallForm",
    "ChatStyle",
    "Part",
    "PartKind",
    "ToolCall",
    "find_style",
    "message_of",
]
