"""A hub on loopback: serves folders as models in the few routes that huggingface_hub asks for, and notes requests."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


class StandInHub:
    """`models` maps "owner/name" to a folder. `requests` are the method and path of all that was asked."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.models = models
        self.requests: list[str] = []
        self.status: int | None = None  # answer everything with this instead
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {line.rpartition("/")[2] for line in self.requests if line.startswith("GET") and "/resolve/" in line}

    def __enter__(self) -> StandInHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status is not None:
            self._send(self.hub.status, b"{}", with_body)
            return
        if path.startswith("api/models/"):
            self._describe(path.removeprefix("api/models/"), with_body)
            return
        model, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        file = self.hub.models.get(model, Path("absent")) / name
        if not file.is_file():
            missing = "EntryNotFound" if model in self.hub.models else "RepoNotFound"
            self._send(404, b"", with_body, {"X-Error-Code": missing, "X-Repo-Commit": _commit(model)})
            return
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": _commit(model)}
        self._send(200, data, with_body, headers)

    def _describe(self, rest: str, with_body: bool) -> None:
        model = "/".join(rest.split("/")[:2])
        if model not in self.hub.models:
            self._send(404, b'{"error": "Repository not found"}', with_body, {"X-Error-Code": "RepoNotFound"})
            return
        files = sorted(path for path in self.hub.models[model].iterdir() if path.is_file())
        answer: Any
        if "/tree/" in rest:
            answer = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _oid(path)} for path in files
            ]
        else:
            siblings = [{"rfilename": path.name} for path in files]
            answer = {"id": model, "modelId": model, "sha": _commit(model), "siblings": siblings, "private": False}
        self._send(200, json.dumps(answer).encode(), with_body, {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _commit(model: str) -> str:
    return hashlib.sha1(model.encode()).hexdigest()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
