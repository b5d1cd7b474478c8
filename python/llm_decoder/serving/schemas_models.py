"""/v1/models' answers."""

from __future__ import annotations

from typing import Literal

from llm_decoder.serving.schemas_base import Reply

__all__ = ["ModelCard", "ModelList"]


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]
