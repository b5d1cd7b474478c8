"""/v1/chat/completions: its request and its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llm_decoder.sampling import MAX_INT, MAX_LOGPROBS
from llm_decoder.serving.schemas_base import WHOLE, Name, Off, Reply, SamplingFields, Schema
from llm_decoder.serving.schemas_messages import Messages
from llm_decoder.tools import MAX_TOOLS

__all__ = ["ChatReply", "ChatRequest"]


class FunctionDefinition(Schema):
    """Checked, with its parameters, where the chat becomes a prompt (tools.py)."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Schema):
    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Schema):
    name: Name


class ToolChoice(Schema):
    type: Literal["function"]
    function: ChosenFunction


class ChatRequest(SamplingFields):
    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=0, le=MAX_INT), WHOLE] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=32)] | None = None
    documents: Annotated[list[dict[str, Any]], Field(max_length=1024, fail_fast=True)] | None = None

    # Not in this version.
    echo: Off = None
    add_special_tokens: Off = None
    chat_template: None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=8, fail_fast=True)] | None = None
    web_search_options: None = None

    # Changes nothing.
    prediction: dict[str, Any] | None = Field(default=None, description="no-op: a hint for speed")
    verbosity: str | None = Field(default=None, description="no-op")


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
