"""The body of a request, read whole: within its size, its time, and the room that there is for bodies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.types import Receive

from llm_decoder.serving.limits import Admission, body_too_large, declared_length, too_slow
from llm_decoder.serving.settings import ServerSettings

__all__ = ["Disconnected", "discard_body", "read_body"]

# A client that writes first and reads then gets to see why it is refused, if what it still writes is no more than this.
_DISCARDED_BYTES = 32 << 20
_DISCARD_S = 2.0


class Disconnected(Exception):
    """The client went away before it had said all."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], settings: ServerSettings, admission: Admission
) -> bytes:
    """Raises HttpError 400, 408, 413 or 429, or Disconnected. What it returns is held: Admission.release lets it go."""
    declared_length(headers, settings)
    body = bytearray()
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                if len(body) + len(part) > settings.max_body_bytes:
                    raise body_too_large(settings.max_body_bytes)
                admission.hold(len(part))
                body += part
                more = message.get("more_body", False)
    except TimeoutError:
        admission.release(len(body))
        raise too_slow(settings) from None
    except BaseException:
        admission.release(len(body))
        raise
    return bytes(body)


async def discard_body(receive: Receive, headers: Mapping[str, str]) -> bool:
    """Reads on for a moment what is thrown away: a connection that is closed while the client writes would take the
    answer with it. Who asks whether to go on (expect: 100-continue) is answered instead. Whether nothing is left."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return True
    if "expect" in headers:
        return False
    n_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while n_bytes < _DISCARDED_BYTES:
                message = await receive()
                n_bytes += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
    return False
