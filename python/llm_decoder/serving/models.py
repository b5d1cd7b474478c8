"""/v1/models: which model this server has, and which encoders are beside it."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

from llm_decoder.serving import exchange
from llm_decoder.serving.errors import no_route
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.plan import check_model
from llm_decoder.serving.schemas_models import ModelCard, ModelList
from llm_decoder.serving.service import Service

__all__ = ["ENDPOINTS"]

_STARTED_S = int(time.time())


def list_models(service: Service, incoming: Incoming) -> exchange.Reply:
    """Without the embedded reranker: clients offer all of a list for chats, and nobody asked for it here."""
    encoders = [card for card in _cards_of_encoders(service) if not _is_embedded(service, card)]
    return exchange.Reply.of_json({"object": "list", "data": [_card(service), *encoders]})


def show_model(service: Service, incoming: Incoming) -> exchange.Reply:
    """Names of models have slashes, which clients may write as %2F."""
    name = unquote(incoming.path_parameters["model"])
    if not name:  # elsewhere a name that is left out is the model's own
        raise no_route(incoming.path)
    of_encoder = next((card for card in _cards_of_encoders(service) if card["id"] == name), None)
    if of_encoder is not None and name != service.model_name:
        return exchange.Reply.of_json(of_encoder)
    check_model(service, name)
    return exchange.Reply.of_json(_card(service))


def _card(service: Service) -> dict[str, Any]:
    return _entry(service.model_name, service.llm.name, "generate") | {"max_model_len": service.llm.max_model_len}


def _cards_of_encoders(service: Service) -> list[dict[str, Any]]:
    names = {"rerank": service.llm.reranker_name, "embed": service.llm.embedder_name}
    return [_entry(name, name, task) for task, name in names.items() if name is not None]


def _is_embedded(service: Service, card: dict[str, Any]) -> bool:
    return card["task"] == "rerank" and service.llm.is_reranker_embedded


def _entry(name: str, root: str, task: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": _STARTED_S,
        "owned_by": "llm_decoder",
        "root": root,
        "parent": None,
        "task": task,
    }


ENDPOINTS = (
    Endpoint("GET", "/v1/models", list_models, "The model that is served, then named encoders", response=ModelList),
    Endpoint("GET", "/v1/models/{model}", show_model, "A model that is served, by its name", response=ModelCard),
)
