"""/v1/rerank and /v1/score: how well documents fit a query, by the cross-encoder beside the model."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from llm_decoder.search.scorers import Reranker
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_length, check_model, one_of
from llm_decoder.serving.reranker import Pairs, need_reranker
from llm_decoder.serving.schemas_rerank import RerankReply, RerankRequest, ScoreReply, ScoreRequest
from llm_decoder.serving.service import Service

__all__ = ["ENDPOINTS"]


def rerank(service: Service, incoming: Incoming) -> Reply:
    """Raises HttpError or RequestFailedError."""
    request, headers = parse_body(incoming, RerankRequest)
    name, documents = _documents(request)
    check_length(name, len(documents), service.settings.max_inputs)
    reranker = _reranker(service, request.model)
    pairs = service.scoring.timed(reranker, [(request.query, document) for document in documents])
    scores = pairs.scores if request.raw_scores else pairs.likelihoods()
    # By the reranker's own scores: sigmoids of large ones are equal.
    best = sorted(range(len(scores)), key=lambda index: (-pairs.scores[index], index))[: request.top_n]
    if name == "texts":
        return _reply([_hit(request, documents, index, scores[index]) for index in best], headers, pairs)
    answer = {
        "id": _id("rerank"),
        "model": service.llm.reranker_name,
        "results": [_result(request, documents, index, scores[index]) for index in best],
        "usage": pairs.usage,
    }
    return _reply(answer, headers, pairs)


def _documents(request: RerankRequest) -> tuple[str, Sequence[str]]:
    """(The field that has them, the texts.) Raises HttpError for both fields or none, and for one of the other's."""
    if (request.documents is None) == (request.texts is None):
        got = "none" if request.texts is None else "both"
        raise HttpError(400, f"[documents] need one of documents and texts, got {got}", param="documents")
    is_documents = request.documents is not None
    for field in ("return_text", "raw_scores") if is_documents else ("return_documents",):
        if getattr(request, field):
            need = "texts" if is_documents else "documents"
            raise HttpError(400, f"[{field}] this is for {need}; leave it out", param=field)
    return ("documents", request.documents or []) if is_documents else ("texts", request.texts or [])


def _result(request: RerankRequest, documents: Sequence[str], index: int, score: float) -> dict[str, Any]:
    """Jina's and Cohere's."""
    document = {"document": {"text": documents[index]}} if request.return_documents else {}
    return {"index": index, "relevance_score": score, **document}


def _hit(request: RerankRequest, texts: Sequence[str], index: int, score: float) -> dict[str, Any]:
    """text-embeddings-inference's."""
    return {"index": index, "score": score} | ({"text": texts[index]} if request.return_text else {})


def score(service: Service, incoming: Incoming) -> Reply:
    """Raises HttpError or RequestFailedError."""
    request, headers = parse_body(incoming, ScoreRequest)
    texts = _pairs(request)
    check_length("text_2" if request.text_2 is not None else "documents", len(texts), service.settings.max_inputs)
    reranker = _reranker(service, request.model)
    pairs = service.scoring.timed(reranker, texts)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(pairs.likelihoods())]
    answer = {
        "id": _id("score"),
        "object": "list",
        "created": int(time.time()),
        "model": service.llm.reranker_name,
        "data": data,
        "usage": pairs.usage,
    }
    return _reply(answer, headers, pairs)


def _pairs(request: ScoreRequest) -> list[tuple[str, str]]:
    """One first text with each second one, or as many of both, side by side. Raises HttpError for other numbers."""
    first = one_of(text_1=request.text_1, queries=request.queries)
    second = one_of(text_2=request.text_2, documents=request.documents)
    if first is None or second is None:
        name = "text_1" if first is None else "text_2"
        raise HttpError(400, f"[{name}] need text_1 and text_2, or queries and documents, got no {name}", param=name)
    n_first, n_second = len(first[1]), len(second[1])
    if n_first not in (1, n_second):
        raise HttpError(
            400,
            f"[{first[0]}] need one, or one for each of the {n_second} in {second[0]}, got {n_first}",
            param=first[0],
        )
    return list(zip(first[1] * (n_second if n_first == 1 else 1), second[1], strict=True))


def _reranker(service: Service, model: str | None) -> Reranker:
    """Raises HttpError when there is none, or none of that name."""
    reranker = need_reranker(service.llm, "model")
    check_model(service, model, service.llm.reranker_name)
    return reranker


def _reply(answer: Any, headers: Mapping[str, str], pairs: Pairs) -> Reply:
    return Reply.of_json(answer, headers={**headers, **pairs.headers})


def _id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


ENDPOINTS = (
    *(
        Endpoint(
            "POST",
            path,
            rerank,
            "Documents in the order in which they fit a query",
            request=RerankRequest,
            response=RerankReply,
        )
        for path in ("/v1/rerank", "/rerank", "/v2/rerank")
    ),
    *(
        Endpoint("POST", path, score, "How well pairs of texts fit", request=ScoreRequest, response=ScoreReply)
        for path in ("/v1/score", "/score")
    ),
)
