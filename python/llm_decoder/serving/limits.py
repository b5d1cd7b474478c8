"""What a request may weigh before anybody reads it, and how many may be inside at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.memory import give_back
from llm_decoder.serving.settings import ServerSettings

__all__ = [
    "Admission",
    "body_too_large",
    "check_headers",
    "declared_length",
    "headers_too_large",
    "query_fields",
    "too_slow",
]

# Bodies that are held at the same time, over all requests, in units of the largest one.
_BODIES_AT_ONCE = 32
_LARGE_BODY_BYTES = 1 << 18  # reading one of so many is worth tidying up after
_MAX_QUERY_FIELDS = 100


class Admission:
    """Counts the requests that are inside, and the bytes of their bodies: what a burst makes us hold has a bound. Safe
    to use from several threads."""

    def __init__(self, settings: ServerSettings) -> None:
        self._max_requests = settings.max_requests
        self._max_bytes = _BODIES_AT_ONCE * settings.max_body_bytes
        self._lock = threading.Lock()
        self._n_requests = 0
        self._n_bytes = 0
        self.n_refused = 0

    @property
    def n_requests(self) -> int:
        return self._n_requests

    def enter(self) -> None:
        """Raises HttpError 429 where there is no room; else `leave` must follow."""
        with self._lock:
            if self._n_requests >= self._max_requests:
                self.n_refused += 1
                raise _full(f"{self._n_requests} requests wait or run, as many as it takes")
            self._n_requests += 1

    def leave(self, n_bytes: int = 0) -> None:
        """n_bytes: what it still holds."""
        with self._lock:
            self._n_requests -= 1
            self._n_bytes -= n_bytes

    def hold(self, n_bytes: int) -> None:
        """So many bytes of a body have come; `release` or `leave` must follow. Raises HttpError 429."""
        with self._lock:
            if self._n_bytes + n_bytes > self._max_bytes:
                self.n_refused += 1
                raise _full("too many large requests are inside")
            self._n_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        with self._lock:
            self._n_bytes -= n_bytes
        if n_bytes >= _LARGE_BODY_BYTES:
            give_back()


def _full(why: str) -> HttpError:
    return HttpError(429, f"[server] {why}; try again later", code="queue_full", retry_after_s=1)


def check_headers(headers: Iterable[tuple[bytes, bytes]], settings: ServerSettings) -> None:
    """Raises HttpError 431."""
    n_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    if n_bytes > settings.max_header_bytes:
        raise headers_too_large(settings.max_header_bytes)


def declared_length(headers: Mapping[str, str], settings: ServerSettings) -> int | None:
    """content-length, None when there is none. Raises HttpError 400, or 413 when it is too much already."""
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise HttpError(400, "[content-length] need a number of bytes", code="bad_content_length")
    if int(text) > settings.max_body_bytes:
        raise body_too_large(settings.max_body_bytes)
    return int(text)


def body_too_large(max_bytes: int) -> HttpError:
    return HttpError(413, f"[body] need at most {max_bytes} bytes, got more", code="body_too_large")


def headers_too_large(max_bytes: int) -> HttpError:
    return HttpError(431, f"[headers] need at most {max_bytes} bytes, got more", code="headers_too_large")


def query_fields(text: bytes) -> dict[str, str]:
    """The fields of a URL's query; of those with one name the last. Raises HttpError 400."""
    try:
        pairs = parse_qsl(
            text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS
        )
    except ValueError:
        raise HttpError(400, f"[query] need at most {_MAX_QUERY_FIELDS} fields in UTF-8", code="bad_query") from None
    return dict(pairs)


def too_slow(settings: ServerSettings) -> HttpError:
    return HttpError(
        408, f"[body] need the whole request within {settings.read_timeout_s:g} s, got less", code="body_too_slow"
    )
