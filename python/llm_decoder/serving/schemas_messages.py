"""The messages of a chat, as every endpoint that takes them reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llm_decoder.chat import MAX_MESSAGES
from llm_decoder.serving.schemas_base import Name, Schema

__all__ = ["ChatMessage", "Messages", "as_messages"]


class ContentPart(Schema):
    """Other kinds than text are refused by name where the template is filled."""

    type: Annotated[str, Field(max_length=64)]
    text: str | None = None


class FunctionOfCall(Schema):
    name: Name
    arguments: str | dict[str, Any]


class ToolCall(Schema):
    id: Name | None = None
    type: Literal["function"] | None = None
    function: FunctionOfCall


class ChatMessage(Schema):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(default=None, description="reasoning_content")


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def as_messages(messages: list[ChatMessage], template_knows_developer: bool) -> list[dict[str, Any]]:
    """As templates take them: no field that was not given. A "developer" is the "system" of templates that do not know
    him."""
    result = []
    for message in messages:
        plain: dict[str, Any] = {"role": message.role, "content": _content(message.content)}
        if message.role == "developer" and not template_knows_developer:
            plain["role"] = "system"
        if message.name is not None:
            plain["name"] = message.name
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            plain["tool_calls"] = [_call(call) for call in message.tool_calls]
        reasoning = message.reasoning_content if message.reasoning_content is not None else message.reasoning
        if reasoning is not None:
            plain["reasoning_content"] = reasoning
        result.append(plain)
    return result


def _content(content: str | list[ContentPart] | None) -> Any:
    if isinstance(content, list):
        return [{"type": part.type, "text": part.text} for part in content]
    return content


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    plain: dict[str, Any] = {"type": "function", "function": function}
    return plain if call.id is None else {"id": call.id, **plain}
