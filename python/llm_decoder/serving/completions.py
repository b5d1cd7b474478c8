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
from llm_decoder.serving.plan import (
    check_amount,
    check_model,
    check_stream_options,
    max_tokens_of,
    sampling_params,
    token_prompts,
)
from llm_decoder.serving.schemas_completions import CompletionReply, CompletionRequest
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
    n = request.n or 1
    check_amount(service, len(prompts), n, max_tokens)
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
    params = sampling_params(request, incoming.request_id, max_tokens=max_tokens, logprobs=request.logprobs, **more)
    return Call(
        prompts=token_prompts(service, prompts, request.add_special_tokens),
        params=[params] * len(prompts),
        format=_Answer(
            head=AnswerHead.make("cmpl-", "text_completion", service, request.request_id),
            request=request,
            prompts=prompts if request.echo else [],
            texts=TokenTexts(llm, bool(request.return_tokens_as_token_ids)),
        ),
        stream=bool(request.stream),
        priority=request.priority or 0,
        headers=headers,
    )


class _Answer:
    """calls.AnswerFormat. prompts: those that are wanted back."""

    def __init__(
        self, head: AnswerHead, request: CompletionRequest, prompts: Sequence[Prompt], texts: TokenTexts
    ) -> None:
        self._head = head
        self._request = request
        self._prompts = prompts
        self._texts = texts
        self._n = request.n or 1
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
        body = self._head.body(choices) | {"usage": usage_of(outputs)}
        return body | ({"timings": timings_of(outputs)} if self._request.timings_per_token else {})

    def _choice(self, prompt_index: int, output: RequestOutput, completion: Completion) -> dict[str, Any]:
        request = self._request
        choice: dict[str, Any] = {
            "index": prompt_index * self._n + completion.index,
            "text": self._echo(prompt_index) + completion.text,
            "logprobs": None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
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
            chunks += [self._chunk(_delta(i * self._n + k, echo)) for k in range(self._n) if echo]
        return chunks

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        request = self._request
        index = prompt_index * self._n + event.index
        is_first = index not in self._n_generated
        choice = _delta(index, event.text)
        choice["finish_reason"] = event.finish_reason
        if event.finish_reason is not None:
            pass
        if request.logprobs is not None and event.logprobs is not None:
            if is_first:
                self._columns[index] = LogprobColumns(self._texts, request.logprobs)
            choice["logprobs"] = self._columns[index].of(event.logprobs)
        if request.return_token_ids:
            choice["token_ids"] = event.token_ids
            choice["prompt_token_ids"] = event.prompt_token_ids if is_first else None
        self._n_generated[index] = self._n_generated.get(index, 0) + len(event.token_ids)
        self._n_prompt[prompt_index] = len(event.prompt_token_ids)
        return [self._chunk(choice)]

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        if not self._usage_at_end and not self._request.timings_per_token:
            return []
        usage = {"usage": usage_of(outputs)} if self._usage_at_end else {}
        timings = {"timings": timings_of(outputs)} if self._request.timings_per_token else {}
        return [Chunk(self._head.body([]) | usage | timings)]

    def _chunk(self, choice: dict[str, Any]) -> Chunk:
        body = self._head.body([choice])
        if self._usage_always:
            body["usage"] = usage_so_far(sum(self._n_prompt.values()), sum(self._n_generated.values()))
        elif self._usage_at_end:
            body["usage"] = None
        return Chunk(body)


def _delta(index: int, text: str) -> dict[str, Any]:
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
