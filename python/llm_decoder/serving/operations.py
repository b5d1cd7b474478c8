"""Endpoints for who runs the server: whether it lives, whether it can be asked, which version it is."""

from __future__ import annotations

from llm_decoder.sampling import MAX_INT
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service

__all__ = ["ENDPOINTS"]

_MAX_PAGES_LISTED = 4096
# EngineCore.pages' names, and what clients call them.
_PAGE_FIELDS = {
    "group": "group",
    "page": "page",
    "n_holders": "refcount",
    "owners": "owners",
    "n_pins": "pins",
    "is_indexed": "in_prefix_index",
    "taken_s": "taken_s",
    "idle_s": "idle_s",
}


def health(service: Service, incoming: Incoming) -> Reply:
    """200 when it answers requests, 503 with the reason while it does not."""
    _check_model(service)
    return Reply.of_json({"status": "ok"})


def ready(service: Service, incoming: Incoming) -> Reply:
    """As /health, and which model it is."""
    _check_model(service)
    return Reply.of_json({"status": "ready", "model": service.model_name})


def _check_model(service: Service) -> None:
    """Raises HttpError 503 where there is none that answers."""
    _ = service.llm


def version(service: Service, incoming: Incoming) -> Reply:
    import llm_decoder

    return Reply.of_json({"version": llm_decoder.__version__})


def debug_kv(service: Service, incoming: Incoming) -> Reply:
    """The pages of the KV cache, where the settings open this."""
    if not service.settings.debug_kv:
        raise HttpError(404, "[path] this server does not tell of its pages; start it with --debug-kv", code="off")
    first, n = _number(incoming, "first", 0, MAX_INT), _number(incoming, "n", 1024, _MAX_PAGES_LISTED)
    found = service.llm.pages(first, n)
    columns = zip(*(found[name] for name in _PAGE_FIELDS), strict=True)
    pages = [dict(zip(_PAGE_FIELDS.values(), values, strict=True)) for values in columns]
    stats = service.llm.stats()
    counts = {name: stats["pages"][name] for name in ("n_pages", "n_free", "n_held", "n_cached", "n_pinned")}
    return Reply.of_json(
        {
            "page_size": stats["page_size"],
            "counts": counts,
            "first": first,
            "n_listed": found["n_listed"],
            "pages": pages,
        }
    )


def _number(incoming: Incoming, name: str, default: int, most: int) -> int:
    text = incoming.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise HttpError(400, f"[{name}] need an integer from 0 to {most}, got {text[:40]!r}", param=name)
    return int(text)


ENDPOINTS = (
    Endpoint("GET", "/health", health, "Whether the server answers requests: 503 while the model loads", access="open"),
    Endpoint("GET", "/ready", ready, "As /health, with the model's name"),
    Endpoint("GET", "/debug/kv", debug_kv, "The pages of the KV cache; with --debug-kv"),
    Endpoint("GET", "/version", version, "The version of llm_decoder"),
)
