"""This project's own routes: their requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from llm_decoder.sampling import MAX_LOGPROBS
from llm_decoder.serving.schemas_base import WHOLE, Name, PromptField, Reply, SamplingFields
from llm_decoder.serving.schemas_messages import Messages

__all__ = ["BatchReply", "BatchRequest", "ChatVerbRequest", "GenerateReply", "GenerateRequest", "StreamRequest"]


class _Own(SamplingFields):
    text_fields: ClassVar[frozenset[str]] = frozenset(
        {"prompt", "model", "cache_salt", "request_id", "user", "guided_regex", "guided_grammar", "grammar"}
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None


class _ChatOptions(_Own):
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=32)] | None = None


class GenerateRequest(_ChatOptions):
    """One of prompt and messages."""

    prompt: PromptField | None = None
    messages: Messages | None = None


class StreamRequest(GenerateRequest):
    """The same, as it comes."""


class ChatVerbRequest(_ChatOptions):
    messages: Messages


class BatchRequest(_Own):
    prompts: PromptField


class GenerateReply(Reply):
    text: str
    token_ids: list[int]
    finish_reason: str
    usage: dict[str, Any]


class BatchReply(Reply):
    outputs: list[dict[str, Any]]
    usage: dict[str, Any]
