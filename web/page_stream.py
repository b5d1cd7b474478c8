"""Answers to the page that outlive a broken connection: their events are kept, and can be read from any of them on."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.serving import sse
from llm_decoder.serving.sse import Chunk
from llm_decoder.web.page_events import PageEvents

__all__ = ["PageStream", "PageStreams", "Reader"]

MAX_FINISHED = 64

Item = StreamEvent | RequestOutput | Exception


class Request(Protocol):
    """engine.RequestHandle, as far as it is needed here."""

    def cancel(self) -> None: ...


class PageStream:
    """One answer. `put` is the engine thread's; a thread of its own turns what comes into events, whether somebody
    reads them or not. When nobody has read for resume_s seconds, the request is cancelled."""

    def __init__(self, events: PageEvents, resume_s: float, stream_id: str) -> None:
        self.id = stream_id
        self._events = events
        self._resume_s = resume_s
        self._inbox: queue.SimpleQueue[Item | None] = queue.SimpleQueue()  # None: look at the clock again
        self._lock = threading.Lock()
        self._log: list[bytes] = []  # event i has the id i + 1
        self._is_finished = False
        self._reader: Reader | None = None
        self._left_s = time.monotonic()  # when somebody read last

    def put(self, item: Item) -> None:
        self._inbox.put(item)

    def start(self, request: Request) -> None:
        self._request = request
        threading.Thread(target=self._run, name="llm_decoder-page", daemon=True).start()

    def stop(self) -> None:
        """The answer ends where it is."""
        self._request.cancel()

    def read(self, after: int = 0) -> Reader:
        """A reader of the events with an id above `after`. Who read before reads no more."""
        with self._lock:
            before, self._reader = self._reader, Reader(self, min(max(after, 0), len(self._log)))
            reader = self._reader
        if before is not None:
            before.wake()
        self._inbox.put(None)
        return reader

    def is_forgotten(self) -> bool:
        """Whether nobody may read it any more."""
        with self._lock:
            return self._is_finished and self._unread_s() > self._resume_s

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def _run(self) -> None:
        self._append(self._events.start())
        is_cancelled = False
        while not self._is_finished:
            with self._lock:
                left_s = None if self._reader is not None else self._resume_s - self._unread_s()
            if left_s is not None and left_s <= 0 and not is_cancelled:
                is_cancelled = True
                self._request.cancel()
            try:
                item = self._inbox.get(timeout=None if left_s is None or is_cancelled else left_s)
            except queue.Empty:
                continue
            if item is not None:
                self._take(item)

    def _take(self, item: Item) -> None:
        try:
            if isinstance(item, Exception):
                raise item
            assert isinstance(item, StreamEvent)
            chunks, is_last = self._events.take(item), item.output is not None
        except Exception as error:  # noqa: BLE001 - the reader is told; nobody else could be
            self._request.cancel()
            chunks, is_last = self._events.fail(error), True
        self._append(chunks, is_last)

    def _append(self, chunks: list[Chunk], is_last: bool = False) -> None:
        with self._lock:
            for chunk in chunks:
                self._log.append(sse.encode(replace(chunk, id=len(self._log) + 1)))
            self._is_finished = is_last
            reader = self._reader
        if reader is not None:
            reader.wake()

    def _unread_s(self) -> float:
        return 0.0 if self._reader is not None else time.monotonic() - self._left_s

    # -- the reader's side

    def take(self, reader: Reader, position: int) -> tuple[bytes, int, bool]:
        """(what is new, the position after it, whether it was the last)"""
        with self._lock:
            if self._reader is not reader:
                return b"", position, True
            parts = self._log[position:]
            is_last = self._is_finished
            if is_last:
                self._let_go()
            return b"".join(parts), position + len(parts), is_last

    def leave(self, reader: Reader) -> None:
        with self._lock:
            if self._reader is reader:
                self._let_go()
        self._inbox.put(None)

    def _let_go(self) -> None:
        self._reader = None
        self._left_s = time.monotonic()


class Reader:
    """One connection that reads a PageStream: serving.calls.EventStream."""

    headers: Mapping[str, str] = {}

    def __init__(self, stream: PageStream, position: int) -> None:
        self._stream = stream
        self._position = position
        self._is_over = False
        self._wake: Callable[[], None] | None = None

    def on_items(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        wake()

    def wake(self) -> None:
        if self._wake is not None:
            self._wake()

    def events(self) -> bytes:
        if self._is_over:
            return b""
        data, self._position, self._is_over = self._stream.take(self, self._position)
        return data

    @property
    def is_over(self) -> bool:
        return self._is_over

    def cancel(self) -> None:
        """The connection is gone; the answer goes on for whoever comes back."""
        self._is_over = True
        self._stream.leave(self)


class PageStreams:
    """The answers that may be read again, by an id that nobody can guess. One for each server."""

    def __init__(self, max_finished: int = MAX_FINISHED) -> None:
        self._max_finished = max_finished
        self._streams: dict[str, PageStream] = {}
        self._lock = threading.Lock()

    @staticmethod
    def new_id() -> str:
        return secrets.token_urlsafe(16)

    def add(self, stream: PageStream) -> None:
        with self._lock:
            self._sweep()
            self._streams[stream.id] = stream

    def get(self, stream_id: str) -> PageStream | None:
        with self._lock:
            self._sweep()
            return self._streams.get(stream_id)

    def _sweep(self) -> None:
        finished = [stream for stream in self._streams.values() if stream.is_finished]
        n_too_many = len(finished) - self._max_finished
        for index, stream in enumerate(finished):
            if index < n_too_many or stream.is_forgotten():
                del self._streams[stream.id]
