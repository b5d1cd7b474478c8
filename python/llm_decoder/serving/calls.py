"""A checked HTTP request on its way: the prompts it puts to the engine, and its answer as bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

from llm_decoder.engine import RequestHandle
from llm_decoder.errors import EngineClosedError, LLMDecoderError, QueueFullError
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.prompts import Prompt
from llm_decoder.sampling import SamplingParams
from llm_decoder.sequence import Rows
from llm_decoder.serving import sse
from llm_decoder.serving.errors import as_http_error
from llm_decoder.serving.exchange import Reply
from llm_decoder.serving.sse import Chunk

__all__ = ["Call", "EventStream", "RunningCall", "StreamedAnswer", "WholeAnswer"]

Item = StreamEvent | RequestOutput | Exception


class WholeAnswer(Protocol):
    """How a client is answered at once. Used by one thread at a time, once; it may keep state."""

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        """The answer's JSON; outputs in the order of the prompts."""
        ...


class StreamedAnswer(Protocol):
    """How a client is answered as the answer comes. Used by one thread at a time, once; it may keep state."""

    def begin(self) -> list[Chunk]:
        """What a stream starts with."""
        ...

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        """What one event becomes."""
        ...

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        """What a stream ends with, before [DONE]."""
        ...


@dataclass(frozen=True)
class Call:
    """What a client asked for, checked. params: one a prompt. whole, streamed: how it is answered, one of the two.
    rows: each RequestOutput has these rows instead of answers. priority: lower is sooner, see LLM.submit. param: the
    request's field that has the prompts. headers: of the answer. in_turns: a list that is longer than half of the queue
    has no more than that in it. keep: what of an output is held until all are over, None = all of it; it may raise
    LLMDecoderError. slow_reply: the answer takes so long to make that no event loop may wait for it.
    """

    prompts: Sequence[Prompt]
    params: Sequence[SamplingParams]
    _: KW_ONLY
    whole: WholeAnswer | None = None
    streamed: StreamedAnswer | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    rows: Rows | None = None
    priority: int = 0
    param: str = "prompt"
    headers: Mapping[str, str] = field(default_factory=dict)
    in_turns: bool = False
    keep: Callable[[RequestOutput], RequestOutput] | None = None
    slow_reply: bool = False

    def __post_init__(self) -> None:
        if (self.whole is None) == (self.streamed is None):
            raise ValueError("[Call] need one of whole and streamed")


class EventStream(Protocol):
    """What a server streams, read by one consumer: a RunningCall, or what a handler has made itself."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, beside those of every stream."""
        ...

    def on_items(self, wake: Callable[[], None]) -> None:
        """`wake` is called, on any thread, when `events` has more; it must not block."""
        ...

    def events(self) -> bytes:
        """The server-sent events that have become ready since the last time; b"" when there are none."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come; what has come is to be read with `events`."""
        ...

    def cancel(self) -> None:
        """The consumer is gone."""
        ...


