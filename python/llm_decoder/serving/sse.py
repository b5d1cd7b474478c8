"""Server-sent events, the one encoder of both servers (HTML living standard, section 9.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["DONE", "HEADERS", "MEDIA_TYPE", "PING", "Chunk", "encode"]

MEDIA_TYPE = "text/event-stream; charset=utf-8"
# Proxies that would collect a stream before they pass it on are asked not to.
HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event. data: JSON text, or what is to become it. event: its name, None = "message". id: where a reader that
    comes back goes on."""

    data: Any
    event: str | None = None
    id: int | None = None


def encode(chunk: Chunk) -> bytes:
    data = chunk.data
    if not isinstance(data, str):
        data = _to_json(data)
    name = f"event: {chunk.event}\n" if chunk.event else ""
    number = f"id: {chunk.id}\n" if chunk.id is not None else ""
    # JSON has no line breaks outside of its strings, where they are escaped.
    return f"{name}{number}data: {data}\n\n".encode()
