"""Answers to the page that outlive a broken connection: their events are kept, and can be read from any of them on."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from llm_decoder.serving import sse
from llm_decoder.serving.calls import RunningCall
from llm_decoder.serving.errors import as_http_error
from llm_decoder.serving.logs import LOGGER
from llm_decoder.serving.sse import Chunk
from llm_decoder.web.page_events import PageEvents

__all__ = ["PageStream", "PageStreams", "Reader"]

MAX_FINISHED = 64
_FIRST_READ_S = 1.0  # who has asked for an answer is about to read it


class PageStream:
    """One answer. A thread of its own turns what comes into events, whether somebody reads them or not. When nobody has
    read for resume_s seconds, the call is cancelled."""

    def __init__(self, stream_id: str, call: RunningCall, events: PageEvents, resume_s: float) -> None:
        self.id = stream_id
        self._call = call
        self._events = events
        self._resume_s = resume_s
        self._woken = threading.Event()  # something has come, or a reader has come or gone
        self._lock = threading.Lock()
        self._log: list[bytes] = []  # event i has the id i + 1
        self._is_finished = False
        self._reader: Reader | None = None
        self._left_s = time.monotonic() + _FIRST_READ_S  # when somebody read last
        call.on_items(self._woken.set)
        threading.Thread(target=self._run, name="llm_decoder-page", daemon=True).start()

    def stop(self) -> None:
        """The answer ends where it is."""
        self._call.cancel()

    def read(self, after: int = 0, headers: Mapping[str, str] | None = None) -> Reader:
        """A reader of the events with an id above `after`. Who read before reads no more. headers: of the answer."""
        with self._lock:
            before, self._reader = self._reader, Reader(self, min(max(after, 0), len(self._log)), headers or {})
            reader = self._reader
        if before is not None:
            before.wake()
        self._woken.set()
        return reader

    def is_forgotten(self) -> bool:
        """Whether nobody may read it any more."""
        with self._lock:
            return self._is_finished and self._unread_s() > self._resume_s

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def _run(self) -> None:
        while not self._is_finished:
            self._woken.clear()
            self._take()
            left_s = self._time_left_s()
            if left_s is not None and left_s <= 0:
                self._call.cancel()
                left_s = None  # its end comes, or the engine's
            if not self._is_finished:
                self._woken.wait(left_s)

    def _time_left_s(self) -> float | None:
        """Until somebody has to come; None while somebody reads."""
        with self._lock:
            return None if self._reader is not None else self._resume_s - self._unread_s()

    def _take(self) -> None:
        try:
            chunks, is_last = self._call.chunks(), self._call.is_over
            if self._call.error is not None:
                chunks += self._events.fail(self._call.error)
        except Exception as error:  # noqa: BLE001 - the reader is told, and the log
            LOGGER.error("an answer could not be shown", exc_info=error)
            self._call.cancel()
            chunks, is_last = [Chunk(as_http_error(error).body(), "error")], True
        if chunks or is_last:
            self._append([*chunks, Chunk("[DONE]")] if is_last else chunks, is_last)

    def _append(self, chunks: list[Chunk], is_last: bool) -> None:
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
        self._woken.set()

    def _let_go(self) -> None:
        self._reader = None
        self._left_s = time.monotonic()


class Reader:
    """One connection that reads a PageStream: serving.calls.EventStream."""

    def __init__(self, stream: PageStream, position: int, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self._stream = stream
        self._position = position
        self._is_over = False
        self._wake: Callable[[], None] | None = None

    def on_items(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        wake()

    def wake(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has been closed, and nobody waits any more
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
