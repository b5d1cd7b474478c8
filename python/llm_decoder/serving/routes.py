"""Every route of the servers."""

from __future__ import annotations

from llm_decoder.serving import (
    chat_completions,
    completions,
    embeddings,
    metrics,
    models,
    openapi,
    operations,
    own_routes,
    rerank,
    tokens,
)
from llm_decoder.serving.exchange import Endpoint

__all__ = ["all_endpoints"]


def all_endpoints() -> tuple[Endpoint, ...]:
    table = (
        *completions.ENDPOINTS,
        *chat_completions.ENDPOINTS,
        *embeddings.ENDPOINTS,
        *rerank.ENDPOINTS,
        *models.ENDPOINTS,
        *tokens.ENDPOINTS,
        *own_routes.ENDPOINTS,
        *operations.ENDPOINTS,
        *metrics.ENDPOINTS,
    )
    return (*table, *openapi.endpoints_of(table))
