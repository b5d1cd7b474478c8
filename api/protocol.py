"""HTTP/1.1 under uvicorn, with an eye on clients that hold a connection and say, or read, next to nothing."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.limits import headers_too_large
from llm_decoder.serving.settings import ServerSettings

__all__ = ["GuardedProtocol"]

# The request line comes on top of the headers, whose own limit is told with a number.
_REQUEST_LINE_BYTES = 16 << 10
# A body in more parts than this, which are smaller than that on average, is there to keep us busy.
_MANY_PARTS = 4096
_SMALL_PART_BYTES = 16


class GuardedProtocol(H11Protocol):
    """Headers must be there within read_timeout_s, and what is sent must be read within as long: 408, or the
    connection is cut. What is not HTTP is answered with our errors."""

    settings: ClassVar[ServerSettings]

    @classmethod
    def of(cls, settings: ServerSettings) -> type[GuardedProtocol]:
        """The class that uvicorn makes a connection of."""
        return type("GuardedProtocol", (cls,), {"settings": settings})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER, self.settings.max_header_bytes + _REQUEST_LINE_BYTES)
        self._slow_request: asyncio.TimerHandle | None = None
        self._slow_reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_request()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._slow_request, self._slow_reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _time_request(self) -> None:
        is_inside = self.cycle is not None and not self.cycle.response_complete
        if is_inside and self._slow_request is not None:
            self._slow_request.cancel()
            self._slow_request = None
        elif not is_inside and self._slow_request is None and not self.transport.is_closing():
            self._slow_request = self.loop.call_later(self.settings.read_timeout_s, self._end_slow_request)

    def _end_slow_request(self) -> None:
        self._slow_request = None
        if not self.transport.is_closing():
            self._refuse(HttpError(408, "[headers] need them sooner", code="headers_too_slow"))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_reader = self.loop.call_later(self.settings.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._slow_reader is not None:
            self._slow_reader.cancel()
            self._slow_reader = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls it, while it handles h11's error, for what is not HTTP."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        if status == 431:
            self._refuse(headers_too_large(self.settings.max_header_bytes))
        else:
            self._refuse(HttpError(400, "[http] the request is not HTTP/1.1 as RFC 9112 has it", code="bad_http"))

    def _refuse(self, error: HttpError) -> None:
        """Answers, unless an answer has begun, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reply = error.reply()
            headers = {"content-type": reply.media_type, "content-length": str(len(reply.body)), "connection": "close"}
            response = h11.Response(status_code=reply.status, headers=list(headers.items()))
            for event in (response, h11.Data(data=reply.body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Connection(h11.Connection):
    """Raises RemoteProtocolError for a body in very many, very small parts: each costs as much as a large one. Parts of
    an answer in chunks are framed here: a token is one, and h11 would have its state machine look at each."""

    _n_parts = 0
    _n_bytes = 0
    _sends_chunks = False

    def send(self, event: Any) -> Any:
        if self._sends_chunks and type(event) is h11.Data and event.data:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        sent = super().send(event)
        if type(event) is h11.Response:
            self._sends_chunks = b"\r\ntransfer-encoding: chunked\r\n" in (sent or b"").lower()
        elif type(event) is h11.EndOfMessage:
            self._sends_chunks = False
        return sent

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._n_parts += 1
            self._n_bytes += len(event.data)
            if self._n_parts > _MANY_PARTS and self._n_bytes < _SMALL_PART_BYTES * self._n_parts:
                raise h11.RemoteProtocolError("a body in very many, very small parts", error_status_hint=400)
        elif isinstance(event, h11.Request):
            self._n_parts = self._n_bytes = 0
            _check_request(event)
        return event


def _check_request(request: h11.Request) -> None:
    """A proxy could see other bounds of the same request (RFC 9112, section 6.1). Raises RemoteProtocolError."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("another version of HTTP")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version != b"1.1"):
        raise h11.RemoteProtocolError("transfer-encoding beside content-length, or not in HTTP/1.1")
