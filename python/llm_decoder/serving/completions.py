"""/v1/completions: prompts as texts or token ids, answered as OpenAI does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_decoder.outputs import Completion, RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt, as_prompts
from llm_decoder.serving.answer_head import AnswerHead
from llm_decoder.serving.calls import Call
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.logprobs import LogprobColumns, TokenTexts, prompt_logprobs
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_amount, check_model, check_stream_options, max_tokens_of, token_prompts
from llm_decoder.serving.request_params import request_params
from llm_decoder.serving.schemas_completions import CompletionReply, CompletionRequest
from llm_decoder.serving.search_answer import SearchAnswer, scores_of
from llm_decoder.serving.service import Service
from llm_decoder.serving.sse import Chunk
from llm_decoder.serving.usage import timings_of, usage_of, usage_so_far

__all__ = ["ENDPOINTS"]

_DEFAULT_MAX_TOKENS = 16


def complete(service: Service, incoming: Incoming) -> Call:
    """Plans the call. Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, CompletionRequest)
    check_model(service, request.model)
    llm = service.llm
    prompts = as_prompts(request.prompt)
    max_tokens = max_tokens_of(request, _DEFAULT_MAX_TOKENS)
    check_stream_options(request)
    scores_prompt = bool(request.echo) and request.logprobs is not None
    if request.stream and (scores_prompt or request.prompt_logprobs is not None):
        name = "echo" if scores_prompt else "prompt_logprobs"
        raise HttpError(
            400, f"[{name}] log probabilities of the prompt are not streamed; leave out {name} or stream", param=name
        )
    more: dict[str, Any] = {}
    if scores_prompt:
        more["prompt_logprobs"] = max(request.logprobs or 0, request.prompt_logprobs or 0)
    params = request_params(
        service,
        request,
        incoming.request_id,
        max_tokens=max_tokens,
        logprobs=request.logprobs,
        is_stream=bool(request.stream),
        **more,
    )
    check_amount(service, len(prompts), params)
    texts = TokenTexts(llm, bool(request.return_tokens_as_token_ids))
    search = SearchAnswer.of(request, params, texts.tokenizer, n_prompts=len(prompts))
    answer = _Answer(
        head=AnswerHead.make("cmpl-", "text_completion", service, request.request_id),
        request=request,
        prompts=prompts if request.echo else [],
        texts=texts,
        n=params.n,
        search=search,
    )
    return Call(
        prompts=token_prompts(service, prompts, request.add_special_tokens),
        params=[params] * len(prompts),
        whole=None if request.stream else answer,
        streamed=answer if request.stream else None,
        priority=request.priority or 0,
        slow_reply=search is not None and search.is_slow,
        headers=headers,
    )


class _Answer:
    """calls.WholeAnswer and StreamedAnswer. prompts: those that are wanted back. n: answers a prompt."""

    def __init__(
        self,
        head: AnswerHead,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
        texts: TokenTexts,
        n: int,
        search: SearchAnswer | None,
    ) -> None:
        self._head = head
        self._request = request
        self._prompts = prompts
        self._texts = texts
        self._n = n
        self._search = search
        options = request.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats and self._usage_at_end)
        self._columns: dict[int, LogprobColumns] = {}
        self._n_generated: dict[int, int] = {}
        self._n_prompt: dict[int, int] = {}

    def _echo(self, prompt_index: int) -> str:
        return self._texts.text(self._prompts[prompt_index]) if self._prompts else ""

    # -- whole

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        choices = [
            self._choice(i, output, completion)
            for i, output in enumerate(outputs)
            for completion in sorted(output.outputs, key=lambda completion: completion.index)
        ]
        body = self._head.body(choices) | {"usage": self._usage(outputs)} | self._trees(outputs)
        return body | ({"timings": timings_of(outputs)} if self._request.timings_per_token else {})

    def _usage(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        return usage_of(outputs, is_search=self._search is not None)

    def _trees(self, outputs: Sequence[RequestOutput], *, is_streamed: bool = False) -> dict[str, Any]:
        """Of several prompts a list."""
        if self._search is None:
            return {}
        trees = [self._search.tree(output, is_streamed=is_streamed) for output in outputs]
        return {"tree": [tree["tree"] for tree in trees]} if len(trees) > 1 and trees[0] else trees[0]

    def _choice(self, prompt_index: int, output: RequestOutput, completion: Completion) -> dict[str, Any]:
        request = self._request
        choice: dict[str, Any] = {
            "index": prompt_index * self._n + completion.index,
            "text": self._echo(prompt_index) + completion.text,
            "logprobs": None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._search is not None:
            choice |= scores_of(completion)
        if request.logprobs is not None:
            columns = LogprobColumns(self._texts, request.logprobs)
            entries = [*(output.prompt_logprobs or [])] if self._prompts else []
            choice["logprobs"] = columns.of([*entries, *(completion.logprobs or [])], output.prompt_token_ids[0])
        if request.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._texts, output.prompt_logprobs)
        if request.return_token_ids:
            choice |= {"token_ids": completion.token_ids, "prompt_token_ids": output.prompt_token_ids}
        return choice

    # -- streamed

    def begin(self) -> list[Chunk]:
        chunks = []
        for i in range(len(self._prompts)):
            echo = self._echo(i)
            chunks += [self._chunk(_gain(i * self._n + k, echo)) for k in range(self._n) if echo]
        return chunks

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        if self._search is None:
            return [self._delta(prompt_index, event)]
        chunks = self._search.named_events(prompt_index, event)
        return chunks + [self._delta(prompt_index, *told) for told in self._search.told(prompt_index, event)]

    def _delta(self, prompt_index: int, event: StreamEvent, scores: dict[str, Any] | None = None) -> Chunk:
        request = self._request
        index = prompt_index * self._n + event.index
        is_first = index not in self._n_generated
        choice = _gain(index, event.text)
        choice["finish_reason"] = event.finish_reason
        if event.finish_reason is not None:
            choice["stop_reason"] = event.stop_reason
        if request.logprobs is not None and event.logprobs is not None:
            if is_first:
                self._columns[index] = LogprobColumns(self._texts, request.logprobs)
            choice["logprobs"] = self._columns[index].of(event.logprobs)
        if request.return_token_ids:
            choice["token_ids"] = event.token_ids
            choice["prompt_token_ids"] = event.prompt_token_ids if is_first else None
        self._n_generated[index] = self._n_generated.get(index, 0) + len(event.token_ids)
        self._n_prompt[prompt_index] = len(event.prompt_token_ids)
        return self._chunk(choice | (scores or {}))

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        more = {"usage": self._usage(outputs)} if self._usage_at_end else {}
        more |= self._trees(outputs, is_streamed=True)
        if self._request.timings_per_token:
            more["timings"] = timings_of(outputs)
        return [Chunk(self._head.body([]) | more)] if more else []

    def _chunk(self, choice: dict[str, Any]) -> Chunk:
        body = self._head.body([choice])
        if self._usage_always:
            body["usage"] = usage_so_far(sum(self._n_prompt.values()), sum(self._n_generated.values()))
        elif self._usage_at_end:
            body["usage"] = None
        return Chunk(body)


def _gain(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/completions",
        complete,
        "Goes on with one prompt or several",
        request=CompletionRequest,
        response=CompletionReply,
    ),
)
