"""The page's endpoints, for both servers: its files, its log-in, and its answers."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Any, cast

from llm_decoder.prompts import Prompt
from llm_decoder.serving.calls import Call, EventStream
from llm_decoder.serving.chat_prompt import chat_messages, template_options
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_amount, max_tokens_of
from llm_decoder.serving.request_params import request_params
from llm_decoder.serving.service import Service
from llm_decoder.web.page_events import PageEvents
from llm_decoder.web.page_stream import PageStream, PageStreams
from llm_decoder.web.rendering import render_blocks
from llm_decoder.web.schemas import AnswerRequest, EmptyRequest, LoginRequest, RenderRequest

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


def endpoints() -> tuple[Endpoint, ...]:
    """The page's routes, with the answers that they keep."""
    streams = PageStreams()
    start, resume, stop = (functools.partial(do, streams) for do in (start_stream, resume_stream, stop_stream))
    return (
        Endpoint("GET", "/", show_page, "The chat page", access="open"),
        Endpoint("GET", "/static/{name}", show_file, "A file of the chat page", access="open"),
        Endpoint("POST", "/login", log_in, "Opens a session of the page with a key", LoginRequest, access="open"),
        Endpoint("POST", "/logout", log_out, "Ends a session of the page", EmptyRequest),
        Endpoint("GET", "/page/session", show_session, "What the page has to know", access="open"),
        Endpoint("POST", "/page/stream", start, "An answer for the page, as server-sent events", AnswerRequest),
        Endpoint("GET", "/page/stream/{id}", resume, "An answer from the event after Last-Event-ID on"),
        Endpoint("POST", "/page/stream/{id}/stop", stop, "Ends an answer", EmptyRequest),
        Endpoint("POST", "/page/render", render, "Markdown as the page shows it", RenderRequest),
    )


# -- files


def show_page(service: Service, incoming: Incoming) -> Reply:
    return _file(incoming, _read("templates", "index.html"), "text/html; charset=utf-8", PAGE_HEADERS)


def show_file(service: Service, incoming: Incoming) -> Reply:
    name = incoming.path_parameters["name"]
    suffix = name[name.rfind(".") :] if "." in name else ""
    if suffix not in MEDIA_TYPES or name not in _static_names():
        raise HttpError(404, "[static] there is no such file", code="no_such_file")
    return _file(incoming, _read("static", name), MEDIA_TYPES[suffix], {})


def _static_names() -> set[str]:
    return {entry.name for entry in resources.files("llm_decoder.web").joinpath("static").iterdir() if entry.is_file()}


def _read(folder: str, name: str) -> bytes:
    return resources.files("llm_decoder.web").joinpath(folder, name).read_bytes()


def _file(incoming: Incoming, body: bytes, media_type: str, headers: dict[str, str]) -> Reply:
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    headers = headers | {"etag": tag, "cache-control": "no-cache", "cross-origin-resource-policy": "same-origin"}
    if tag in incoming.headers.get("if-none-match", ""):
        return Reply(b"", 304, media_type, headers)
    return Reply(body, 200, media_type, headers)


# -- the session


def show_session(service: Service, incoming: Incoming) -> Reply:
    """{needs_key, csrf, state, model, max_model_len, defaults, has_reranker}. Who has to log in first is told no more
    than that; the last four are null while the model is being loaded."""
    session = service.guard.sessions.find(incoming.headers)
    needs_key = service.guard.needs_key and session is None
    is_shown = not needs_key and service.state == "ready"
    return _private(
        {
            "needs_key": needs_key,
            "csrf": session.csrf if session is not None else None,
            "state": service.state,
            "model": service.model_name if is_shown else None,
            "max_model_len": service.llm.max_model_len if is_shown else None,
            "defaults": service.llm.sampling_defaults if is_shown else None,
            "has_reranker": service.llm.has_reranker if is_shown else None,
        }
    )


def log_in(service: Service, incoming: Incoming) -> Reply:
    """{key} -> a cookie that scripts cannot read, and the token that goes with it."""
    request, _ = parse_body(incoming, LoginRequest)
    session = service.guard.sessions.open(request.key)
    if session is None:
        raise HttpError(401, "[key] it is none of this server's", param="key", code="invalid_api_key")
    cookie = service.guard.sessions.cookie(session, secure=_is_over_tls(incoming))
    return _private({"csrf": session.csrf}, {"set-cookie": cookie})


def log_out(service: Service, incoming: Incoming) -> Reply:
    parse_body(incoming, EmptyRequest)
    session = service.guard.sessions.find(incoming.headers)
    if session is not None:
        service.guard.sessions.close(session)
    return _private({}, {"set-cookie": service.guard.sessions.no_cookie(secure=_is_over_tls(incoming))})


def _is_over_tls(incoming: Incoming) -> bool:
    """Whether the browser has spoken TLS, with us or with a proxy before us: it says so in the page's origin."""
    return incoming.headers.get("origin", "").startswith("https://")


def _private(value: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
    return Reply.of_json(value, headers={"cache-control": "no-store"} | (headers or {}))


# -- answers


def start_stream(streams: PageStreams, service: Service, incoming: Incoming) -> EventStream:
    request, headers = parse_body(incoming, AnswerRequest)
    params = request_params(
        service, request, incoming.request_id, max_tokens=max_tokens_of(request, None), is_stream=True
    )
    check_amount(service, 1, params)
    if params.n > 1:
        raise HttpError(400, f"[rerank.top_n] the page shows one answer, got {params.n}", param="rerank.top_n")
    messages = chat_messages(service, request.messages)
    options = template_options(request)
    before = _text_to_go_on_with(messages) if request.continue_final_message else ""
    stream_id = streams.new_id()
    llm = service.llm
    parser = llm.answer_parser(messages, **options)
    events = PageEvents(stream_id, service.model_name, llm.max_model_len, parser, before)
    priority = request.priority or 0
    call = Call([cast(Prompt, messages)], [params], streamed=events, template_options=options, priority=priority)
    stream = PageStream(stream_id, service.run(call, incoming), events, service.settings.resume_s)
    streams.add(stream)
    return stream.read(headers=headers)


def _text_to_go_on_with(messages: list[dict[str, Any]]) -> str:
    """Raises HttpError 400 where the last message is none that can go on."""
    content = messages[-1]["content"]
    if messages[-1]["role"] != "assistant" or not isinstance(content, str):
        raise HttpError(
            400,
            "[continue_final_message] the last message must be the assistant's, with a text",
            param="continue_final_message",
        )
    return content


def resume_stream(streams: PageStreams, service: Service, incoming: Incoming) -> EventStream:
    last_id = incoming.headers.get("last-event-id", "")
    after = int(last_id) if last_id.isascii() and last_id.isdigit() and len(last_id) < 10 else 0
    return _find(streams, incoming).read(after)


def stop_stream(streams: PageStreams, service: Service, incoming: Incoming) -> Reply:
    parse_body(incoming, EmptyRequest)
    _find(streams, incoming).stop()
    return Reply.of_json({"stopped": True})


def _find(streams: PageStreams, incoming: Incoming) -> PageStream:
    stream = streams.get(incoming.path_parameters["id"])
    if stream is None:
        raise HttpError(404, "[stream] it is over, or nobody came back to it in time", code="no_such_stream")
    return stream


def render(service: Service, incoming: Incoming) -> Reply:
    request, headers = parse_body(incoming, RenderRequest)
    return Reply.of_json({"blocks": render_blocks(request.text)}, headers=headers)
