"""/v1/models' answers."""

from __future__ import annotations

from typing import Literal

from llm_decoder.serving.schemas_base import Reply

__all__ = ["ModelCard", "ModelList"]


class ModelCard(Reply):
    """max_model_len: of the language model, in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    task: Literal["generate", "rerank", "embed"]
    max_model_len: int | None = None


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]
