"""A server without a network: requests of httpx clients go to the endpoints and nowhere else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote

from llm_decoder.serving.calls import RunningCall
from llm_decoder.serving.errors import HttpError, as_http_error
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.serving.service import Service

__all__ = ["DirectServer", "http_library", "ready_service", "transport"]


def ready_service(llm: Any, settings: Any = None) -> Service:
    service = Service(lambda: llm, settings)
    service.start()
    assert service.wait(30)
    return service


class DirectServer:
    """What a transport of api/ and web/ does, one request at a time."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._routes = [(endpoint, _pattern(endpoint)) for endpoint in all_endpoints()]

    def answer(self, incoming: Incoming) -> tuple[Reply, Iterator[bytes] | None]:
        """(The reply, the parts of its body when it is a stream)."""
        try:
            return self._answer(incoming)
        except Exception as error:  # noqa: BLE001 - as a server does
            return as_http_error(error).reply(), None

    def _answer(self, incoming: Incoming) -> tuple[Reply, Iterator[bytes] | None]:
        endpoint, parameters = self._find(incoming)
        incoming = Incoming(
            incoming.method, incoming.path, "request-1", incoming.headers, incoming.query, parameters, incoming.body
        )
        planned = endpoint.handle(self.service, incoming)
        if isinstance(planned, Reply):
            return planned, None
        running = self.service.run(planned)
        if planned.streamed is not None:
            return Reply(b"", 200, "text/event-stream", planned.headers), _parts(running)
        wake = threading.Event()
        running.on_items(wake.set)
        while not running.look():
            assert wake.wait(60)
            wake.clear()
        return running.reply(), None

    def _find(self, incoming: Incoming) -> tuple[Endpoint, dict[str, str]]:
        for endpoint, pattern in self._routes:
            match = pattern.fullmatch(incoming.path)
            if match and endpoint.method == incoming.method:
                return endpoint, match.groupdict()
        raise HttpError(404, f"no route {incoming.path}")

    # -- for tests that need no client

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON, headers); the JSON of a stream is the list of its events, a named one with its name as
        `event`."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._plain(Incoming("POST", path, "", {"content-type": "application/json"} | headers, body=raw))

    def get(self, path: str, **query: str) -> tuple[int, Any, dict[str, str]]:
        return self._plain(Incoming("GET", path, "", query=query))

    def _plain(self, incoming: Incoming) -> tuple[int, Any, dict[str, str]]:
        reply, parts = self.answer(incoming)
        if parts is None:
            return reply.status, json.loads(reply.body), dict(reply.headers)
        lines = b"".join(parts).decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return reply.status, [_event(lines_of_one) for lines_of_one in lines[:-2]], dict(reply.headers)


def _event(lines: str) -> Any:
    name, _, data = lines.rpartition("data: ")
    event = json.loads(data)
    return event | {"event": name.removeprefix("event: ").strip()} if name else event


def _parts(running: RunningCall) -> Iterator[bytes]:
    wake = threading.Event()
    running.on_items(wake.set)
    while True:
        yield running.events()
        if running.is_over:
            return
        assert wake.wait(60)
        wake.clear()


def _pattern(endpoint: Endpoint) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)(?::path)?\}", r"(?P<\1>.+)", endpoint.path))


def transport(server: DirectServer, httpx: Any) -> Any:
    """`httpx`: the module of the client, httpx or httpx2. The transport is for clients with and without asyncio."""

    def answer(request: Any, raw: bytes) -> tuple[Reply, Iterator[bytes] | None]:
        return server.answer(
            Incoming(
                request.method,
                unquote(request.url.path),
                "",
                {name.lower(): value for name, value in request.headers.items()},
                dict(parse_qsl(request.url.query.decode())),
                body=raw,
            )
        )

    class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, parts: Iterator[bytes]) -> None:
            self._parts = parts

        def __iter__(self) -> Iterator[bytes]:
            return self._parts

        async def __aiter__(self) -> Any:
            for part in self._parts:
                yield part

    def response(reply: Reply, parts: Iterator[bytes] | None) -> Any:
        headers = {"content-type": reply.media_type, **reply.headers}
        return httpx.Response(
            reply.status, headers=headers, stream=Body(iter([reply.body]) if parts is None else parts)
        )

    class Direct(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def handle_request(self, request: Any) -> Any:
            return response(*answer(request, request.read()))

        async def handle_async_request(self, request: Any) -> Any:
            return response(*answer(request, await request.aread()))

    return Direct()


def http_library() -> Any:
    """What the installed openai package speaks HTTP with: httpx, or httpx2 since its version 3."""
    from openai import _base_client

    return getattr(_base_client, "httpx2", None) or _base_client.httpx
