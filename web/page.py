"""The page's endpoints, for both servers: its files, its log-in, and its answers."""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import resources
from typing import Any

from llm_decoder.sampling import BUILT_IN_DEFAULTS, SamplingParams
from llm_decoder.serving.calls import EventStream
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service
from llm_decoder.web import highlight
from llm_decoder.web.page_events import PageEvents
from llm_decoder.web.page_stream import PageStream, PageStreams
from llm_decoder.web.rendering import render_blocks

__all__ = ["endpoints"]

# Everything comes from this server: no inline scripts or styles, no other origin, no frame around the page.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
PAGE_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
HIGHLIGHT_FILE = "highlight.css"


def endpoints() -> tuple[Endpoint, ...]:
    """The page's routes, with the answers that they keep."""
    streams = PageStreams()
    return (
        Endpoint("GET", "/", show_page, "The chat page", access="open"),
        Endpoint("GET", "/static/{name}", show_file, "A file of the chat page", access="open"),
        Endpoint("POST", "/login", log_in, "Opens a session of the page with a key", access="open"),
        Endpoint("POST", "/logout", log_out, "Ends a session of the page", access="open"),
        Endpoint("GET", "/page/session", show_session, "What the page has to know", access="open"),
        Endpoint("POST", "/page/stream", functools.partial(start_stream, streams), "An answer for the page"),
        Endpoint("GET", "/page/stream/{id}", functools.partial(resume_stream, streams), "The rest of an answer"),
        Endpoint("POST", "/page/stream/{id}/stop", functools.partial(stop_stream, streams), "Ends an answer"),
        Endpoint("POST", "/page/render", render, "Markdown as the page shows it"),
    )


# -- files


def show_page(service: Service, incoming: Incoming) -> Reply:
    return _file(incoming, _read("templates", "index.html"), "text/html; charset=utf-8", PAGE_HEADERS)


def show_file(service: Service, incoming: Incoming) -> Reply:
    name = incoming.path_parameters["name"]
    suffix = name[name.rfind(".") :] if "." in name else ""
    if name == HIGHLIGHT_FILE:
        body = highlight.style_sheet().encode()
    elif suffix in MEDIA_TYPES and name in _static_names():
        body = _read("static", name)
    else:
        raise HttpError(404, "[static] there is no such file", code="no_such_file")
    return _file(incoming, body, MEDIA_TYPES[suffix], {})


def _static_names() -> set[str]:
    return {entry.name for entry in resources.files("llm_decoder.web").joinpath("static").iterdir() if entry.is_file()}


def _read(folder: str, name: str) -> bytes:
    return resources.files("llm_decoder.web").joinpath(folder, name).read_bytes()


def _file(incoming: Incoming, body: bytes, media_type: str, headers: dict[str, str]) -> Reply:
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    headers = headers | {"etag": tag, "cache-control": "no-cache"}
    if tag in incoming.headers.get("if-none-match", ""):
        return Reply(b"", 304, media_type, headers)
    return Reply(body, 200, media_type, headers)


# -- the session


def show_session(service: Service, incoming: Incoming) -> Reply:
    """{needs_key, csrf, model, max_model_len, defaults}; model: null while it is being loaded, and for who has no
    key."""
    return Reply.of_json(
        {
            "needs_key": False,
            "csrf": "",
            "model": service.model_name,
            "max_model_len": service.llm.max_model_len,
            "defaults": dict(BUILT_IN_DEFAULTS),
        },
        headers={"cache-control": "no-store"},
    )


def log_in(service: Service, incoming: Incoming) -> Reply:
    raise HttpError(404, "[login] this server has no key")


def log_out(service: Service, incoming: Incoming) -> Reply:
    return Reply.of_json({"logged_out": True})


# -- answers


def start_stream(streams: PageStreams, service: Service, incoming: Incoming) -> EventStream:
    body = _json_object(incoming.body)
    messages = body.pop("messages", None)
    is_continued = bool(body.pop("continue_final_message", False))
    params = SamplingParams.from_dict({"max_tokens": None} | body)
    llm = service.llm
    before = messages[-1]["content"] if is_continued else ""
    stream_id = streams.new_id()
    events = PageEvents(stream_id, service.model_name, llm.max_model_len, before)
    stream = PageStream(events, service.settings.resume_s, stream_id)
    options = {"continue_final_message": True} if is_continued else {}
    stream.start(llm.submit(messages, params, stream=True, sink=stream.put, **options))
    streams.add(stream)
    return stream.read()


def resume_stream(streams: PageStreams, service: Service, incoming: Incoming) -> EventStream:
    last_id = incoming.headers.get("last-event-id", "")
    after = int(last_id) if last_id.isascii() and last_id.isdigit() and len(last_id) < 10 else 0
    return _find(streams, incoming).read(after)


def stop_stream(streams: PageStreams, service: Service, incoming: Incoming) -> Reply:
    _find(streams, incoming).stop()
    return Reply.of_json({"stopped": True})


def _find(streams: PageStreams, incoming: Incoming) -> PageStream:
    stream = streams.get(incoming.path_parameters["id"])
    if stream is None:
        raise HttpError(404, "[stream] it is over, or nobody came back to it in time", code="no_such_stream")
    return stream


def render(service: Service, incoming: Incoming) -> Reply:
    return Reply.of_json({"blocks": render_blocks(_json_object(incoming.body)["text"])})


def _json_object(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise HttpError(400, "[body] need a JSON object")
    return value
