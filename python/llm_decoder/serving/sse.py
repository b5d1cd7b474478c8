"""Server-sent events, the one encoder of both servers (HTML living standard, section 9.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

__all__ = ["DONE", "HEADERS", "MEDIA_TYPE", "PING", "Chunk", "encode"]

MEDIA_TYPE = "text/event-stream; charset=utf-8"
# Proxies that would collect a stream before they pass it on are asked not to.
HEADERS = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event. data: JSON text, or what is to become it. event: its name, None = "message". id: where a reader that
    comes back goes on."""

    data: Any
    event: str | None = None
    id: int | None = None


def encode(chunk: Chunk) -> bytes:
    # A token is an event, and this is four times as fast as the standard library. What is no number becomes null.
    data = chunk.data.encode() if isinstance(chunk.data, str) else to_json(chunk.data, inf_nan_mode="null")
    name = b"event: %b\n" % chunk.event.encode() if chunk.event else b""
    number = b"id: %d\n" % chunk.id if chunk.id is not None else b""
    # JSON has no line breaks outside of its strings, where they are escaped.
    return b"%b%bdata: %b\n\n" % (name, number, data)
