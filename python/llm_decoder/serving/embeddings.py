"""/v1/embeddings: texts as vectors, of the loaded model as long as no encoder serves them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from llm_decoder.errors import EngineClosedError
from llm_decoder.outputs import RequestOutput
from llm_decoder.prompts import as_prompts
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_length, check_model, token_prompts
from llm_decoder.serving.schemas_embeddings import EmbeddingReply, EmbeddingRequest
from llm_decoder.serving.service import Service
from llm_decoder.serving.usage import usage_of

__all__ = ["ENDPOINTS"]

HEADERS = {"x-llm-decoder-embedding": "mean-pooled-hidden-states"}


def embed(service: Service, incoming: Incoming) -> Call:
    """Plans the call. Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, EmbeddingRequest)
    check_model(service, request.model)
    prompts = as_prompts(request.input)
    check_length("input", len(prompts), service.settings.max_inputs)
    params = SamplingParams(max_tokens=0, cache_salt=request.cache_salt)
    return Call(
        prompts=token_prompts(service, prompts, request.add_special_tokens),
        params=[params] * len(prompts),
        whole=_Answer(service.model_name, request.encoding_format == "base64"),
        rows="hidden",
        in_turns=True,
        keep=_mean,
        priority=request.priority or 0,
        param="input",
        headers=headers | HEADERS,
    )


def _mean(output: RequestOutput) -> RequestOutput:
    """With the mean over the tokens in place of the rows, float32 [1, hidden_size], of length 1: clients compare
    vectors by their products. So a long list holds a row a text. Raises EngineClosedError for a text that was given up.
    """
    if output.rows is None:
        raise EngineClosedError("[server] it ended before the text was computed")
    mean = output.rows.mean(axis=0, dtype=np.float64, keepdims=True)
    norm = float(np.linalg.norm(mean))
    return replace(output, rows=(mean / norm if norm else mean).astype("<f4"))


class _Answer:
    """calls.WholeAnswer."""

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
        assert output.rows is not None
        vector = output.rows[0]
        return base64.b64encode(vector.tobytes()).decode() if self._is_base64 else vector.tolist()


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
