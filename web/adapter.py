"""Endpoints on Flask: its requests as Incoming, our answers as its responses."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from llm_decoder.serving import sse
from llm_decoder.serving.calls import Call, EventStream, RunningCall
from llm_decoder.serving.errors import HttpError, as_http_error, no_method, no_route
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.limits import Admission, check_headers, declared_length, query_fields
from llm_decoder.serving.logs import LOGGER, RequestLine, request_id_of
from llm_decoder.serving.service import Service

__all__ = ["mount"]

_POLL_S = 0.25  # how soon a client's hanging up is noticed in silence


def mount(app: Flask, service: Service, endpoints: Sequence[Endpoint]) -> None:
    """Puts the endpoints on `app`, all behind the same guard and limits."""
    admission = service.admission
    app.url_map.merge_slashes = False  # a path with two of them is another path, and no redirect
    for endpoint in endpoints:
        app.add_url_rule(
            _pattern(endpoint.path),
            endpoint=f"{endpoint.method} {endpoint.path}",
            view_func=_view(service, admission, endpoint),
            methods=[endpoint.method],
            provide_automatic_options=False,
        )
    accesses = {f"{endpoint.method} {endpoint.path}": endpoint.access for endpoint in endpoints}
    app.before_request(lambda: _admit(service, admission, accesses))
    app.register_error_handler(Exception, _answer_error)
    app.after_request(lambda response: _finish(service, response))


def _pattern(path: str) -> str:
    """A name at the end of a path may have slashes: hub ids do."""
    return re.sub(r"\{(\w+)\}", r"<\1>", re.sub(r"\{(\w+)\}$", r"<path:\1>", path))


class _Visit:
    """One request from its first look to its last byte: its place, and its line in the log."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._admission: Admission | None = None
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.incoming = Incoming(
            method=request.method,
            path=request.path,
            request_id=request_id_of(headers),
            headers=headers,
            client=request.remote_addr or "",
        )
        self.line = RequestLine(self.incoming.request_id, request.method, request.path, self.incoming.client)
        self.stream: EventStream | None = None

    def enter(self, admission: Admission) -> None:
        """Raises HttpError 429 where there is no room for it. Again: nothing."""
        if self._admission is None:
            admission.enter()
            self._admission = admission

    def end(self) -> None:
        if self._admission is not None:
            self._admission.leave()
        if isinstance(self.stream, RunningCall):
            self.line.note_outputs(self.stream.outputs)
            if self.stream.error is not None:
                self.line.end = "failed"
        self.line.duration_s = time.monotonic() - self._began_s
        self.line.write()


def _visit() -> _Visit:
    visit: _Visit = g.visit
    return visit


def _admit(service: Service, admission: Admission, accesses: Mapping[str, Literal["key", "open"]]) -> Response | None:
    """Asks the guard before anything else of a request is looked at."""
    g.visit = visit = _Visit()
    settings = service.settings
    check_headers([(name.encode(), value.encode()) for name, value in visit.incoming.headers.items()], settings)
    visit.incoming = replace(visit.incoming, query=query_fields(request.query_string))
    preflight = service.guard.preflight(visit.incoming)
    if preflight is not None:
        return _response(preflight)
    service.guard.check(visit.incoming, accesses.get(request.endpoint or "", "key"))
    declared_length(visit.incoming.headers, settings)
    if request.url_rule is not None and request.method == "POST":
        visit.enter(admission)
    return None


def _view(service: Service, admission: Admission, endpoint: Endpoint) -> Callable[..., Response]:
    def view(**path_parameters: str) -> Response:
        with _body(service, admission) as body:
            incoming = replace(_visit().incoming, path_parameters=path_parameters, body=body)
            answer = endpoint.handle(service, incoming)
            running = service.run(answer, incoming) if isinstance(answer, Call) else answer
        if isinstance(running, Reply):
            return _response(running)
        _visit().stream = running
        if isinstance(running, RunningCall) and running.call.streamed is None:
            return _response(_wait(running))
        return _stream(running, service, admission)

    return view


