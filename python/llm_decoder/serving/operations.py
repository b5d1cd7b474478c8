"""Endpoints for who runs the server: whether it lives, whether it can be asked, which version it is."""

from __future__ import annotations

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service

__all__ = ["ENDPOINTS"]


def health(service: Service, incoming: Incoming) -> Reply:
    """200 when it answers requests, 503 with the reason while it does not."""
    _check_engine(service)
    return Reply.of_json({"status": "ok"})


def ready(service: Service, incoming: Incoming) -> Reply:
    """As /health, and which model it is."""
    _check_engine(service)
    return Reply.of_json({"status": "ready", "model": service.model_name})


def version(service: Service, incoming: Incoming) -> Reply:
    import llm_decoder

    return Reply.of_json({"version": llm_decoder.__version__})


def _check_engine(service: Service) -> None:
    """Raises HttpError 503."""
    if service.llm.is_closed:
        raise HttpError(503, "[server] its engine has died; the server's log says why", code="failed")


ENDPOINTS = (
    Endpoint("GET", "/health", health, "Whether the server answers requests: 503 while the model loads", access="open"),
    Endpoint("GET", "/ready", ready, "As /health, with the model's name"),
    Endpoint("GET", "/version", version, "The version of llm_decoder"),
)
