"""The routes as an OpenAPI 3.1 document, for programs at /openapi.json and for people at /docs."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["document", "endpoints_of"]

_PARAMETER = re.compile(r"\{(\w+)\}")
_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# Before OpenAPI 3.2 a stream's schema tells of each event.
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "JSON, or [DONE]"}},
}
_ERROR_RESPONSE = {
    "description": "Refused, or failed: `message` says why, `param` names the field at fault",
    "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}},
}


def endpoints_of(table: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The two routes that tell of all routes in `table`."""
    described = functools.cache(lambda: document(table))

    def show_document(service: Service, incoming: Incoming) -> Reply:
        return Reply.of_json(described())

    def show_page(service: Service, incoming: Incoming) -> Reply:
        policy = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        return Reply(
            _page(described()).encode(),
            media_type="text/html; charset=utf-8",
            headers={"content-security-policy": policy},
        )

    return (
        Endpoint("GET", "/openapi.json", show_document, "All routes as an OpenAPI document"),
        Endpoint("GET", "/docs", show_page, "All routes as a page"),
    )


def document(table: Sequence[Endpoint]) -> dict[str, Any]:
    from pydantic.json_schema import models_json_schema

    import llm_decoder

    models: dict[tuple[type[BaseModel], Literal["validation", "serialization"]], None] = {}
    for endpoint in table:
        if endpoint.request is not None:
            models[endpoint.request, "validation"] = None
        if endpoint.response is not None:
            models[endpoint.response, "serialization"] = None
    references, definitions = models_json_schema(list(models), ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        operations = paths.setdefault(endpoint.path, {})
        operations[endpoint.method.lower()] = _operation(endpoint, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm_decoder", "version": llm_decoder.__version__},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, references: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}_{endpoint.path}").strip("_"),
        "summary": endpoint.summary,
        "responses": {"200": _response(endpoint, references), "4XX": _ERROR_RESPONSE, "5XX": _ERROR_RESPONSE},
        "security": [{"key": []}] if endpoint.access == "key" else [],
    }
    names = _PARAMETER.findall(endpoint.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if endpoint.request is not None:
        schema = references[endpoint.request, "validation"]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _response(endpoint: Endpoint, references: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.response is not None:
        content["application/json"] = {"schema": references[endpoint.response, "serialization"]}
    if endpoint.request is not None and "stream" in endpoint.request.model_fields:
        content["text/event-stream"] = {"schema": _EVENT}
    return {"description": "The answer", "content": content or {"*/*": {}}}


def _page(described: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(method.upper())}</code><td><code>{html.escape(path)}</code>"
        f"<td>{html.escape(operation['summary'])}<td>{'key' if operation['security'] else 'open'}"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>llm_decoder: routes</title><h1>Routes</h1>"
        "<p>Fields and types are in <a href='openapi.json'>openapi.json</a>.</p>"
        f"<table><tr><th>method<th>path<th>what it does<th>access{''.join(rows)}</table></html>"
    )
