"""/generate, /stream, /stream_chat_beam, /chat, /generate_batch: fields of SamplingParams or SearchParams in; text,
token ids and usage out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from llm_decoder.outputs import Completion, RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt, as_prompts
from llm_decoder.search.run_file import prompt_hash
from llm_decoder.serving.calls import Call
from llm_decoder.serving.chat_prompt import chat_messages, template_options
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.logprobs import TokenTexts, chat_logprobs, prompt_logprobs
from llm_decoder.serving.message_reader import MessageReader
from llm_decoder.serving.parse import parse_body, parse_query
from llm_decoder.serving.plan import check_amount, check_model, check_stream_options, max_tokens_of
from llm_decoder.serving.request_params import request_params
from llm_decoder.serving.schemas_base import SamplingFields
from llm_decoder.serving.schemas_own import (
    BatchReply,
    BatchRequest,
    BeamStreamRequest,
    ChatVerbRequest,
    GenerateReply,
    GenerateRequest,
    StreamRequest,
)
from llm_decoder.serving.search_answer import SearchAnswer, scores_of
from llm_decoder.serving.service import Service
from llm_decoder.serving.sse import Chunk
from llm_decoder.serving.usage import timings_of, usage_of

if TYPE_CHECKING:
    from llm_decoder.chat_answers import ChatAnswers
    from llm_decoder.sampling import SamplingParams

__all__ = ["ENDPOINTS"]

_DEFAULT_MAX_TOKENS = 16


def generate(service: Service, incoming: Incoming) -> Call:
    request, headers = parse_body(incoming, GenerateRequest)
    return _one(service, incoming, request, headers, bool(request.stream))


def stream(service: Service, incoming: Incoming) -> Call:
    parse = parse_query if incoming.method == "GET" else parse_body
    request, headers = parse(incoming, StreamRequest)
    _check_streams(request)
    return _one(service, incoming, request, headers, True)


def stream_chat_beam(service: Service, incoming: Incoming) -> Call:
    request, headers = parse_body(incoming, BeamStreamRequest)
    _check_streams(request)
    return _one(service, incoming, request, headers, True, _BeamAnswer)


def _check_streams(request: GenerateRequest) -> None:
    if request.stream is False:
        raise HttpError(400, "[stream] this route streams; ask /generate for an answer in one piece", param="stream")


def chat(service: Service, incoming: Incoming) -> Call:
    request, headers = parse_body(incoming, ChatVerbRequest)
    return _one(service, incoming, request, headers, bool(request.stream))


def generate_batch(service: Service, incoming: Incoming) -> Call:
    request, headers = parse_body(incoming, BatchRequest)
    if request.stream:
        raise HttpError(400, "[stream] a batch is not streamed; ask /stream for each prompt", param="stream")
    prompts = as_prompts(request.prompts)
    return _call(service, incoming, request, headers, prompts, _BatchAnswer, False, {})


def _one(
    service: Service,
    incoming: Incoming,
    request: GenerateRequest | ChatVerbRequest,
    headers: dict[str, str],
    is_stream: bool,
    answer_kind: type[_Answer] | None = None,
) -> Call:
    answer_kind = answer_kind or _Answer
    prompt = getattr(request, "prompt", None)
    if (prompt is None) == (request.messages is None):
        raise HttpError(400, "[prompt] need one of prompt and messages", param="prompt")
    if request.messages is not None:
        messages = cast(Prompt, chat_messages(service, request.messages))
        options = template_options(request)
        return _call(service, incoming, request, headers, [messages], answer_kind, is_stream, options)
    for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
        if getattr(request, name):
            raise HttpError(400, f"[{name}] this is for messages, got a prompt", param=name)
    prompts = as_prompts(cast(Any, prompt))
    if len(prompts) > 1:
        raise HttpError(400, f"[prompt] need one, got {len(prompts)}; /generate_batch takes several", param="prompt")
    return _call(service, incoming, request, headers, prompts, answer_kind, is_stream, {})


def _call(
    service: Service,
    incoming: Incoming,
    request: GenerateRequest | ChatVerbRequest | BatchRequest,
    headers: dict[str, str],
    prompts: Sequence[Prompt],
    answer_kind: type[_Answer],
    is_stream: bool,
    options: dict[str, Any],
) -> Call:
    check_model(service, request.model)
    is_chat = getattr(request, "messages", None) is not None
    max_tokens = max_tokens_of(request, None if is_chat else _DEFAULT_MAX_TOKENS)
    param = "prompts" if isinstance(request, BatchRequest) else "prompt"
    if is_stream and request.prompt_logprobs is not None:
        raise HttpError(
            400,
            "[prompt_logprobs] they are not streamed; leave out prompt_logprobs or stream",
            param="prompt_logprobs",
        )
    _check_stream_options(request, is_stream)
    params = request_params(
        service,
        request,
        incoming.request_id,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        is_stream=is_stream,
    )
    check_amount(service, len(prompts), params, param)
    texts = TokenTexts(service.llm, bool(request.return_tokens_as_token_ids))
    chat = service.llm.chat_answers(cast(Any, prompts[0]), **options) if is_chat else None
    answer = answer_kind(request, params, texts, chat)
    return Call(
        prompts=prompts,
        params=[params] * len(prompts),
        whole=None if is_stream else answer,
        streamed=answer if is_stream else None,
        template_options=options,
        priority=request.priority or 0,
        slow_reply=answer.is_slow,
        param=param,
        headers=headers,
    )


def _check_stream_options(request: SamplingFields, is_stream: bool) -> None:
    if not is_stream:
        check_stream_options(request)
    elif request.stream_options is not None and request.stream_options.continuous_usage_stats:
        raise HttpError(
            400, "[stream_options.continuous_usage_stats] usage comes here with the last event; leave it out",
            param="stream_options.continuous_usage_stats",
        )  # fmt: skip


class _Answer:
    """calls.WholeAnswer and StreamedAnswer. Of several answers the first stands at the top, all are in `outputs`. chat:
    takes an answer in a chat apart; its text is what is neither reasoning nor marks."""

    shows_steps: ClassVar[bool] = False

    def __init__(
        self, request: SamplingFields, params: SamplingParams, texts: TokenTexts, chat: ChatAnswers | None
    ) -> None:
        self._request = request
        self._texts = texts
        self._chat = chat
        self._readers: dict[int, MessageReader] = {}
        self._n = params.n
        decoder = (chat.text_decoder() if chat is not None else None) or texts.tokenizer
        self._search = SearchAnswer.of(request, params, decoder, has_steps=self.shows_steps)

    @property
    def is_slow(self) -> bool:
        return self._search is not None and self._search.is_slow

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        return self._name() | self._of(outputs[0]) | self._usage(outputs) | self._timings(outputs)

    def _usage(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        return {"usage": usage_of(outputs, is_search=self._search is not None)}

    def _name(self) -> dict[str, Any]:
        """The client's own name for the request."""
        return {"id": self._request.request_id} if self._request.request_id else {}

    def _of(self, output: RequestOutput) -> dict[str, Any]:
        answers = [self._completion(c) for c in sorted(output.outputs, key=lambda completion: completion.index)]
        body = dict(answers[0])
        if self._n > 1:
            body["outputs"] = [{"index": index} | answer for index, answer in enumerate(answers)]
        if self._request.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(self._texts, output.prompt_logprobs)
        if self._request.return_token_ids:
            body["prompt_token_ids"] = output.prompt_token_ids
        if output.dropped_messages:
            body["dropped_messages"] = output.dropped_messages
        return body | self._tree(output)

    def _tree(self, output: RequestOutput, *, is_streamed: bool = False) -> dict[str, Any]:
        return {} if self._search is None else self._search.tree(output, is_streamed=is_streamed)

    def _completion(self, completion: Completion) -> dict[str, Any]:
        body: dict[str, Any] = {
            **self._gained(completion.index, completion.text, True),
            "token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._search is not None:
            body |= scores_of(completion)
        n_top = getattr(self._request, "logprobs", None)
        if n_top is not None:
            body["cumulative_logprob"] = completion.cumulative_logprob
            body["logprobs"] = chat_logprobs(self._texts, completion.logprobs or [], n_top)["content"]
        return body

    def _gained(self, index: int, text: str, is_over: bool) -> dict[str, Any]:
        """What an answer has more by `text`."""
        if self._chat is None:
            return {"text": text}
        if index not in self._readers:
            self._readers[index] = MessageReader(self._chat.parser())
        reader = self._readers[index]
        gained: dict[str, Any] = {"text": ""}
        for delta in [*reader.push(text), *(reader.finish() if is_over else [])]:
            gained["text"] += delta.get("content", "")
            if "reasoning_content" in delta:
                gained["reasoning_content"] = gained.get("reasoning_content", "") + delta["reasoning_content"]
        return gained

    def _timings(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        return {"timings": timings_of(outputs)} if self._request.timings_per_token else {}

    def begin(self) -> list[Chunk]:
        return []

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        if self._search is None:
            return [self._chunk(event, {})]
        chunks = self._search.named_events(prompt_index, event)
        return chunks + [self._chunk(*told) for told in self._search.told(prompt_index, event)]

    def _chunk(self, event: StreamEvent, scores: dict[str, Any]) -> Chunk:
        body = self._gained(event.index, event.text, event.finish_reason is not None)
        if self._n > 1:
            body["index"] = event.index
        if self._request.return_token_ids:
            body["token_ids"] = event.token_ids
        n_top = getattr(self._request, "logprobs", None)
        if n_top is not None:
            body["logprobs"] = chat_logprobs(self._texts, event.logprobs or [], n_top)["content"]
        if event.finish_reason is None:
            return Chunk(body)
        body |= {"finish_reason": event.finish_reason, "stop_reason": event.stop_reason, **scores}
        if event.output is not None:
            body |= self._end(event.output)
        return Chunk(body)

    def _end(self, output: RequestOutput) -> dict[str, Any]:
        """What the last event of a stream has besides."""
        body = self._name() | self._usage([output]) | self._timings([output])
        body |= self._tree(output, is_streamed=True)
        if self._request.return_token_ids:
            body["prompt_token_ids"] = output.prompt_token_ids
        return body | ({"dropped_messages": output.dropped_messages} if output.dropped_messages else {})

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        return []


class _BeamAnswer(_Answer):
    """A search's steps between the texts of its best answer; all answers are in `candidates` of the last event."""

    shows_steps = True

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        assert self._search is not None, "what is asked here is a search"
        chunks = self._search.named_events(prompt_index, event)
        for one, scores in self._search.told(prompt_index, event):
            if one.index == 0:
                chunks.append(self._chunk(replace(one, output=event.output), scores))
        return chunks

    def _end(self, output: RequestOutput) -> dict[str, Any]:
        self._readers.clear()  # the best answer is told again, whole
        candidates = [{"index": completion.index, **self._completion(completion)} for completion in output.outputs]
        return super()._end(output) | {"candidates": candidates, "prompt_hash": prompt_hash(output)}


class _BatchAnswer(_Answer):
    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        answers = [self._of(output) | self._usage([output]) for output in outputs]
        return self._name() | {"outputs": answers} | self._usage(outputs) | self._timings(outputs)


ENDPOINTS = (
    Endpoint(
        "POST",
        "/generate",
        generate,
        "Goes on with a prompt, or answers a chat",
        request=GenerateRequest,
        response=GenerateReply,
    ),
    Endpoint("POST", "/stream", stream, "The same as it comes: server-sent events", request=StreamRequest),
    Endpoint(
        "POST",
        "/stream_chat_beam",
        stream_chat_beam,
        "A search as it goes: text, beams and what becomes of them, as server-sent events",
        request=BeamStreamRequest,
    ),
    Endpoint("GET", "/stream", stream, "The same, its fields in the URL"),
    Endpoint("POST", "/chat", chat, "Answers a chat", request=ChatVerbRequest, response=GenerateReply),
    Endpoint(
        "POST",
        "/generate_batch",
        generate_batch,
        "Goes on with several prompts",
        request=BatchRequest,
        response=BatchReply,
    ),
)
