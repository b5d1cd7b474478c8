"""/tokenize and /detokenize: vLLM's and llama.cpp's forms."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llm_decoder.serving.schemas_base import Name, Reply, Schema, TokenId
from llm_decoder.serving.schemas_messages import Messages

__all__ = ["DetokenizeReply", "DetokenizeRequest", "TokenizeReply", "TokenizeRequest", "TokenizerInfo"]


class TokenizeRequest(Schema):
    """One of prompt, messages (vLLM) and content (llama.cpp)."""

    model: str | None = Field(default=None, max_length=1024)
    prompt: str | None = None
    messages: Messages | None = None
    content: str | None = None
    add_special_tokens: bool | None = Field(default=None, description="with prompt; true when absent")
    add_special: bool | None = Field(default=None, description="with content; false when absent")
    parse_special: bool | None = Field(default=None, description="special tokens in the text are read as such")
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[Name, Any], Field(max_length=32)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128, fail_fast=True)] | None = None


class TokenizeReply(Reply):
    count: int
    max_model_len: int
    tokens: list[Any]


class DetokenizeRequest(Schema):
    model: str | None = Field(default=None, max_length=1024)
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]


class DetokenizeReply(Reply):
    prompt: str
    content: str


class TokenizerInfo(Reply):
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    vocab_size: int
    model_max_length: int
