"""/v1/completions: its request and its answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from llm_decoder.sampling import MAX_LOGPROBS
from llm_decoder.serving.schemas_base import WHOLE, PromptField, Reply, SamplingFields

__all__ = ["CompletionReply", "CompletionRequest"]


class CompletionRequest(SamplingFields):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Once upon a time", "max_tokens": 20},
                {"prompt": "Once upon a time", "max_tokens": 20, "beam_width": 4, "n": 2, "return_tree": "summary"},
            ]
        }
    )
    prompt: PromptField
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    add_special_tokens: bool | None = None
    suffix: Literal[""] | None = None


class CompletionReply(Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
