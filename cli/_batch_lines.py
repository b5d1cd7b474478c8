"""The lines of a batch: what a request line may say, and the record that answers it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_decoder.cli._journal import fingerprint

if TYPE_CHECKING:
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput
    from llm_decoder.sampling import SamplingParams

_FORMS = ("prompt", "messages", "token_ids")
# Of a request, beside its sampling; the others than the first are a chat's.
_OPTIONS = ("priority", "tools", "tool_choice", "parallel_tool_calls", "continue_final_message", "chat_template_kwargs")


@dataclass(frozen=True)
class Line:
    """A line of the input. index: its place, from 0, empty lines counted."""

    index: int
    text: str


def read_lines(source: Iterable[bytes]) -> Iterator[Line]:
    """The lines that are not empty. Bytes that are no UTF-8 stay recognisable, so that only their own line fails."""
    for index, raw in enumerate(source):
        text = raw.decode("utf-8", "surrogateescape").strip()
        if index == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield Line(index, text)


def answer(llm: LLM, line: Line, params: SamplingParams, chat_params: SamplingParams) -> tuple[dict[str, Any], int]:
    """The record that answers a line, and how many tokens were generated for it. An error of ours becomes its record.

    The line's own fields go over `params`, or over `chat_params` where it has messages. A line without a seed of its
    own gets one from its index, so that a batch that was interrupted draws what it would have drawn.
    """
    from llm_decoder.errors import EngineClosedError, LLMDecoderError

    head: dict[str, Any] = {"index": line.index, "input": fingerprint(line.text)}
    try:
        request = _parse(line.text)
        head |= {"id": request["id"]} if "id" in request else {}
        defaults = chat_params if "messages" in request else params
        output = _ask(llm, request, _params(request, defaults, line.index))
    except EngineClosedError:
        raise
    except (LLMDecoderError, UnicodeError) as error:
        return head | {"error": _describe(error)}, 0
    return head | _body(output), output.metrics.n_generated_tokens


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of a line. Raises InvalidRequestError."""
    from llm_decoder.errors import InvalidRequestError

    try:
        text.encode()  # finds what read_lines could not decode
        value = json.loads(text)
    except UnicodeEncodeError:
        raise InvalidRequestError("[batch] need lines of UTF-8, got bytes that are none") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"[batch] need a JSON object on each line, got something else: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"[batch] need a JSON object on each line, got a JSON {type(value).__name__}")
    return value


def _parse(text: str) -> dict[str, Any]:
    from llm_decoder.errors import InvalidRequestError

    request = parse_object(text)
    given = [form for form in _FORMS if form in request]
    if len(given) != 1:
        raise InvalidRequestError(f"[batch] need exactly one of {', '.join(_FORMS)}, got {', '.join(given) or 'none'}")
    return request


def _params(request: Mapping[str, Any], defaults: SamplingParams, index: int) -> SamplingParams:
    from llm_decoder.sampling import SamplingParams, derive_seed

    own = {name: value for name, value in request.items() if name not in (*_FORMS, *_OPTIONS, "id")}
    SamplingParams.from_dict({"max_tokens": None} | own)  # names what is wrong in the line itself
    own = {name: value for name, value in own.items() if value is not None or name == "max_tokens"}
    params = replace(defaults, **own)
    return params if "seed" in own else replace(params, seed=derive_seed(params.seed or 0, index))


def _ask(llm: LLM, request: Mapping[str, Any], params: SamplingParams) -> RequestOutput:
    from llm_decoder.errors import InvalidRequestError

    options = _options(request)
    if "messages" in request:
        return llm.chat(request["messages"], params, **options)
    if "prompt" in request:
        if not isinstance(request["prompt"], str):
            raise InvalidRequestError("[batch] prompt must be a string; token ids go into token_ids", param="prompt")
        return llm.generate(request["prompt"], params, **options)[0]
    if not isinstance(request["token_ids"], list):
        raise InvalidRequestError("[batch] token_ids must be a list of integers", param="token_ids")
    return llm.generate([request["token_ids"]], params, **options)[0]


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says beside its sampling, as LLM.chat and LLM.generate take it. Raises InvalidRequestError."""
    from llm_decoder.chat_template import ALLOWED_KWARGS
    from llm_decoder.errors import InvalidRequestError

    given = {name: request[name] for name in _OPTIONS if request.get(name) is not None}
    if "messages" not in request and given.keys() - {"priority"}:
        name = next(name for name in given if name != "priority")
        raise InvalidRequestError(f"[{name}] this is for messages; leave it out", param=name)
    more = given.pop("chat_template_kwargs", {})
    unknown = sorted(more.keys() - ALLOWED_KWARGS) if isinstance(more, dict) else [f"{more!r:.40}"]
    if unknown:
        need = f"need an object of {', '.join(sorted(ALLOWED_KWARGS))}"
        raise InvalidRequestError(f"[chat_template_kwargs] {need}, got {unknown[0][:40]}", param="chat_template_kwargs")
    return more | given


def _body(output: RequestOutput) -> dict[str, Any]:
    first = output.outputs[0]
    body: dict[str, Any] = {"text": first.text, "token_ids": first.token_ids, "finish_reason": first.finish_reason}
    if first.message is not None and (first.message.tool_calls or first.message.reasoning_content):
        body["message"] = first.message.as_dict()
    if len(output.outputs) > 1 or first.logprobs is not None:
        body["outputs"] = output.outputs
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = output.prompt_logprobs
    if output.dropped_messages:
        body["dropped_messages"] = output.dropped_messages
    counts = output.metrics
    body["usage"] = {"prompt_tokens": counts.n_prompt_tokens, "completion_tokens": counts.n_generated_tokens}
    return body


def _describe(error: Exception) -> dict[str, Any]:
    found = {"message": str(error), "type": type(error).__name__}
    return found | {name: getattr(error, name) for name in ("param", "code") if getattr(error, name, None)}
