"""AsyncLLM: the same for asyncio programs and servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from llm_decoder.answers import AnswerParser, ChatStyle
from llm_decoder.chat import Message
from llm_decoder.engine import RequestHandle
from llm_decoder.llm import LLM, Params, params_for
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt, as_prompts, checked_messages
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams, checked_search

if TYPE_CHECKING:
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["AsyncLLM"]

Item = StreamEvent | RequestOutput | Exception


class AsyncLLM:
    """LLM's verbs as coroutines; made with LLM's arguments, or over an LLM that is there: AsyncLLM.over(llm).

    The constructor loads the model and blocks: a server makes it at start-up, or in asyncio.to_thread. A task that is
    cancelled while it waits, and a stream that is closed, cancel their requests.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._llm = LLM(*args, **kwargs)

    @classmethod
    def over(cls, llm: LLM) -> Self:
        """An AsyncLLM over an LLM; closing one closes both."""
        async_llm = cls.__new__(cls)
        async_llm._llm = llm
        return async_llm

    @property
    def name(self) -> str:
        """As LLM.name."""
        return self._llm.name

    @property
    def tokenizer(self) -> Tokenizer:
        """As LLM.tokenizer."""
        return self._llm.tokenizer

    @property
    def max_model_len(self) -> int:
        """As LLM.max_model_len."""
        return self._llm.max_model_len

    @property
    def vocab_size(self) -> int:
        """As LLM.vocab_size."""
        return self._llm.vocab_size

    @property
    def chat_style(self) -> ChatStyle:
        """As LLM.chat_style."""
        return self._llm.chat_style

    def answer_parser(self, messages: Sequence[Message] = (), **template_options: Any) -> AnswerParser:
        """As LLM.answer_parser."""
        return self._llm.answer_parser(messages, **template_options)

    async def generate(
        self, prompts: str | Sequence[Any], params: Params = None, *, priority: int = 0
    ) -> list[RequestOutput]:
        """As LLM.generate."""
        all_prompts = as_prompts(prompts)
        subscriptions: list[_Subscription] = []
        try:
            for prompt, own_params in zip(all_prompts, params_for(all_prompts, params), strict=True):
                subscriptions.append(await self._subscribe(prompt, own_params, priority=priority))
            return [await subscription.result() for subscription in subscriptions]
        except BaseException:
            for subscription in subscriptions:
                subscription.handle.cancel()
            raise

    async def search(
        self, prompts: str | Sequence[Any], params: SearchParams | None = None, *, priority: int = 0
    ) -> list[RequestOutput]:
        """As LLM.search."""
        return await self.generate(prompts, checked_search(params), priority=priority)

    def stream_search(
        self, prompt: Prompt, params: SearchParams | None = None, *, priority: int = 0, **template_options: Any
    ) -> AsyncIterator[StreamEvent]:
        """As LLM.stream_search."""
        return self.stream(prompt, checked_search(params), priority=priority, **template_options)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0, **template_options: Any
    ) -> AsyncIterator[StreamEvent]:
        """As LLM.stream: `async for event in llm.stream(...)`. Closing the iterator cancels the request."""
        subscription = await self._subscribe(prompt, params, stream=True, priority=priority, **template_options)
        parts = self._llm.parts_of(prompt, template_options)
        is_over = False
        try:
            while not is_over:
                event = await subscription.next_event()
                is_over = event.output is not None
                yield event if parts is None else parts.add(event)
        finally:
            if not is_over:
                subscription.handle.cancel()

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        **template_options: Any,
    ) -> RequestOutput:
        """As LLM.chat."""
        subscription = await self._subscribe(checked_messages(messages), params, priority=priority, **template_options)
        try:
            output = await subscription.result()
        except BaseException:
            subscription.handle.cancel()
            raise
        return self._llm.chat_answers(messages, **template_options).with_messages(output)

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **template_options: Any
    ) -> AsyncIterator[StreamEvent]:
        """As LLM.stream_chat."""
        return self.stream(checked_messages(messages), params, **template_options)

    async def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """As LLM.logits: float32 [n_tokens, vocab_size]."""
        return await asyncio.to_thread(self._llm.logits, token_ids)

    async def score(self, text: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """As LLM.score: float32 [n_tokens - 1]."""
        return await asyncio.to_thread(self._llm.score, text)

    async def embed(self, texts: str | Sequence[Any]) -> npt.NDArray[np.float32]:
        """As LLM.embed: float32 [n_texts, hidden_size]."""
        return await asyncio.to_thread(self._llm.embed, texts)

    async def stats(self) -> dict[str, Any]:
        """As LLM.stats."""
        return await asyncio.to_thread(self._llm.stats)

    async def close(self, drain_s: float = 0.0) -> None:
        """As LLM.close."""
        await asyncio.to_thread(self._llm.close, drain_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _subscribe(
        self, prompt: Prompt, params: SamplingParams | None, stream: bool = False, **template_options: Any
    ) -> _Subscription:
        """Puts the request in line; tokenizing a long prompt does not hold up the event loop."""
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()

        def sink(item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        def submit() -> RequestHandle:
            return self._llm.submit(prompt, params, stream=stream, sink=sink, **template_options)

        submission = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            handle = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(_cancel_when_submitted)
            raise
        return _Subscription(handle, items)


def _cancel_when_submitted(submission: asyncio.Future[RequestHandle]) -> None:
    if not submission.cancelled() and submission.exception() is None:
        submission.result().cancel()


class _Subscription:
    """What a request sends to one event loop."""

    def __init__(self, handle: RequestHandle, items: asyncio.Queue[Item]) -> None:
        self.handle = handle
        self._items = items

    async def next_event(self) -> StreamEvent:
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, StreamEvent)
        return item

    async def result(self) -> RequestOutput:
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        assert isinstance(item, RequestOutput)
        return item