@contextlib.contextmanager
def _body(service: Service, admission: Admission) -> Iterator[bytes]:
    """The request's body, counted while it is held. waitress has let in no more of it than it may have."""
    n_bytes = request.content_length or 0
    admission.hold(n_bytes)
    try:
        body = request.get_data(cache=False)
        if service.settings.log_prompts:
            _visit().line.body = body.decode("utf-8", "replace")
        yield body
    finally:
        admission.release(n_bytes)


def _wait(running: RunningCall) -> Reply:
    """The answer of a call; the call ends when its client hangs up."""
    visit, is_gone = _visit(), _gone()
    woken = threading.Event()
    running.on_items(woken.set)
    while not running.look():
        woken.wait(_POLL_S)
        woken.clear()
        if is_gone():
            running.cancel()
            visit.line.end = "cancelled"
            return Reply(b"", 499)
    return running.reply()


def _stream(stream: EventStream, service: Service, admission: Admission) -> Response:
    body = _Body(stream, service.settings.ping_s, _gone(), _visit().line)
    try:
        _visit().enter(admission)
        body.begin()
    except BaseException:
        body.close()
        raise
    return Response(body, headers={"content-type": sse.MEDIA_TYPE, **sse.HEADERS, **stream.headers})


class _Body(Iterator[bytes]):
    """A stream as WSGI sends it, chunk by chunk, with a comment where it is silent. `close` is called however it
    ends."""

    def __init__(self, stream: EventStream, ping_s: float, is_gone: Callable[[], bool], line: RequestLine) -> None:
        self._stream = stream
        self._ping_s = ping_s
        self._is_gone = is_gone
        self._line = line
        self._woken = threading.Event()
        self._first = b""

    def begin(self) -> None:
        """A call's greeting waits for its first token, or for a silence that is too long: what the engine raises before
        has a status of its own, and is raised here."""
        self._stream.on_items(self._woken.set)
        if isinstance(self._stream, RunningCall):
            end_s = time.monotonic() + self._ping_s
            while not self._woken.wait(self._poll_s) and time.monotonic() < end_s and not self._is_gone():
                pass
            self._first = self._stream.events()
            if self._stream.error is not None:
                raise self._stream.error

    def __next__(self) -> bytes:
        data, self._first = self._first or self._next(), b""
        self._line.n_sent_bytes += len(data)
        return data

    def _next(self) -> bytes:
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
            self._woken.wait(self._poll_s)

    @property
    def _poll_s(self) -> float:
        return min(_POLL_S, self._ping_s)

    def close(self) -> None:
        if not self._stream.is_over:
            self._line.end = "cancelled"
            self._stream.cancel()


def _gone() -> Callable[[], bool]:
    """Whether the client has hung up, as far as the server tells."""
    found: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return found


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, {"content-type": reply.media_type, **reply.headers})


def _answer_error(error: Exception) -> Response:
    told = _http_error(error)
    visit = _visit()
    visit.line.code = told.code
    if told is not error and told.status == 500:  # what ends the engine is in the log once
        LOGGER.error("request failed", exc_info=error, extra={"fields": {"request_id": visit.incoming.request_id}})
    return _response(told.reply())


def _http_error(error: Exception) -> HttpError:
    if not isinstance(error, HTTPException):
        return as_http_error(error)
    if isinstance(error, NotFound):
        return no_route(request.path)
    if isinstance(error, MethodNotAllowed):
        return no_method(request.method, request.path, error.valid_methods or ())
    return HttpError(error.code or 500, f"[http] {error.name.lower()}: {request.method[:20]} {request.path[:100]}")


def _finish(service: Service, response: Response) -> Response:
    visit = _visit()
    response.headers.setdefault("x-content-type-options", "nosniff")
    response.headers["x-request-id"] = visit.incoming.request_id
    for name, value in service.guard.cors_headers(visit.incoming).items():
        response.headers[name] = value
    visit.line.status = response.status_code
    visit.line.ignored_fields = response.headers.get("x-ignored-fields")
    if not response.is_streamed:
        visit.line.n_sent_bytes = response.calculate_content_length() or 0
    response.call_on_close(visit.end)
    return response
