"""One HTTP/1.1 exchange that costs next to nothing: what came and when is kept, and read after the clock has stopped.

A load generator shares the machine with the server that it measures: what it takes itself, the server lacks.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Address", "Answer", "exchange", "post_request"]

_MAX_HEAD_BYTES = 256 << 10


@dataclass(frozen=True)
class Address:
    """Where a server listens. path: what its routes begin with."""

    host: str
    port: int
    path: str = ""
    tls: bool = False

    @classmethod
    def of(cls, url: str) -> Address:
        """url: as Remote.url has it."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), parts.path, tls)


@dataclass
class Answer:
    """What a server answered. pieces: (time.perf_counter(), bytes of the body) as they came. failure: why it is not
    whole, "" when it is."""

    started_s: float = 0.0
    ended_s: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    failure: str = ""

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


def post_request(address: Address, path: str, body: bytes, key: str | None = None) -> bytes:
    """A request as it goes over the wire; the connection is for it alone."""
    name = f"[{address.host}]" if ":" in address.host else address.host
    lines = [
        f"POST {address.path}{path} HTTP/1.1",
        f"host: {name}:{address.port}",
        "content-type: application/json",
        "accept: text/event-stream, application/json",
        "connection: close",
        f"content-length: {len(body)}",
    ]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def exchange(address: Address, request: bytes, timeout_s: float) -> Answer:
    """Never raises for what the server or the network does: `failure` says it."""
    loop = asyncio.get_running_loop()
    answer = Answer(time.perf_counter())
    connection = _Connection(request, answer, loop.create_future())
    try:
        async with asyncio.timeout(timeout_s):
            context = ssl.create_default_context() if address.tls else None
            await loop.create_connection(lambda: connection, address.host, address.port, ssl=context)
            await connection.over
    except TimeoutError:
        answer.failure = f"timeout after {timeout_s:g} s"
    except ConnectionRefusedError:
        answer.failure = "connection refused"
    except OSError as error:
        answer.failure = f"connection: {error.strerror or type(error).__name__}"
    finally:
        connection.abort()
    answer.ended_s = time.perf_counter()
    return answer


class _Connection(asyncio.Protocol):
    """`over` has a result when the answer is whole, or cannot become it."""

    def __init__(self, request: bytes, answer: Answer, over: asyncio.Future[None]) -> None:
        self._request = request
        self._answer = answer
        self._head = bytearray()
        self._take: Callable[[bytes], tuple[bytes, bool]] | None = None
        self._transport: asyncio.Transport | None = None
        self.over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        try:
            if self._take is None:
                data = self._read_head(data)
                if self._take is None:
                    return
            body, is_over = self._take(data)
        except ValueError:
            self._end("not HTTP/1.1")
            return
        if body:
            self._answer.pieces.append((now_s, body))
        if is_over:
            self._end("")

    def _read_head(self, data: bytes) -> bytes:
        """What is behind the head, once it is whole. Raises ValueError for what is none."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > _MAX_HEAD_BYTES:
                raise ValueError("a head that does not end")
            return b""
        first, *lines = self._head[:end].decode("latin-1").split("\r\n")
        rest = bytes(self._head[end + 4 :])
        version, status, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError("another protocol")
        if status == "100":
            self._head = bytearray()
            return self._read_head(rest)
        self._answer.status = int(status)
        pairs = (line.partition(":") for line in lines)
        self._answer.headers = headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._take = _Chunks().take
        elif "content-length" in headers:
            self._take = _Counted(int(headers["content-length"])).take
        else:
            self._take = lambda piece: (piece, False)
        return rest

    def connection_lost(self, error: Exception | None) -> None:
        ends_here = self._take is not None and not {"content-length", "transfer-encoding"} & set(self._answer.headers)
        self._end("" if ends_here and error is None else "broken off by the server")

    def _end(self, failure: str) -> None:
        if not self.over.done():
            self._answer.failure = failure
            self.over.set_result(None)

    def abort(self) -> None:
        self.over.cancel()
        if self._transport is not None:
            self._transport.abort()


class _Counted:
    """A body whose length is known."""

    def __init__(self, n_bytes: int) -> None:
        self._n_left = n_bytes

    def take(self, data: bytes) -> tuple[bytes, bool]:
        self._n_left -= len(data)
        return data, self._n_left <= 0


class _Chunks:
    """A body in chunks, each with its length in front (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """(what of the body is there now, whether that was the last of it). Raises ValueError."""
        data = self._rest + data
        parts: list[bytes] = []
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            n_bytes = int(data[at:line_end].partition(b";")[0], 16)
            if n_bytes == 0:
                return b"".join(parts), True
            begin = line_end + 2
            if len(data) < begin + n_bytes + 2:
                break
            parts.append(data[begin : begin + n_bytes])
            at = begin + n_bytes + 2
        self._rest = data[at:]
        return b"".join(parts), False
