"""What all planners share: the model's name, a request's fields as SamplingParams, the server's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_decoder.errors import ModelNotFoundError
from llm_decoder.prompts import MAX_TOKEN_CHARS, Prompt
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.schemas_base import SamplingFields
from llm_decoder.serving.service import Service

__all__ = [
    "check_amount",
    "check_length",
    "check_model",
    "max_tokens_of",
    "one_of",
    "sampling_values",
    "structured_outputs_of",
    "token_prompts",
]

# Fields that are SamplingParams' own.
_SAME = (
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "prompt_logprobs",
    "cache_salt",
)


def check_model(service: Service, name: str | None, encoder: str | None = None) -> None:
    """Raises HttpError 404 when a request names another model than the one that is served. encoder: the name of the one
    that answers in the model's place; then both are right, as a server has one of each."""
    if name and name not in (service.model_name, encoder):
        raise HttpError(
            404,
            f"[model] this server has {encoder or service.model_name!r}, not {name[:200]!r}; /v1/models lists it",
            param="model",
            code="model_not_found",
        )


def one_of(**given: Any) -> tuple[str, Any] | None:
    """The one of several names of a field that a request has given. Raises HttpError 400 when two are given that
    differ."""
    found = [(name, value) for name, value in given.items() if value is not None]
    if any(value != found[0][1] for _, value in found[1:]):
        names = " and ".join(name for name, _ in found)
        raise HttpError(400, f"[{found[1][0]}] {names} are one thing and differ; give one of them", param=found[1][0])
    return found[0] if found else None


def max_tokens_of(request: SamplingFields, default: int | None, **more_names: int | None) -> int | None:
    """None = to the end of the context; llama.cpp writes that as a negative n_predict."""
    given = one_of(max_tokens=request.max_tokens, **more_names, n_predict=request.n_predict)
    if given is None:
        return default
    return None if given[1] < 0 else int(given[1])


def sampling_values(request: SamplingFields, request_id: str) -> dict[str, Any]:
    """What is given of SamplingParams' fields. Raises HttpError for fields that contradict each other."""
    values = {name: getattr(request, name) for name in _SAME if getattr(request, name) is not None}
    penalty = one_of(repetition_penalty=request.repetition_penalty, repeat_penalty=request.repeat_penalty)
    if penalty is not None:
        values["repetition_penalty"] = penalty[1]
    if request.cache_prompt is False:
        values["cache_salt"] = f"{request.cache_salt or ''}:{request_id}"[-256:]
    structured = structured_outputs_of(request)
    if structured is not None:
        values["structured_outputs"] = structured
    return values


def structured_outputs_of(request: SamplingFields) -> Mapping[str, Any] | None:
    """What the answer must be, from all the names that there are for it. Raises HttpError 400 for more than one."""
    found: dict[str, tuple[str, Any]] = {}

    def note(place: str, kind: str, value: Any) -> None:
        if value is not None and value is not False:
            found[place] = (kind, value)

    given = request.structured_outputs
    if given is not None:
        for kind in ("json_object", "regex", "choice", "grammar"):
            note(f"structured_outputs.{kind}", kind, getattr(given, kind))
        if given.json_ is not None:
            found["structured_outputs.json"] = ("json", given.json_)
        if not found:
            raise HttpError(
                400,
                "[structured_outputs] need one of json, json_object, regex, choice, grammar, got none",
                param="structured_outputs",
            )
    for kind in ("json", "regex", "choice", "grammar"):
        note(f"guided_{kind}", kind, getattr(request, f"guided_{kind}"))
    note("json_schema", "json", request.json_schema)
    note("grammar", "grammar", request.grammar or None)
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_schema":
        schema = wanted.json_schema.schema_ if wanted.json_schema is not None else wanted.schema_
        if schema is None:
            raise HttpError(
                400, "[response_format.json_schema.schema] need a JSON schema, got none", param="response_format"
            )
        found["response_format"] = ("json", schema)
    elif wanted is not None and wanted.type == "json_object":
        found["response_format"] = ("json_object", True) if wanted.schema_ is None else ("json", wanted.schema_)
    if len(found) > 1:
        raise HttpError(400, f"[{list(found)[1]}] need one form of the answer, got {', '.join(found)}",
                        param=list(found)[1])  # fmt: skip
    return dict(found.values()) if found else None


def token_prompts(service: Service, prompts: Sequence[Prompt], add_special_tokens: bool | None) -> Sequence[Prompt]:
    """The prompts, texts as bare token ids when a request wants nothing around them. Raises InvalidRequestError."""
    if add_special_tokens is not False:
        return prompts
    llm = service.llm
    try:
        tokenizer = llm.tokenizer
    except ModelNotFoundError:
        return prompts  # the engine refuses texts
    return [
        tokenizer.encode(prompt, add_special_tokens=False)
        if isinstance(prompt, str) and len(prompt) <= MAX_TOKEN_CHARS * llm.max_model_len
        else prompt
        for prompt in prompts
    ]


def check_length(param: str, n: int, most: int) -> None:
    """Raises HttpError 400 for a list of more than `most`."""
    if n > most:
        raise HttpError(400, f"[{param}] need at most {most} in a request, got {n}; send several", param=param)


def check_stream_options(request: SamplingFields) -> None:
    """Raises HttpError 400 for options of a stream that is not asked for, as OpenAI's API does."""
    options = request.stream_options
    if (
        not request.stream
        and options is not None
        and {"include_usage", "continuous_usage_stats"} & options.model_fields_set
    ):
        raise HttpError(400, "[stream_options] need stream: true beside it", param="stream_options")


def _n_side_by_side(params: SamplingParams) -> int:
    if not isinstance(params, SearchParams):
        return params.n
    return params.width * (params.branches if params.method == "steps" else 1)


def check_amount(service: Service, n_prompts: int, params: SamplingParams, param: str = "prompt") -> None:
    """Raises HttpError 400 for more prompts, answers or tokens than a request may ask for; the beams of a search count
    as answers. param: the field that has the prompts."""
    settings = service.settings
    check_length(param, n_prompts, min(settings.max_prompts, settings.max_requests))
    if params.n > settings.max_n:
        raise HttpError(400, f"[n] need at most {settings.max_n} answers, got {params.n}", param="n")
    n = _n_side_by_side(params)
    max_tokens = params.max_tokens
    max_model_len = service.llm.max_model_len
    n_tokens = n_prompts * n * (max_model_len if max_tokens is None else min(max_tokens, max_model_len))
    if n_tokens > max(settings.max_answer_tokens, max_model_len):
        raise HttpError(
            400,
            f"[max_tokens] need at most {settings.max_answer_tokens} over all answers, got {n_prompts} prompts x {n} "
            f"answers x {n_tokens // (n_prompts * n)} tokens; ask for less at once",
            param="max_tokens",
        )
