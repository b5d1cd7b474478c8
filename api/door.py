"""The door of the FastAPI server: every request gets its id, passes the guard, and leaves a line in the log; every
error becomes an answer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_decoder.api.body import Disconnected, discard_body
from llm_decoder.api.transport import send_reply
from llm_decoder.serving.errors import as_http_error
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.limits import check_headers, query_fields
from llm_decoder.serving.logs import LOGGER, RequestLine, request_id_of
from llm_decoder.serving.service import Service

__all__ = ["Door", "starlette_path"]


class Door:
    """An ASGI middleware, the outermost. Routes that are none of the endpoints, such as those that a program has added
    to the application, need a key too."""

    def __init__(self, app: ASGIApp, service: Service, endpoints: Iterable[Endpoint]) -> None:
        self._app = app
        self._service = service
        self._open = [
            (_methods(endpoint.method), compile_path(starlette_path(endpoint.path))[0])
            for endpoint in endpoints
            if endpoint.access == "open"
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        headers = _headers(scope)
        line = RequestLine(request_id_of(headers), scope["method"], scope["path"], (scope.get("client") or ("",))[0])
        sender = _Sender(scope, receive, send, headers, line)
        try:
            await self._let_in(scope, receive, sender, headers)
        except Disconnected:
            line.end = "cancelled"
        except Exception as error:  # noqa: BLE001 - the door answers for whatever is raised behind it
            await _answer(error, sender)
        except BaseException:
            line.end = "cancelled"
            raise
        finally:
            line.duration_s = time.monotonic() - started_s
            line.write()

    async def _let_in(self, scope: Scope, receive: Receive, sender: _Sender, headers: dict[str, str]) -> None:
        """Raises HttpError."""
        line = sender.line
        check_headers(scope["headers"], self._service.settings)
        query = query_fields(scope["query_string"])
        incoming = Incoming(line.method, line.path, line.request_id, headers, query, client=line.client)
        guard = self._service.guard
        sender.headers |= guard.cors_headers(incoming)
        preflight = guard.preflight(incoming)
        if preflight is not None:
            await send_reply(preflight, sender)
            return
        guard.check(incoming, self._access(line.method, line.path))
        state = scope.setdefault("state", {})
        state |= {"line": line, "incoming": incoming}
        await self._app(scope, receive, sender)

    def _access(self, method: str, path: str) -> Literal["key", "open"]:
        is_open = any(method in methods and pattern.fullmatch(path) for methods, pattern in self._open)
        return "open" if is_open else "key"


async def _answer(error: Exception, sender: _Sender) -> None:
    told = as_http_error(error)
    sender.line.code = told.code
    if told is not error and told.status == 500:  # what ends the engine is in the log once
        LOGGER.error("request failed", exc_info=error, extra={"fields": {"request_id": sender.line.request_id}})
    if sender.has_begun:
        sender.line.end = "failed"
    else:
        await send_reply(told.reply(), sender)


class _Sender:
    """`send`, with what every answer has, and what the log wants to know of it."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_headers: dict[str, str], line: RequestLine
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_headers = request_headers
        self.line = line
        self.has_begun = False
        self.headers = {"x-request-id": line.request_id, "x-content-type-options": "nosniff"}

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self.line.status = message["status"]
            if message["status"] >= 400 and not await self._is_read():
                self.headers["connection"] = "close"
            self._note(message)
        else:
            self.line.n_sent_bytes += len(message.get("body", b""))
        await self._send(message)

    async def _is_read(self) -> bool:
        is_read: bool = self._scope.get("state", {}).get("is_read", False)
        return is_read or await discard_body(self._receive, self._request_headers)

    def _note(self, message: Message) -> None:
        given: dict[bytes, bytes] = dict(message.get("headers", ()))
        more = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        message["headers"] = [*message.get("headers", ()), *(pair for pair in more if pair[0] not in given)]
        ignored = given.get(b"x-ignored-fields")
        self.line.ignored_fields = None if ignored is None else ignored.decode("latin-1")


def starlette_path(path: str) -> str:
    """A name at the end of a path may have slashes; it is not empty."""
    return f"{path[:-1]}:hub_id}}" if path.endswith("}") else path


class _HubId(Convertor[str]):
    regex = ".+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("hub_id", _HubId())


def _methods(method: str) -> set[str]:
    return {"GET", "HEAD"} if method == "GET" else {method}


def _headers(scope: Scope) -> dict[str, str]:
    """One value a name, as RFC 9110, section 5.3, joins them."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joint = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{joint}{value}" if name in headers else value
    return headers
