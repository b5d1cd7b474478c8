"""What the schemas of all requests are made of. A field's limits stand here once; SamplingParams has the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from llm_decoder.sampling import (
    MAX_BAD_WORDS,
    MAX_INT,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    REAL_LIMITS,
)
from llm_decoder.search.params import MAX_QUERY_CHARS, MAX_WIDTH
from llm_decoder.sequence import MAX_PRIORITY

__all__ = [
    "NOT_IN_THIS_VERSION",
    "WHOLE",
    "Off",
    "One",
    "Priority",
    "PromptField",
    "Reply",
    "SamplingFields",
    "Schema",
    "StopField",
    "StreamOptions",
    "TokenId",
    "TokenIds",
    "Width",
]

MAX_LIST_TOKEN_IDS = 65536
MAX_PROMPT_ITEMS = 1 << 21
MAX_NAME = 256

# Fields that other engines honour and this version does not: their schema has only the value that asks for nothing.
NOT_IN_THIS_VERSION: Mapping[str, str] = {
    "suffix": "text after the answer is not in this version; leave it out",
    "truncate_prompt_tokens": "prompts are never cut here; shorten the prompt",
    "prompt_embeds": "prompts are texts or token ids",
    "chat_template": "a template is not taken from a request; the server is started with one (--chat-template)",
    "functions": "this is the old form of tools; give tools",
    "function_call": "this is the old form of tool_choice; give tool_choice",
    "audio": "this server writes text only",
    "modalities": 'this server writes text only; leave it out, or give ["text"]',
    "web_search_options": "this server searches nothing; leave it out",
    "dimensions": "the vectors have the model's own length; leave it out",
}


class Schema(BaseModel):
    """A request. Types are JSON's own, nothing is converted; null is as good as absent. Names that are not known stay
    in `model_extra`. text_fields: those that a URL gives as they are. Every list fails at its first bad item, so that
    a bad request costs no more than a good one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())
    text_fields: ClassVar[frozenset[str]] = frozenset()


class Reply(BaseModel):
    """An answer, for the documentation."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    if not isinstance(value, bool | None):
        raise ValueError("need false")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("need a number")
    return value


# What asks for nothing, of JSON's own kind: in Python 0 is False.
Off = Annotated[Literal[False] | None, BeforeValidator(_switch)]
One = Annotated[Literal[1] | None, BeforeValidator(_number)]

# Behind a field's limits, which are of the integer.
WHOLE = BeforeValidator(_whole)
TokenId = Annotated[int, Field(ge=0, le=MAX_INT), WHOLE]
TokenIds = Annotated[list[TokenId], Field(max_length=MAX_LIST_TOKEN_IDS, fail_fast=True)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), WHOLE]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH), WHOLE]
Choices = Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)]


def _real(name: str) -> Any:
    low, high = REAL_LIMITS[name]
    return Field(default=None, ge=low, le=high)


def _few(value: Any) -> Any:
    """What has too many entries is refused before each of them is."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"need at most {MAX_LOGIT_BIAS} entries")
    return value


def _prompt(value: Any) -> Any:
    """One form of four; what is in the lists is looked at where it becomes token ids."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("need a text, a list of texts, a list of token ids, or a list of such lists; none is empty")
    if len(value) > MAX_PROMPT_ITEMS:
        raise ValueError(f"need at most {MAX_PROMPT_ITEMS} entries")
    kind = type(value[0])
    if kind not in (str, int, list) or any(type(item) is not kind for item in value):
        raise ValueError("need texts, token ids, or lists of token ids, all of one kind")
    if kind is not int and not all(value):
        raise ValueError("need texts or lists of token ids that are not empty")
    if kind is list and any(type(token) is not int for item in value for token in item):
        raise ValueError("need lists of token ids")
    return value


_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT}}
PromptField = Annotated[
    Any,
    PlainValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {"type": "array", "minItems": 1, "items": _TEXT},
                _IDS,
                {"type": "array", "minItems": 1, "items": _IDS},
            ]
        }
    ),
]


def _stop(value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        texts = [value] if value else []
    elif isinstance(value, list) and all(isinstance(item, str) and item for item in value):
        texts = value
    else:
        raise ValueError("need a text or a list of texts that are not empty")
    if len(texts) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_CHARS for text in texts):
        raise ValueError(f"need at most {MAX_STOP_STRINGS} texts of at most {MAX_STOP_CHARS} characters")
    return tuple(texts) or None


_STOP_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
StopField = Annotated[
    Any,
    PlainValidator(_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": MAX_STOP_CHARS},
                {"type": "array", "items": _STOP_TEXT, "maxItems": MAX_STOP_STRINGS},
                {"type": "null"},
            ]
        }
    ),
]


class StreamOptions(Schema):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="no-op")


class StructuredFields(Schema):
    """vLLM's `structured_outputs`: exactly one of them."""

    json_: dict[str, Any] | str | bool | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = Field(default=None, max_length=1 << 16)
    choice: Choices | None = None
    grammar: str | None = Field(default=None, max_length=1 << 20)


