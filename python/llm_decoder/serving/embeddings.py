"""/v1/embeddings: texts as vectors, of the sentence encoder beside the model where there is one, else of the model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import EngineClosedError, InvalidRequestError
from llm_decoder.outputs import RequestOutput
from llm_decoder.prompts import Prompt, as_prompts
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.parse import parse_body
from llm_decoder.serving.plan import check_length, check_model, token_prompts
from llm_decoder.serving.schemas_embeddings import EmbeddingReply, EmbeddingRequest
from llm_decoder.serving.service import Service
from llm_decoder.serving.usage import usage_of

if TYPE_CHECKING:
    from llm_decoder.encoders.sentence_encoder import SentenceEncoder

__all__ = ["ENDPOINTS"]

HEADERS = {"x-llm-decoder-embedding": "mean-pooled-hidden-states"}
ENCODER_HEADERS = {"x-llm-decoder-embedding": "sentence-encoder"}


def embed(service: Service, incoming: Incoming) -> Call | Reply:
    """Plans the call, or answers with the encoder's vectors. Raises HttpError or InvalidRequestError."""
    request, headers = parse_body(incoming, EmbeddingRequest)
    check_model(service, request.model, service.llm.embedder_name)
    prompts = as_prompts(request.input)
    check_length("input", len(prompts), service.settings.max_inputs)
    if service.llm.embedder is not None:
        return _encoded(service, service.llm.embedder, request, prompts, headers)
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


def _encoded(
    service: Service,
    embedder: SentenceEncoder,
    request: EmbeddingRequest,
    prompts: Sequence[Prompt],
    headers: Mapping[str, str],
) -> Reply:
    """The encoder's vectors, of length 1. It has a thread of the server's and no place in the engine's queue."""
    if request.add_special_tokens is False:
        raise HttpError(
            400, "[add_special_tokens] a sentence encoder reads its own, got false", param="add_special_tokens"
        )
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) != len(prompts):
        raise HttpError(
            400,
            "[input] need texts, got token ids, which are the language model's; its encoder has others",
            param="input",
        )
    try:
        vectors = embedder.embed(texts)
        n_tokens = int(embedder.count_tokens(texts).sum())
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error).replace("[texts", "[input", 1), param="input") from None
    answer = _Answer(service.model_name, request.encoding_format == "base64")
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    reply = answer.of([_unit(vector).astype("<f4") for vector in vectors], usage)
    return Reply.of_json(reply, headers=dict(headers) | ENCODER_HEADERS)


def _unit(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of length 1, as clients compare vectors by their products."""
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


def _mean(output: RequestOutput) -> RequestOutput:
    """With the mean over the tokens in place of the rows, float32 [1, hidden_size], of length 1. So a long list holds a
    row a text. Raises EngineClosedError for a text that was given up."""
    if output.rows is None:
        raise EngineClosedError("[server] it ended before the text was computed")
    mean = output.rows.mean(axis=0, dtype=np.float64, keepdims=True)
    return replace(output, rows=_unit(mean).astype("<f4"))


class _Answer:
    """calls.WholeAnswer."""

    def __init__(self, model: str, is_base64: bool) -> None:
        self._model = model
        self._is_base64 = is_base64

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        usage = usage_of(outputs)
        counts = {name: usage[name] for name in ("prompt_tokens", "total_tokens")}
        return self.of([output.rows[0] for output in outputs if output.rows is not None], counts)

    def of(self, vectors: Sequence[npt.NDArray[Any]], usage: Mapping[str, int]) -> dict[str, Any]:
        """The answer of vectors float32 [hidden_size] in the order of the texts."""
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(vector)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": self._model, "usage": usage}

    def _written(self, vector: npt.NDArray[Any]) -> str | list[float]:
        return base64.b64encode(vector.tobytes()).decode() if self._is_base64 else vector.tolist()


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/embeddings",
        embed,
        "Texts as vectors of length 1: the sentence encoder's, else the mean of the loaded model's hidden states",
        request=EmbeddingRequest,
        response=EmbeddingReply,
    ),
)
