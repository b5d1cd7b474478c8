"""The FastAPI application over a service: every endpoint of both servers, behind the door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Mapping

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

import llm_decoder
from llm_decoder.api.door import Door, starlette_path
from llm_decoder.api.drain import drain_on_signals
from llm_decoder.api.transport import EndpointApp, Transport
from llm_decoder.serving import openapi
from llm_decoder.serving.errors import HttpError, no_method, no_route
from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.service import Service

__all__ = ["create_app"]


def create_app(
    service: Service, extra_endpoints: Iterable[Endpoint] = (), *, endpoints: Iterable[Endpoint] | None = None
) -> FastAPI:
    """An ASGI application. Its start begins to load the model and does not wait for it; its end closes the service.

    extra_endpoints: beside those of routes.all_endpoints(), such as the page's; endpoints: instead of those.
    """
    if endpoints is None:
        from llm_decoder.serving.routes import all_endpoints

        endpoints = all_endpoints()
    table = (*endpoints, *extra_endpoints)
    transport = Transport(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _keep_queries_out_of_the_log()
        service.start()
        with drain_on_signals(service):
            yield
        await asyncio.to_thread(service.close, 0.0)
        transport.close()

    app = FastAPI(
        title="llm_decoder",
        version=llm_decoder.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.openapi = lambda: openapi.document(table)  # type: ignore[method-assign]
    paths: dict[str, dict[str, EndpointApp]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, {})[endpoint.method] = EndpointApp(transport, endpoint)
    for path, methods in paths.items():
        # One route a path: it knows all of its methods when another one is asked for.
        app.router.routes.append(Route(starlette_path(path), _ByMethod(methods), methods=list(methods)))
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Door, service=service, endpoints=table)
    return app


class _ByMethod:
    """The endpoints of one path."""

    def __init__(self, methods: Mapping[str, EndpointApp]) -> None:
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._methods[method](scope, receive, send)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 405:  # starlette names the methods of the first route that fits the path
        routes = [route for route in request.app.routes if isinstance(route, Route)]
        fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        told = no_method(request.method, path, {method for route in fitting for method in route.methods or ()})
    elif error.status_code == 404:
        told = no_route(path)
    else:
        told = HttpError(error.status_code, "[request] refused", headers=error.headers)
    reply = told.reply()
    return Response(reply.body, reply.status, dict(reply.headers), reply.media_type)


def _keep_queries_out_of_the_log() -> None:
    """A query may hold a prompt; uvicorn would write it down."""
    logging.getLogger("uvicorn.access").addFilter(_without_query)


def _without_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, *rest = record.args
        record.args = (client, method, str(path).partition("?")[0], *rest)
    return True
