"""A client that talks to an ASGI application without a socket: it can say its body in parts, fall silent, hang up, and
look at what has come so far."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

HOST = "127.0.0.1:8000"


class Exchange:
    """One request and its answer."""

    def __init__(
        self,
        app: Any,
        method: str,
        target: str,
        *,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        is_whole: bool = True,
    ) -> None:
        """is_whole: otherwise the client falls silent after `body` and its last part never comes."""
        self._parts = [body] if isinstance(body, bytes) else list(body)
        self._is_whole = is_whole
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.is_complete = False
        path, _, query = target.partition("?")
        named = {"host": HOST, **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._parts and (len(self._parts) > 1 or self._is_whole):
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.chunks += [message["body"]] if message["body"] else []
            self.is_complete = not message.get("more_body", False)
        self._news.set()

    def hang_up(self) -> None:
        self._gone.set()

    async def chunk(self, n: int) -> bytes:
        """The n-th chunk of the answer, once it is there."""
        while len(self.chunks) <= n:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 60)
        return self.chunks[n]

    async def end(self) -> Exchange:
        await asyncio.wait_for(self.task, 60)
        return self

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of the server-sent events, a named one with its name as `event`; "[DONE]" as it is, comments left
        out."""
        assert self.body.endswith(b"\n\n")
        lines = [block for block in self.body.decode().split("\n\n") if block and not block.startswith(":")]
        return [_event(block) for block in lines]


def _event(block: str) -> Any:
    name, _, text = block.rpartition("data: ")
    assert name == "" or name.startswith("event: ")
    data = text if text == "[DONE]" else json.loads(text)
    return data | {"event": name.removeprefix("event: ").strip()} if name else data


async def ask(
    app: Any,
    method: str,
    target: str,
    *,
    json_body: Any = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """The whole answer to a whole request."""
    data = body if json_body is None else json.dumps(json_body).encode()
    return await Exchange(app, method, target, body=data, headers=headers).end()
