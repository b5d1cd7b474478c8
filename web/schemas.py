"""The page's requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llm_decoder.serving.schemas_base import Name, One, SamplingFields, Schema
from llm_decoder.serving.schemas_messages import Messages

__all__ = ["AnswerRequest", "EmptyRequest", "LoginRequest", "RenderRequest"]

MAX_KEY_CHARS = 512
MAX_TEXT_CHARS = 1 << 18


class AnswerRequest(SamplingFields):
    """One answer, for eyes: no further ones, no log probabilities, no tree."""

    messages: Messages
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=32)] | None = None
    n: Literal[1] | None = None
    num_return_sequences: One = None
    return_tree: Literal["none"] | None = None
    stream: Literal[True] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    prompt_logprobs: None = None


class RenderRequest(Schema):
    text: str = Field(max_length=MAX_TEXT_CHARS)


class LoginRequest(Schema):
    key: str = Field(max_length=MAX_KEY_CHARS)


class EmptyRequest(Schema):
    """Nothing; a body is what makes a browser ask before a page of another origin sends it."""
