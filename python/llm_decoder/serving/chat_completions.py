"""/v1/chat/completions: a chat answered as OpenAI does, with reasoning and calls of tools apart from the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from llm_decoder.outputs import Completion, RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt
from llm_decoder.serving.answer_head import AnswerHead
from llm_decoder.serving.calls import Call
from llm_decoder.serving.chat_prompt import chat_messages, template_options
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.logprobs import TokenTexts, chat_logprobs, prompt_logprobs
from llm_decoder.serving.message_reader import MessageReader
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_amount, check_model, check_stream_options, max_tokens_of
from llm_decoder.serving.request_params import request_params
from llm_decoder.serving.schemas_chat import ChatReply, ChatRequest
from llm_decoder.serving.search_answer import SearchAnswer, scores_of
from llm_decoder.serving.service import Service
from llm_decoder.serving.sse import Chunk
from llm_decoder.serving.usage import timings_of, usage_of, usage_so_far

if TYPE_CHECKING:
    from llm_decoder.chat_answers import ChatAnswers
    from llm_decoder.llm import LLM

__all__ = ["ENDPOINTS"]


def chat(service: Service, incoming: Incoming) -> Call:
    """Plans the call. Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, ChatRequest)
    check_model(service, request.model)
    max_tokens = max_tokens_of(request, None, max_completion_tokens=request.max_completion_tokens)
    check_stream_options(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise HttpError(400, "[top_logprobs] need logprobs: true beside it", param="top_logprobs")
    if request.stream and request.prompt_logprobs is not None:
        raise HttpError(
            400, "[prompt_logprobs] they are not streamed; leave out prompt_logprobs or stream", param="prompt_logprobs"
        )
    messages = chat_messages(service, request.messages)
    options = template_options(request, _template_fields(request))
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    params = request_params(
        service,
        request,
        incoming.request_id,
        max_tokens=max_tokens,
        logprobs=logprobs,
        is_stream=bool(request.stream),
    )
    check_amount(service, 1, params)
    answers = service.llm.chat_answers(messages, **options)
    texts = TokenTexts(service.llm, bool(request.return_tokens_as_token_ids))
    search = SearchAnswer.of(request, params, answers.text_decoder() or texts.tokenizer)
    answer = _Answer(
        head=AnswerHead.make("chatcmpl-", "chat.completion", service, request.request_id),
        request=request,
        llm=service.llm,
        answers=answers,
        texts=texts,
        n=params.n,
        search=search,
    )
    return Call(
        prompts=[cast(Prompt, messages)],
        params=[params],
        whole=None if request.stream else answer,
        streamed=answer if request.stream else None,
        priority=request.priority or 0,
        slow_reply=search is not None and search.is_slow,
        # An API's client keeps its own history: what does not fit is told, not dropped.
        template_options=options | {"drop_turns": False},
        headers=headers,
    )


def _template_fields(request: ChatRequest) -> dict[str, Any]:
    """What a request says in fields of its own, and LLM.submit takes as options of the chat."""
    fields: dict[str, Any] = {}
    if request.tools is not None:
        fields["tools"] = [tool.model_dump(exclude_unset=True) for tool in request.tools]
    if request.tool_choice is not None:
        choice = request.tool_choice
        fields["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump()
    if request.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = request.parallel_tool_calls
    if request.documents:
        fields["documents"] = request.documents
    if request.reasoning_effort is not None:
        fields["reasoning_effort"] = request.reasoning_effort
        if request.reasoning_effort == "none":
            fields["enable_thinking"] = False
    return fields


class _Answer:
    """calls.WholeAnswer and StreamedAnswer. n: answers."""

    def __init__(
        self,
        head: AnswerHead,
        request: ChatRequest,
        llm: LLM,
        answers: ChatAnswers,
        texts: TokenTexts,
        n: int,
        search: SearchAnswer | None,
    ) -> None:
        self._head = head
        self._request = request
        self._llm = llm
        self._answers = answers
        self._texts = texts
        self._n = n
        self._search = search
        options = request.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats and self._usage_at_end)
        self._readers: dict[int, MessageReader] = {}
        self._n_prompt = 0
        self._n_generated = 0

    # -- whole

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        (output,) = outputs
        completions = sorted(output.outputs, key=lambda completion: completion.index)
        body = self._head.body([self._choice(completion) for completion in completions])
        if self._request.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(self._texts, output.prompt_logprobs)
        if self._request.return_token_ids:
            body["prompt_token_ids"] = output.prompt_token_ids
        return body | {"usage": self._usage(outputs)} | self._tree(outputs) | self._timings(outputs)

    def _choice(self, completion: Completion) -> dict[str, Any]:
        reader = self._reader(completion.index)
        reader.push(completion.text)
        reader.finish()
        choice: dict[str, Any] = {
            "index": completion.index,
            "message": reader.message(),
            "logprobs": None,
            "finish_reason": reader.finish_reason(completion.finish_reason),
            "stop_reason": completion.stop_reason,
        }
        if self._search is not None:
            choice |= scores_of(completion)
        if self._request.logprobs:
            choice["logprobs"] = chat_logprobs(self._texts, completion.logprobs or [], self._request.top_logprobs or 0)
        if self._request.return_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice

    def _reader(self, index: int) -> MessageReader:
        if index not in self._readers:
            keeps_reasoning = self._request.include_reasoning is not False
            self._readers[index] = MessageReader(self._answers.parser(), keeps_reasoning)
        return self._readers[index]

    def _usage(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        n_reasoning = sum(reader.n_reasoning_tokens(self._llm) for reader in self._readers.values())
        return usage_of(outputs, n_reasoning, is_search=self._search is not None)

    def _tree(self, outputs: Sequence[RequestOutput], *, is_streamed: bool = False) -> dict[str, Any]:
        return {} if self._search is None else self._search.tree(outputs[0], is_streamed=is_streamed)

    def _timings(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        return {"timings": timings_of(outputs)} if self._request.timings_per_token else {}

    # -- streamed

    def begin(self) -> list[Chunk]:
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._n)]

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        if self._search is None:
            return self._deltas(event)
        chunks = self._search.named_events(prompt_index, event)
        for told in self._search.told(prompt_index, event):
            chunks += self._deltas(*told)
        return chunks

    def _deltas(self, event: StreamEvent, scores: Mapping[str, Any] | None = None) -> list[Chunk]:
        request = self._request
        reader = self._reader(event.index)
        deltas = reader.push(event.text)
        is_over = event.finish_reason is not None
        if is_over:
            deltas += reader.finish()
        self._n_prompt = len(event.prompt_token_ids)
        self._n_generated += len(event.token_ids)
        more: dict[str, Any] = {**(scores or {})}
        if request.logprobs and event.logprobs:
            more["logprobs"] = chat_logprobs(self._texts, event.logprobs, request.top_logprobs or 0)
        if request.return_token_ids:
            more["token_ids"] = event.token_ids
        if is_over:
            more["finish_reason"] = reader.finish_reason(event.finish_reason)
            more["stop_reason"] = event.stop_reason
        if not deltas and (more or self._usage_always):
            deltas = [{}]
        # What belongs to the tokens goes with the last of the pieces that they became.
        last = len(deltas) - 1
        return [self._chunk(event.index, delta, more if i == last else {}) for i, delta in enumerate(deltas)]

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        more = {"usage": self._usage(outputs)} if self._usage_at_end else {}
        more |= self._tree(outputs, is_streamed=True) | self._timings(outputs)
        return [Chunk(self._head.body([], "chat.completion.chunk") | more)] if more else []

    def _chunk(self, index: int, delta: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Chunk:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **(more or {})}
        body = self._head.body([choice], "chat.completion.chunk")
        if self._usage_always:
            body["usage"] = usage_so_far(self._n_prompt, self._n_generated)
        elif self._usage_at_end:
            body["usage"] = None
        return Chunk(body)


ENDPOINTS = (Endpoint("POST", "/v1/chat/completions", chat, "Answers a chat", request=ChatRequest, response=ChatReply),)
