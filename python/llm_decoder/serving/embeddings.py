"""/v1/embeddings: texts as vectors, of the loaded model as long as no encoder serves them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.prompts import as_prompts
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_amount, check_model, token_prompts
from llm_decoder.serving.schemas_embeddings import EmbeddingReply, EmbeddingRequest
from llm_decoder.serving.service import Service
from llm_decoder.serving.sse import Chunk
from llm_decoder.serving.usage import usage_of

__all__ = ["ENDPOINTS"]

HEADERS = {"x-llm-decoder-embedding": "mean-pooled-hidden-states"}


def embed(service: Service, incoming: Incoming) -> Call:
    """Plans the call. Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, EmbeddingRequest)
    check_model(service, request.model)
    prompts = as_prompts(request.input)
    check_amount(service, len(prompts), 1, 0, "input")
    params = SamplingParams(max_tokens=0, cache_salt=request.cache_salt)
    return Call(
        prompts=token_prompts(service, prompts, request.add_special_tokens),
        params=[params] * len(prompts),
        format=_Answer(service.model_name, request.encoding_format == "base64"),
        rows="hidden",
        priority=request.priority or 0,
        param="input",
        headers=headers | HEADERS,
    )


class _Answer:
    """calls.AnswerFormat."""

    def __init__(self, model: str, is_base64: bool) -> None:
        self._model = model
        self._is_base64 = is_base64

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        data = [
            {"object": "embedding", "index": index, "embedding": self._vector(output)}
            for index, output in enumerate(outputs)
        ]
        usage = usage_of(outputs)
        counts = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
        return {"object": "list", "data": data, "model": self._model, "usage": counts}

    def _vector(self, output: RequestOutput) -> str | list[float]:
        """The mean over the tokens, of length 1: clients compare vectors by their products."""
        assert output.rows is not None
        mean = output.rows.mean(axis=0, dtype=np.float64)
        norm = float(np.linalg.norm(mean))
        vector = (mean / norm if norm else mean).astype("<f4")
        return base64.b64encode(vector.tobytes()).decode() if self._is_base64 else vector.tolist()

    def begin(self) -> list[Chunk]:
        raise AssertionError("embeddings are never streamed")

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        raise AssertionError("embeddings are never streamed")

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        raise AssertionError("embeddings are never streamed")


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        embed,
        "Texts as vectors: the loaded model's hidden states, their mean, of length 1",
        request=EmbeddingRequest,
        response=EmbeddingReply,
    ),
)