class JsonSchemaFormat(Schema):
    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Schema):
    """regex, grammar, structural forms of others are asked for by `structured_outputs`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    # llama.cpp's place for it.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class RerankFields(Schema):
    """How a reranker has a say in which answers of a search are the best. query: "last_user", or a text."""

    model: str | None = Field(default=None, max_length=1024)
    top_n: Annotated[int, Field(ge=1, le=MAX_WIDTH), WHOLE] | None = Field(default=None, description="n")
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARS)] | None = None
    normalise: Literal["none", "sigmoid", "zscore"] | None = None


class SamplingFields(Schema):
    """What every request for text has: the fields of SamplingParams, the same by other engines' names, what is not in
    this version, and what changes nothing. is_search: it is one, whether beams are asked for or not."""

    is_search: ClassVar[bool] = False

    model: str | None = Field(default=None, max_length=1024)
    n: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT), WHOLE] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT), WHOLE] | None = None
    temperature: float | None = _real("temperature")
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT), WHOLE] | None = None
    top_p: float | None = _real("top_p")
    min_p: float | None = _real("min_p")
    repetition_penalty: float | None = _real("repetition_penalty")
    presence_penalty: float | None = _real("presence_penalty")
    frequency_penalty: float | None = _real("frequency_penalty")
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIAS),
            BeforeValidator(_few),
        ]
        | None
    ) = None
    allowed_token_ids: TokenIds | None = None
    bad_words: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
            Field(max_length=MAX_BAD_WORDS, fail_fast=True),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 64) - 1), WHOLE] | None = None
    stop: StopField = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), WHOLE] | None = None
    cache_salt: Name | None = None
    priority: Priority | None = None
    structured_outputs: StructuredFields | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # The n best of so many samples.
    best_of: Width | None = None

    # A search: vLLM's, SGLang's and Hugging Face's names (request_params.py).
    use_beam_search: bool | None = Field(default=None, description="a search of n beams, unless their number is given")
    beam_width: Width | None = None
    num_beams: Width | None = Field(default=None, description="beam_width")
    num_return_sequences: Annotated[int, Field(ge=1, le=MAX_N), WHOLE] | None = Field(default=None, description="n")
    num_beam_groups: Width | None = None
    diversity_penalty: Annotated[float, Field(ge=0, le=100)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    return_tree: Literal["none", "summary", "full"] | None = None
    rerank: RerankFields | None = None

    # The same by other names.
    n_predict: Annotated[int, Field(ge=-2, le=MAX_INT), WHOLE] | None = Field(default=None, description="max_tokens")
    repeat_penalty: float | None = _real("repetition_penalty")
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = Field(default=None, max_length=1 << 16)
    guided_choice: Choices | None = None
    guided_grammar: str | None = Field(default=None, max_length=1 << 20)
    json_schema: dict[str, Any] | str | None = Field(default=None, description="structured_outputs.json")
    grammar: str | None = Field(default=None, max_length=1 << 20, description="structured_outputs.grammar")
    cache_prompt: bool | None = Field(default=None, description="false: cached prefixes are not used")
    timings_per_token: bool | None = Field(default=None, description="`timings` beside `usage`")

    # Not in this version.
    truncate_prompt_tokens: None = None
    prompt_embeds: None = None

    # Changes nothing.
    user: str | None = Field(default=None, description="no-op")
    metadata: dict[str, Any] | None = Field(default=None, description="no-op")
    store: bool | None = Field(default=None, description="no-op: nothing is stored")
    service_tier: str | None = Field(default=None, description="no-op")
    safety_identifier: str | None = Field(default=None, description="no-op")
    prompt_cache_key: str | None = Field(default=None, description="no-op: prefixes are found by their tokens")
    prompt_cache_retention: str | None = Field(default=None, description="no-op")
    spaces_between_special_tokens: bool | None = Field(default=None, description="no-op")
    return_progress: bool | None = Field(default=None, description="no-op")
