"""This project's own routes: their requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from llm_decoder.sampling import MAX_LOGPROBS, MAX_N
from llm_decoder.search.params import MAX_QUERY_CHARS, MAX_SEPARATOR_CHARS, MAX_STEP_TOKENS
from llm_decoder.serving.schemas_base import WHOLE, Name, PromptField, Reply, SamplingFields, Width
from llm_decoder.serving.schemas_messages import Messages

__all__ = [
    "BatchReply",
    "BatchRequest",
    "BeamStreamRequest",
    "ChatVerbRequest",
    "GenerateReply",
    "GenerateRequest",
    "StreamRequest",
]


class _Own(SamplingFields):
    text_fields: ClassVar[frozenset[str]] = frozenset(
        {
            *("prompt", "model", "cache_salt", "request_id", "user", "guided_regex", "guided_grammar", "grammar"),
            *("query", "separator"),
        }
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None

    # A search by the names of SearchParams.
    width: Width | None = Field(default=None, description="beam_width")
    method: Literal["beam", "sample", "steps"] | None = None
    groups: Width | None = Field(default=None, description="num_beam_groups")
    scorer: Literal["logprob", "reranker", "likelihood"] | None = None
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    normalise: Literal["none", "sigmoid", "zscore"] | None = None
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)] | None = None
    separator: Annotated[str, Field(min_length=1, max_length=MAX_SEPARATOR_CHARS)] | None = None
    step_tokens: Annotated[int, Field(ge=1, le=MAX_STEP_TOKENS), WHOLE] | None = None
    branches: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] | None = None


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


class BeamStreamRequest(GenerateRequest):
    """A search as it goes, whether beams are asked for or not."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "Once upon a time", "width": 4, "n": 2, "max_tokens": 20}]}
    )
    is_search: ClassVar[bool] = True


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