class RunningCall:
    """A Call in the engine, and what has come of it. `put` is the engine thread's, the rest one consumer's.

    submit: puts the prompt of an index in line. most_open: prompts that are in line or run at once; of a longer list
    the next one is put in line when another is over, so that a list never fills the engine's queue alone.
    """

    def __init__(self, call: Call, submit: Callable[[int], RequestHandle], most_open: int) -> None:
        self.call = call
        self.handles: list[RequestHandle] = []
        self._submit = submit
        self._most_open = most_open
        self._is_cancelled = False
        self._items: deque[tuple[int, Item]] = deque()
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self._is_awake = False
        self._has_begun = False
        self._outputs: dict[int, RequestOutput] = {}
        self._error: Exception | None = None

    # -- the engine's side

    def put(self, prompt_index: int, item: Item) -> None:
        with self._lock:
            self._items.append((prompt_index, item))
            wake = None if self._is_awake else self._wake
            self._is_awake = wake is not None or self._is_awake
        if wake is not None:
            wake()

    # -- the consumer's side

    def begin(self) -> None:
        """Puts the first prompts in line. Raises what the engine refuses; then nothing of the call is left in it."""
        try:
            while len(self.handles) < min(len(self.call.prompts), self._most_open):
                self.handles.append(self._submit(len(self.handles)))
        except BaseException:
            self.cancel()
            raise

    def _go_on(self) -> None:
        """Puts more prompts in line, as many as are over. Where others have filled the queue meanwhile, it is tried
        again when the next one of this call is over."""
        while self._error is None and not self._is_cancelled and len(self.handles) < len(self.call.prompts):
            n_open = len(self.handles) - len(self._outputs)
            if n_open >= self._most_open:
                return
            try:
                self.handles.append(self._submit(len(self.handles)))
            except QueueFullError as error:
                if n_open:
                    return
                self._fail(error)
            except LLMDecoderError as error:
                self._fail(error)
        if self._is_cancelled and self._error is None and len(self._outputs) == len(self.handles):
            self._fail(EngineClosedError("[server] it ended before all prompts had their turn"))

    def _fail(self, error: Exception) -> None:
        self._error = error
        self.cancel()

    @property
    def headers(self) -> Mapping[str, str]:
        return self.call.headers

    def on_items(self, wake: Callable[[], None]) -> None:
        """`wake` is called, on the engine thread or on this one, once for all items that come before the next look;
        it must not block."""
        with self._lock:
            self._wake = wake
            self._is_awake = bool(self._items)
            is_late = self._is_awake
        if is_late:
            wake()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come; what has come is to be read with `events` or `reply`."""
        return self._error is not None or len(self._outputs) == len(self.call.prompts)

    @property
    def error(self) -> Exception | None:
        """What ended it, when it did not end well."""
        return self._error

    @property
    def outputs(self) -> list[RequestOutput]:
        """What is over of it, in the order in which it ended."""
        return list(self._outputs.values())

    def events(self) -> bytes:
        """The server-sent events that have become ready since the last time; b"" when there are none."""
        if self._has_begun and not self._items:  # who has sent something looks once more before it waits
            return b""
        was_over = self.is_over
        parts = [sse.encode(chunk) for chunk in self.chunks()]
        if self.is_over and not was_over:
            if self._error is not None:
                parts.append(sse.encode(Chunk(as_http_error(self._error).body())))
            parts.append(sse.DONE)
        return b"".join(parts)

    def chunks(self) -> list[Chunk]:
        """What `events` is made of, without the end of a stream: whether one has come, and how it went, `is_over` and
        `error` say."""
        streamed = self.call.streamed
        assert streamed is not None, "what is answered at once has no events"
        chunks: list[Chunk] = []
        if not self._has_begun:
            self._has_begun = True
            chunks += streamed.begin()
        was_over = self.is_over
        for index, item in self._take():
            if isinstance(item, StreamEvent):
                chunks += streamed.chunks(index, item)
            self._note(index, item)
            if self._error is not None:
                break
        if self.is_over and not was_over and self._error is None:
            chunks += streamed.end(self._ordered())
        return chunks

    def look(self) -> bool:
        """Reads what has come for an answer that is not streamed; whether it is over."""
        for index, item in self._take():
            self._note(index, item)
        return self.is_over

    def reply(self) -> Reply:
        """The answer, once `look` has said that it is over. Raises what the engine raised."""
        if self._error is not None:
            raise self._error
        whole = self.call.whole
        assert whole is not None, "what is streamed has events, and no reply"
        return Reply.of_json(whole.response(self._ordered()), headers=self.call.headers)

    def cancel(self) -> None:
        """What still runs of it ends before the next step, and no more is put in line."""
        self._is_cancelled = True
        for handle in self.handles:
            handle.cancel()

    def _take(self) -> list[tuple[int, Item]]:
        with self._lock:
            items = list(self._items)
            self._items.clear()
            self._is_awake = False
        return items

    def _note(self, index: int, item: Item) -> None:
        if isinstance(item, Exception):
            if self._error is None:
                self._fail(item)
            return
        output = item.output if isinstance(item, StreamEvent) else item
        if output is not None:
            try:
                self._outputs[index] = output if self.call.keep is None else self.call.keep(output)
            except LLMDecoderError as error:
                self._fail(error)
                return
            if not self.is_over:
                self._go_on()

    def _ordered(self) -> list[RequestOutput]:
        return [self._outputs[index] for index in range(len(self.call.prompts))]
