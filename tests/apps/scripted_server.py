"""A server of the OpenAI API that says what it was told to say, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "scripted", "object": "model"}]}


@dataclass
class Reply:
    """pieces: of the body, each sent by itself, in a chunk unless is_raw. before: called before each piece.
    is_cut: the connection ends without the last chunk."""

    pieces: Iterable[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[int], None] = lambda index: None
    is_cut: bool = False


def of_json(value: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply([json.dumps(value).encode()], status, {"content-type": "application/json"} | named)


def refusal(status: int, message: str, code: str | None = None, param: str | None = None, **headers: str) -> Reply:
    return of_json({"error": {"message": message, "code": code, "param": param}}, status, **headers)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream(*chunks: Any, is_done: bool = True, **options: Any) -> Reply:
    headers = {"content-type": "text/event-stream"} | options.pop("headers", {})
    return Reply([*map(event, chunks), *([DONE] if is_done else [])], headers=headers, **options)


def completion(*texts: str, n_prompt: int = 3, **first: Any) -> list[dict[str, Any]]:
    """The chunks of an answer, a text each, and its usage."""
    choices = [
        {"index": 0, "text": text, "token_ids": [i], "finish_reason": "stop" if i == len(texts) - 1 else None}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": n_prompt, "completion_tokens": len(texts)}
    choices[0] |= first
    return [*({"choices": [choice]} for choice in choices), {"choices": [], "usage": usage}]


def chat(*texts: str, reasoning: str = "") -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": reasoning}] if reasoning else []
    deltas += [{"content": text} for text in texts]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    return [*chunks, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(texts)}}]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class ScriptedServer:
    """`replies` are given in their order, the last one again and again; GET /v1/models has its own. `asked`: the POSTs.
    `is_cut`: set when a client went away before it had read all."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.models: list[Reply] = [of_json(MODELS)]
        self.asked: list[Asked] = []
        self.looked: list[Asked] = []
        self.is_cut = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def take(self, asked: Asked) -> Reply:
        with self._lock:
            is_post = asked.method == "POST"
            (self.asked if is_post else self.looked).append(asked)
            left = self.replies if is_post else self.models
            return left.pop(0) if len(left) > 1 else left[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, body: Any) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = server.take(Asked(self.command, self.path, headers, body))
                self.send_response(reply.status)
                for name, value in ({"transfer-encoding": "chunked"} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for index, piece in enumerate(reply.pieces):
                        reply.before(index)
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    if reply.is_cut:
                        self.close_connection = True
                    else:
                        self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    server.is_cut.set()
                    self.close_connection = True

            def log_message(self, format: str, *arguments: Any) -> None: ...

        return Handler
