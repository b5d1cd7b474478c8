"""What comes in and what goes out, without a web framework: Incoming, Reply, Endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from pydantic import BaseModel

    from llm_decoder.serving.calls import Call, EventStream
    from llm_decoder.serving.service import Service

__all__ = ["Endpoint", "Incoming", "Reply"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """One HTTP request whose body is read whole. Names of headers are in lower case; client: the peer's address."""

    method: str
    path: str
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    path_parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is there at once."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        return cls(body, status, headers=headers or {})


Handler: TypeAlias = "Callable[[Service, Incoming], Reply | Call | EventStream]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of both servers. `handle` may take its time (it tokenizes, renders, compiles), so transports call it on a
    worker thread. It answers at once with a Reply; a Call is run; an EventStream, which runs already, is streamed as it
    is. path: "/v1/models/{model}"; a name at its end may have slashes, as hub ids do. access: "open" goes without a
    key. request, response: their schemas, for the documentation. Errors are HttpError, or the package's own
    (errors.as_http_error).
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handle: Handler
    summary: str
    request: type[BaseModel] | None = None
    response: type[BaseModel] | None = None
    access: Literal["key", "open"] = "key"
