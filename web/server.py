"""waitress as this project needs it: a thread for each open answer, slow senders cut off, and an end that lets answers
end."""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HEADER_FIELD_RE, HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.utilities import BadRequest, Error, RequestEntityTooLarge, RequestHeaderFieldsTooLarge

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.limits import body_too_large, headers_too_large
from llm_decoder.serving.logs import LOGGER
from llm_decoder.serving.service import Service

__all__ = ["Server"]

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130
_N_SPARE_THREADS = 16  # for what is answered at once, when every other thread writes an answer
_LAST_BYTES_S = 5.0
# What a client that is refused may still write and is thrown away: bytes, seconds.
_DISCARDED_BYTES = 32 << 20
_DISCARD_S = 2.0
# Of a body in chunks, what is not body: sizes, extensions, trailers. More than a third of it is there to keep us busy.
_FRAMING_BYTES = 64 << 10
_ENCODINGS = re.compile(rb"^transfer-encoding[ \t]*:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class Server:
    """A bound server over an app of `service`; `run` serves until `stop`. host, port: the settings'; port 0 = any that
    is free, `port` says which. Raises ConfigError when the port is not to be had."""

    def __init__(self, app: Flask, service: Service) -> None:
        settings = service.settings
        n_threads = settings.max_requests + _N_SPARE_THREADS
        self._service = service
        self._adjustments = Adjustments(
            host=settings.host,
            port=settings.port,
            threads=n_threads,
            connection_limit=2 * n_threads,
            backlog=1024,
            ident="",
            asyncore_use_poll=True,
            # waitress refuses what reaches a limit
            max_request_body_size=settings.max_body_bytes + 1,
            max_request_header_size=settings.max_header_bytes + 1,
            channel_request_lookahead=1,  # so that a client that hangs up is noticed while it is answered
            cleanup_interval=1,
            outbuf_high_watermark=1 << 20,  # that wait for one client; then its answer waits
        )
        self._map: dict[int, Any] = {}
        self._threads = _Threads(n_threads)
        self._is_stopping = False
        self._is_interrupted = False
        self._stop_now = threading.Event()
        try:
            self._listeners = [
                _Listener(app, self._map, dispatcher=self._threads, adj=self._adjustments, sockinfo=sockinfo)
                for sockinfo in self._adjustments.listen
            ]
        except OSError as error:
            wasyncore.close_all(self._map)
            raise settings.cannot_listen(error) from error
        for listener in self._listeners:
            listener.timeout_s = settings.read_timeout_s

    @property
    def port(self) -> int:
        return int(self._listeners[0].effective_port)

    @property
    def url(self) -> str:
        """The page's, as a browser of this machine takes it."""
        host = self._service.settings.host
        host = "localhost" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}"

    def run(self) -> None:
        """Serves. Returns after `stop`, when answers have ended and been sent, or drain_s is over."""
        try:
            while not self._stop_now.is_set():
                wasyncore.loop(timeout=1.0, use_poll=True, map=self._map, count=1)
        finally:
            self._threads.shutdown()
            wasyncore.close_all(self._map)

    def stop(self, drain_s: float | None = None) -> None:
        """Returns at once. New requests are refused, those that run go on for drain_s (None = the settings') seconds.
        Again: they end now."""
        if self._is_stopping:
            drain_s = 0.0
        self._is_stopping = True
        threading.Thread(target=self._stop, args=(drain_s,), name="llm_decoder-stop", daemon=True).start()

    def _stop(self, drain_s: float | None) -> None:
        try:
            self._service.close(drain_s)
            end_s = time.monotonic() + _LAST_BYTES_S
            while self._is_busy() and time.monotonic() < end_s:
                time.sleep(0.05)
        finally:
            self._stop_now.set()
            with contextlib.suppress(OSError):  # `run` has seen it already and is gone
                self._listeners[0].pull_trigger()

    def _is_busy(self) -> bool:
        channels = [channel for listener in self._listeners for channel in list(listener.active_channels.values())]
        return any(channel.requests or channel.total_outbufs_len for channel in channels)

    def run_as_program(self) -> int:
        """`run`, with the model's loading begun and signals obeyed: SIGTERM and Ctrl-C stop the server, Ctrl-C again at
        once. Returns the exit code. For the main thread."""
        LOGGER.info("listening", extra={"fields": {"url": self.url}})
        before = {number: signal.signal(number, self._obey) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._service.start()
            threading.Thread(target=self._watch, name="llm_decoder-watch", daemon=True).start()
            self.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._service.failure is not None:
            return EXIT_ERROR
        return EXIT_INTERRUPTED if self._is_interrupted else EXIT_OK

    def _obey(self, number: int, frame: FrameType | None) -> None:
        self._is_interrupted = self._is_interrupted or number == signal.SIGINT
        if number == signal.SIGINT or not self._is_stopping:
            self.stop()

    def _watch(self) -> None:
        if self._service.wait():
            LOGGER.info("ready", extra={"fields": self._service.told_when_ready()})
        elif self._service.failure is not None:
            LOGGER.error("the model could not be loaded: %s", self._service.failure)
            self.stop(0.0)


class _Threads(ThreadedTaskDispatcher):
    """Starts a thread when every other one is busy, up to n_max; waitress would start them all at once."""

    def __init__(self, n_max: int) -> None:
        super().__init__()
        self._n_max = n_max
        self.queue_logger.setLevel(logging.ERROR)  # it would tell of every task that waits for its new thread

    def add_task(self, task: Any) -> None:
        super().add_task(task)
        with self.lock:
            n_threads = len(self.threads) - self.stop_count
            n_wanted = min(self._n_max, n_threads + len(self.queue) - (n_threads - self.active_count))
        if n_wanted > n_threads:
            self.set_thread_count(n_wanted)


class _ErrorTask(ErrorTask):
    """waitress' own refusals (no HTTP, too long, too late) in our words."""

    def execute(self) -> None:
        error: Error = self.request.error
        reply = _told(error, self.channel.adj).reply()
        self.channel.is_refused = True
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", reply.media_type), ("X-Content-Type-Options", "nosniff")]
        self.set_close_on_finish()
        self.content_length = len(reply.body)
        self.write(reply.body)


class _Parser(HTTPRequestParser):
    """Stricter than waitress where a proxy could see other bounds, or another place, of the same request (RFC 9112,
    sections 3.2 and 6)."""

    body_rcv: Any = None

    def received(self, data: bytes) -> int:
        n_bytes = int(super().received(data))
        if self.error is not None:
            self.expect_continue = False  # else waitress would ask for the body that it has just refused
        return n_bytes

    def parse_header(self, header_plus: bytes) -> None:
        """Raises ParsingError."""
        encodings = [encoding.strip(b" \t").lower() for encoding in _ENCODINGS.findall(header_plus)]
        if encodings and encodings != [b"chunked"]:
            raise ParsingError("Transfer-Encoding must be chunked, once")
        super().parse_header(header_plus)
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("HTTP/1.1 is spoken here")
        if encodings and (self.version != "1.1" or "CONTENT_LENGTH" in self.headers):
            raise ParsingError("Transfer-Encoding goes with HTTP/1.1 and without Content-Length")
        if self.version == "1.1" and "HOST" not in self.headers:
            raise ParsingError("Host is missing")
        if self.proxy_netloc and self.proxy_netloc.lower() != self.headers.get("HOST", "").lower():
            raise ParsingError("Host is another one than the target names")
        if encodings:
            self.body_rcv = _Chunks(self.body_rcv.getbuf(), self.adj.max_request_body_size)


class _Chunks(ChunkedReceiver):
    """waitress waits without a bound for the end of a chunk's first line and of trailers, and believes any of both."""

    error: Any = None

    def __init__(self, buf: Any, max_body_bytes: int) -> None:
        super().__init__(buf)
        self._max_body_bytes = max_body_bytes
        self._n_bytes = 0

    def received(self, data: bytes) -> int:
        n_bytes = int(super().received(data))
        self._n_bytes += n_bytes
        n_framing_bytes = self._n_bytes - len(self)
        if self.error is not None:
            pass
        elif len(self) + self.chunk_remainder >= self._max_body_bytes:
            self.error = RequestEntityTooLarge(f"exceeds max_body of {self._max_body_bytes}")
        elif n_framing_bytes > _FRAMING_BYTES and 3 * n_framing_bytes > len(self):
            self.error = BadRequest("A body in very many, very small parts")
        elif self.completed and not all(map(HEADER_FIELD_RE.match, self.trailer.strip(b"\r\n").splitlines())):
            self.error = BadRequest("Invalid trailer")
        return n_bytes


class _Late(Error):
    code = 408
    reason = "Request Timeout"


def _told(error: Error, limits: Adjustments) -> HttpError:
    if isinstance(error, RequestEntityTooLarge):
        return body_too_large(limits.max_request_body_size - 1)
    if isinstance(error, RequestHeaderFieldsTooLarge):
        return headers_too_large(limits.max_request_header_size - 1)
    code = "body_too_slow" if isinstance(error, _Late) else "bad_http"
    return HttpError(error.code, f"[http] {error.reason.lower()}: {error.body}"[:300], code=code)


class _Channel(HTTPChannel):
    error_task_class = _ErrorTask
    parser_class = _Parser
    request: Any = None  # that is being read
    began_s = 0.0  # when its first byte came
    sent_s = 0.0  # when bytes went out last that others still wait behind; 0 = none wait
    stuck_s = 0.0  # since when that has not changed
    is_refused = False  # and is to be closed
    discards_until_s = 0.0  # what a refused client still writes; 0 = it is read
    n_discarded = 0

    def received(self, data: bytes) -> bool:
        if self.request is None:
            self.began_s = time.monotonic()
        return bool(super().received(data))

    def send_continue(self) -> None:
        """Not to a request that is whole already: waitress would wait for more of it."""
        if self.request.completed:
            self.request.expect_continue = False
        else:
            super().send_continue()

    def handle_close(self) -> None:
        """A connection that is closed while its client writes would take the refusal with it: a client that writes
        first and reads then is heard to its end, for a moment."""
        if self.is_refused and not self.discards_until_s:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
                self.discards_until_s = time.monotonic() + _DISCARD_S
                self.will_close = False
                return
        super().handle_close()

    def readable(self) -> bool:
        return self.discards_until_s > 0 or bool(super().readable())

    def writable(self) -> bool:
        return not self.discards_until_s and bool(super().writable())

    def handle_read(self) -> None:
        if not self.discards_until_s:
            super().handle_read()
            return
        try:
            self.n_discarded += len(self.recv(self.adj.recv_bytes))
        except OSError:
            self.handle_close()
        else:
            self.close_if_heard()

    def close_if_heard(self) -> None:
        """Closes the connection of a refused client that has had its time, or has written as much as it may."""
        if not (self.connected and self.discards_until_s):
            return
        if self.n_discarded > _DISCARDED_BYTES or time.monotonic() > self.discards_until_s:
            self.handle_close()

    def refuse_if_late(self, timeout_s: float) -> None:
        """Ends a request that has not come whole in time, however busily its bytes drip."""
        with self.requests_lock:
            if self.request is None or self.requests or time.monotonic() - self.began_s < timeout_s:
                return
            late, self.request = self.request, None
            late.error = _Late(f"the request did not come whole within {timeout_s:g} s")
            late.completed = True
            if not late.headers_finished:
                late.parse_header(b"GET / HTTP/1.0\r\n")
            self.requests.append(late)
            self.server.add_task(self)

    def leave_if_unread(self, timeout_s: float) -> None:
        """Ends a connection whose client reads nothing of what it is sent."""
        sent_s = self.last_activity if self.total_outbufs_len else 0.0
        if not sent_s or sent_s != self.sent_s:
            self.sent_s, self.stuck_s = sent_s, time.monotonic()
        elif time.monotonic() - self.stuck_s > timeout_s:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # the loop sees the rest to it


class _Listener(TcpWSGIServer):
    channel_class = _Channel
    timeout_s = 30.0

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            channel.refuse_if_late(self.timeout_s)
            channel.leave_if_unread(self.timeout_s)
            channel.close_if_heard()
