"""An answer in a chat as a message: what a client shows, and what goes back into the chat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llm_decoder.answers.parser import Part

__all__ = ["AnswerMessage", "ToolCall", "message_of"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: JSON text, as the model wrote it: where it erred, or was cut off, it is none."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class AnswerMessage:
    """content, reasoning_content: None when there is none."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As it goes back into `messages`: OpenAI's form, with the reasoning, which templates show as long as the model
        is to see it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message


def message_of(parts: Iterable[Part]) -> AnswerMessage:
    """All parts of an answer as one message."""
    texts: dict[str, list[str]] = {"content": [], "reasoning": []}
    heads: list[Part] = []
    arguments: list[list[str]] = []
    for part in parts:
        if part.kind != "tool_call":
            texts[part.kind].append(part.text)
            continue
        if part.tool_id:
            heads.append(part)
            arguments.append([])
        arguments[part.tool_index].append(part.text)
    return AnswerMessage(
        "".join(texts["content"]) or None,
        "".join(texts["reasoning"]) or None,
        tuple(
            ToolCall(head.tool_id, head.tool_name, "".join(pieces))
            for head, pieces in zip(heads, arguments, strict=True)
        ),
    )
