"""/v1/embeddings: its request and its answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from llm_decoder.serving.schemas_base import Name, Priority, PromptField, Reply, Schema

__all__ = ["EmbeddingReply", "EmbeddingRequest"]


class EmbeddingRequest(Schema):
    input: PromptField
    model: str | None = Field(default=None, max_length=1024)
    encoding_format: Literal["float", "base64"] | None = None
    cache_salt: Name | None = None
    priority: Priority | None = None
    add_special_tokens: bool | None = None

    # Not in this version.
    dimensions: None = None
    truncate_prompt_tokens: None = None

    # Changes nothing.
    user: str | None = Field(default=None, description="no-op")


class EmbeddingReply(Reply):
    object: Literal["list"]
    data: list[dict[str, Any]]
    model: str
    usage: dict[str, Any]
