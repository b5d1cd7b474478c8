"""A request's fields as SamplingParams; where it asks for a search, in the words of any engine, as SearchParams."""

from __future__ import annotations

from typing import Any

from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.plan import one_of, sampling_values
from llm_decoder.serving.reranker import need_reranker
from llm_decoder.serving.schemas_base import SamplingFields
from llm_decoder.serving.service import Service

__all__ = ["request_params"]

# Fields of SearchParams by the names that a request may have for them: this library's on its own routes, Hugging
# Face's and others' on all.
_NAMES: dict[str, tuple[str, ...]] = {
    "method": ("method",),
    "groups": ("groups", "num_beam_groups"),
    "diversity_penalty": ("diversity_penalty",),
    "length_penalty": ("length_penalty",),
    "early_stopping": ("early_stopping",),
    "scorer": ("scorer", "rerank"),
    "alpha": ("alpha", "rerank.alpha"),
    "normalise": ("normalise", "rerank.normalise"),
    "query": ("query", "rerank.query"),
    "separator": ("separator",),
    "step_tokens": ("step_tokens",),
    "branches": ("branches",),
}
# Values that ask for nothing.
_NOTHING: dict[str, Any] = {"groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0, "early_stopping": False}

# A field of SearchParams -> (the request's name for it, its value)
Given = dict[str, tuple[str, Any]]


def request_params(
    service: Service,
    request: SamplingFields,
    request_id: str,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    is_stream: bool,
    **more: Any,
) -> SamplingParams:
    """SearchParams for a search, else SamplingParams. is_stream: whether the answer is sent as it comes. more: further
    fields of these.

    Raises InvalidRequestError or HttpError, each by the name that the request has for the field at fault.
    """
    values = sampling_values(request, request_id) | {"max_tokens": max_tokens, "logprobs": logprobs} | more
    given = _given(request)
    n = _one_of(request, "n", "num_return_sequences", "rerank.top_n")
    width = _width(request, 1 if n is None else n[1])
    n_samples = _n_samples(request, n, width, given, is_stream)
    if n_samples is not None:
        width = ("best_of", n_samples)
        given["method"] = ("best_of", "sample")
    is_search = request.is_search or bool(request.use_beam_search) or (width is not None and width[1] > 1)
    if not is_search and "method" not in given:
        _refuse_what_needs_a_search(request, given)
        return SamplingParams(**values if n is None else values | {"n": n[1]})
    given |= {name: field for name, field in (("n", n), ("width", width)) if field is not None}
    _check_search(service, request, given)
    return _search_params(values, given)


def _given(request: SamplingFields) -> Given:
    found = {field: _one_of(request, *names) for field, names in _NAMES.items()}
    return {field: given for field, given in found.items() if given is not None}


def _one_of(request: SamplingFields, *names: str) -> tuple[str, Any] | None:
    return one_of(**{name: _value(request, name) for name in names})


def _value(request: SamplingFields, name: str) -> Any:
    if name == "rerank":
        return None if request.rerank is None else "reranker"
    whole, _, part = name.partition(".")
    value = getattr(request, whole, None)
    return getattr(value, part, None) if part else value


def _width(request: SamplingFields, n: int) -> tuple[str, int] | None:
    """vLLM has no number of beams but n."""
    width = _one_of(request, "width", "beam_width", "num_beams")
    if request.use_beam_search is False and (request.is_search or (width is not None and width[1] > 1)):
        raise HttpError(400, "[use_beam_search] false, and a search is asked for", param="use_beam_search")
    return ("n", n) if width is None and request.use_beam_search else width


def _n_samples(
    request: SamplingFields, n: tuple[str, int] | None, width: tuple[str, int] | None, given: Given, is_stream: bool
) -> int | None:
    """OpenAI's best_of, which is best of n: how many answers are sampled. None where none are beside those that come
    back. Raises HttpError."""
    best_of = request.best_of
    if best_of is not None and n is not None and n[1] > best_of:
        raise HttpError(400, f"[{n[0]}] need at most best_of = {best_of} answers, got {n[1]}", param=n[0])
    if best_of is None or best_of == 1:
        return None
    if is_stream:
        raise HttpError(400, "[best_of] which answers are the best is known when all are whole; leave out best_of or "
                        "stream", param="best_of")  # fmt: skip
    others = ["use_beam_search"] if request.use_beam_search else []
    others += [width[0]] if width is not None and width[1] > 1 else []
    others += [given["method"][0]] if "method" in given else []
    if others:
        raise HttpError(400, f"[best_of] it samples answers, and {others[0]} asks for another search; give one of them",
                        param="best_of")  # fmt: skip
    return best_of


def _refuse_what_needs_a_search(request: SamplingFields, given: Given) -> None:
    names = [name for field, (name, value) in given.items() if value != _NOTHING.get(field)]
    if request.return_tree not in (None, "none"):
        names.append("return_tree")
    if names:
        raise HttpError(400, f"[{names[0]}] need a search that it is said of; give beam_width beside it",
                        param=names[0])  # fmt: skip


def _check_search(service: Service, request: SamplingFields, given: Given) -> None:
    name, width = given.get("width", ("width", SearchParams.width))
    most = service.settings.max_beam_width
    if given.get("method", ("", "beam"))[1] == "beam":  # its beams are computed together
        most = min(most, service.llm.max_num_seqs)
    if width > most:
        raise HttpError(400, f"[{name}] need at most {most} beams, got {width}", param=name)
    _refuse_what_changes_nothing(given)
    if given.get("scorer", ("", None))[1] == "reranker":
        _check_reranker(service, given["scorer"][0], request.rerank.model if request.rerank is not None else None)
    if given.get("query") == ("rerank.query", "last_user"):
        if getattr(request, "messages", None) is None:
            raise HttpError(400, "[rerank.query] need a text where there are no messages, got last_user",
                            param="rerank.query")  # fmt: skip
        del given["query"]  # what a scorer gets by itself


def _refuse_what_changes_nothing(given: Given) -> None:
    """Raises HttpError 400 for a field that is about something this search does not have."""
    values = {field: value for field, (_, value) in given.items() if value != _NOTHING.get(field)}
    method = values.get("method", "beam")
    idle: dict[str, str] = {}
    if method != "steps":
        idle |= dict.fromkeys(("separator", "step_tokens", "branches"), 'method "steps"')
    if method != "beam":
        idle |= dict.fromkeys(("groups", "diversity_penalty", "early_stopping"), 'method "beam"')
    if "groups" not in values:
        idle["diversity_penalty"] = "num_beam_groups above 1"
    if values.get("scorer", "logprob") == "logprob":
        idle |= dict.fromkeys(("alpha", "normalise", "query"), "a scorer")
    for field, need in idle.items():
        if field in values:
            name = given[field][0]
            raise HttpError(400, f"[{name}] need {need} beside it, got none; leave {name} out", param=name)


def _check_reranker(service: Service, param: str, name: str | None) -> None:
    """Raises HttpError when there is none, or none of that name."""
    need_reranker(service.llm, param)
    loaded = service.llm.reranker_name
    if name is not None and name != loaded:
        raise HttpError(
            404,
            f"[rerank.model] this server has {loaded!r}, not {name[:200]!r}; leave it out",
            param="rerank.model",
            code="model_not_found",
        )


def _search_params(values: dict[str, Any], given: Given) -> SearchParams:
    try:
        return SearchParams(**values | {field: value for field, (_, value) in given.items()})
    except InvalidRequestError as error:
        name = given[error.param][0] if error.param in given else error.param
        if name == error.param:
            raise
        text = str(error).replace(f"[SamplingParams] {error.param} ", f"[{name}] ", 1)
        raise InvalidRequestError(text, param=name, code=error.code) from None
