"""Both servers as they run, on free ports over real sockets, each over the real engine, the embedded model's tokenizer
and scripted logits; and a client that sends bytes of any kind."""

from __future__ import annotations

import json
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scripted_model import ScriptedModel

from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

HANG_S = 60.0
MESSAGES = [{"role": "user", "content": "a"}]


@dataclass(frozen=True)
class Answer:
    """status 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        return error


class Running(ABC):
    """A server with its model; subclasses say which."""

    def __init__(self, **settings: Any) -> None:
        self.model = ScriptedModel()
        self.service = Service(lambda: self.model.llm, ServerSettings(**{"port": 0} | settings))
        self.port = self._serve()
        self.service.start()
        assert self.service.wait(HANG_S)

    @abstractmethod
    def _serve(self) -> int:
        """Begins; its port."""

    @abstractmethod
    def end(self) -> None:
        """Stops it, and waits until it has."""

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)

    def say(self, *parts: bytes) -> Answer:
        """What is answered first to bytes that may be anything."""
        with self.connect() as client:
            try:
                for part in parts:
                    client.sendall(part)
            except OSError:
                pass  # it has heard enough; what it has answered can still be read
            return read_answer(client)

    def ask(self, method: str, target: str, body: bytes | None = None, headers: Iterable[str] = ()) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", f"host: 127.0.0.1:{self.port}", "connection: close", *headers]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        return self.say(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))

    def post(self, target: str, body: Any, headers: Iterable[str] = ()) -> Answer:
        """body: JSON, or bytes as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", target, raw, ["content-type: application/json", *headers])

    def serves_the_next(self) -> bool:
        answer = self.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        return answer.status == 200 and answer.json()["usage"]["completion_tokens"] == 1


def read_answer(client: socket.socket) -> Answer:
    return _read(client, b"")


def _read(client: socket.socket, raw: bytes) -> Answer:
    """The final one, up to the end that its length says, or the connection's."""
    try:
        while b"\r\n\r\n" not in raw:
            data = client.recv(65536)
            if not data:
                return Answer(0, {}, raw)
            raw += data
        head, _, body = raw.partition(b"\r\n\r\n")
        if head.split()[1] == b"100":
            return _read(client, body)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 1 << 40)):
            data = client.recv(65536)
            if not data:
                break
            body += data
    except ConnectionError:
        return Answer(0, {}, raw)
    return Answer(int(first.split()[1]), headers, body)


class Api(Running):
    """FastAPI under uvicorn."""

    def _serve(self) -> int:
        import uvicorn

        from llm_decoder.api.app import create_app
        from llm_decoder.api.protocol import GuardedProtocol
        from llm_decoder.web import page

        listener = socket.create_server(("127.0.0.1", 0))
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                create_app(self.service, page.endpoints()),
                http=GuardedProtocol.of(self.service.settings),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._thread = threading.Thread(target=self._uvicorn.run, args=([listener],), daemon=True)
        self._thread.start()
        return int(listener.getsockname()[1])

    def end(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


class Web(Running):
    """Flask under waitress."""

    def _serve(self) -> int:
        from llm_decoder.web.app import create_app
        from llm_decoder.web.server import Server

        self._server = Server(create_app(self.service), self.service)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        return self._server.port

    def end(self) -> None:
        self._server.stop(0.0)
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
