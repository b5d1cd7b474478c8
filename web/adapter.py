"""Endpoints on Flask: its requests as Incoming, our answers as its responses."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from llm_decoder.serving import sse
from llm_decoder.serving.calls import Call, EventStream, RunningCall
from llm_decoder.serving.errors import HttpError, as_http_error
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service

__all__ = ["mount"]

_LOG = logging.getLogger("llm_decoder.serving")
_POLL_S = 0.25  # how soon a client's hanging up is noticed in silence


def mount(app: Flask, service: Service, endpoints: Sequence[Endpoint]) -> None:
    """Puts the endpoints on `app`."""
    for endpoint in endpoints:
        app.add_url_rule(
            re.sub(r"\{(\w+)\}", r"<\1>", endpoint.path),
            endpoint=f"{endpoint.method} {endpoint.path}",
            view_func=_view(service, endpoint),
            methods=[endpoint.method],
            provide_automatic_options=False,
        )
    accesses = {f"{endpoint.method} {endpoint.path}": endpoint.access for endpoint in endpoints}
    app.before_request(lambda: _admit(service, accesses))
    app.register_error_handler(Exception, _answer_error)
    app.after_request(lambda response: _finish(service, response))


def _view(service: Service, endpoint: Endpoint) -> Callable[..., Response]:
    def view(**path_parameters: str) -> Response:
        incoming = _incoming(path_parameters, request.get_data())
        answer = endpoint.handle(service, incoming)
        if isinstance(answer, Reply):
            return _response(answer)
        if not isinstance(answer, Call):
            return _stream(answer, service)
        running = service.run(answer)
        if answer.stream:
            return _stream(running, service)
        return _response(_wait(running))

    return view


def _admit(service: Service, accesses: Mapping[str, Literal["key", "open"]]) -> Response | None:
    """Asks the guard before anything else of a request is looked at."""
    g.request_id = _request_id()
    incoming = _incoming({}, b"")
    preflight = service.guard.preflight(incoming)
    if preflight is not None:
        return _response(preflight)
    service.guard.check(incoming, accesses.get(request.endpoint or "", "key"))
    return None


def _request_id() -> str:
    """The client's own name for the request, where it is a plain one."""
    given = request.headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else secrets.token_hex(8)


def _incoming(path_parameters: Mapping[str, str], body: bytes) -> Incoming:
    return Incoming(
        method=request.method,
        path=request.path,
        request_id=g.request_id,
        headers={name.lower(): value for name, value in request.headers.items()},
        query=request.args.to_dict(),
        path_parameters=path_parameters,
        body=body,
        client=request.remote_addr or "",
    )


def _wait(running: RunningCall) -> Reply:
    """The answer of a call; the call ends when its client hangs up."""
    is_gone = _gone()
    woken = threading.Event()
    running.on_items(woken.set)
    while not running.look():
        woken.wait(_POLL_S)
        woken.clear()
        if is_gone():
            running.cancel()
            raise HttpError(499, "[client] it has hung up")
    return running.reply()


def _stream(stream: EventStream, service: Service) -> Response:
    body = _Body(stream, service.settings.ping_s, _gone())
    return Response(body, headers={"content-type": sse.MEDIA_TYPE, **sse.HEADERS, **stream.headers})


class _Body(Iterator[bytes]):
    """A stream as WSGI sends it, chunk by chunk, with a comment where it is silent. `close` is called however it
    ends."""

    def __init__(self, stream: EventStream, ping_s: float, is_gone: Callable[[], bool]) -> None:
        self._stream = stream
        self._ping_s = ping_s
        self._is_gone = is_gone
        self._woken = threading.Event()
        self._has_begun = False

    def __next__(self) -> bytes:
        if not self._has_begun:
            self._has_begun = True
            self._stream.on_items(self._woken.set)
        silent_until_s = time.monotonic() + self._ping_s
        while True:
            self._woken.clear()
            data = self._stream.events()
            if data:
                return data
            if self._stream.is_over or self._is_gone():
                raise StopIteration
            if time.monotonic() >= silent_until_s:
                return sse.PING
            self._woken.wait(min(_POLL_S, self._ping_s))

    def close(self) -> None:
        if not self._stream.is_over:
            self._stream.cancel()


def _gone() -> Callable[[], bool]:
    """Whether the client has hung up, as far as the server tells."""
    found: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return found


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, {"content-type": reply.media_type, **reply.headers})


def _answer_error(error: Exception) -> Response:
    if isinstance(error, HTTPException):
        status = error.code or 500
        headers = {"allow": str(error.get_response().headers["Allow"])} if status == 405 else {}
        return _response(HttpError(status, f"[http] {error.name.lower()}", headers=headers).reply())
    told = as_http_error(error)
    if told.status == 500:
        _LOG.error("%s %s failed", request.method, request.path, exc_info=error)
    return _response(told.reply())


def _finish(service: Service, response: Response) -> Response:
    response.headers.setdefault("x-content-type-options", "nosniff")
    response.headers["x-request-id"] = g.request_id
    for name, value in service.guard.cors_headers(_incoming({}, b"")).items():
        response.headers[name] = value
    return response
