"""/v1/embeddings where a sentence encoder is beside the model: its vectors, for texts alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest
from direct import DirectServer, http_library, ready_service, transport
from encoder_factory import make_encoder, random_texts
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder import LLM, SentenceEncoder

TEXTS = [text for text in random_texts(12, seed=8) if text]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return SentenceEncoder(make_encoder(tmp_path_factory.mktemp("encoders") / "e", "bert", head=False), threads=1)


@pytest.fixture
def server(encoder: SentenceEncoder) -> Any:
    with LLM.over(make_engine(FakeBackend()), ByteTokenizer(), "fake", embedder=encoder) as llm:
        yield DirectServer(ready_service(llm))


def test_vectors_are_the_encoders_of_length_one(server: DirectServer, encoder: SentenceEncoder) -> None:
    httpx = http_library()
    http = httpx.Client(transport=transport(server, httpx))
    with openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0) as client:
        answer = client.embeddings.create(model="fake", input=TEXTS)
        one = client.embeddings.create(model="fake", input=TEXTS[3], encoding_format="float")
    expected = encoder.embed(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    np.testing.assert_allclose([entry.embedding for entry in answer.data], expected, rtol=1e-6, atol=1e-7)
    assert one.data[0].embedding == answer.data[3].embedding
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == encoder.count_tokens(TEXTS).sum()


def test_a_header_says_whose_vectors_they_are(server: DirectServer) -> None:
    status, _, headers = server.post("/v1/embeddings", {"input": "the cat"})
    assert (status, headers["x-llm-decoder-embedding"]) == (200, "sentence-encoder")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"add_special_tokens": False}, "add_special_tokens"),
        ({"dimensions": 4}, "dimensions"),
    ],
)
def test_what_an_encoder_does_not_read_is_refused(server: DirectServer, field: dict[str, Any], param: str) -> None:
    status, answer, _ = server.post("/v1/embeddings", {"input": "a"} | field)
    assert (status, answer["error"]["param"]) == (400, param)
