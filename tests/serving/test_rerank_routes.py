"""/v1/rerank and /v1/score: documents and pairs scored by what stands beside the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from direct import DirectServer, ready_service
from encoder_factory import make_encoder, random_texts
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder import LLM, CrossEncoder, companions
from llm_decoder.embedded import embedded_reranker
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.serving.settings import ServerSettings

DOCUMENTS = ["long and far", "near", "middling"]
OPEN_WITHOUT = ModelNotFoundError("none here")
Serve = Callable[..., DirectServer]


class Shorter:
    """Likes short documents: its score is minus their length."""

    name = "shorter"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def score(self, query: str, documents: list[str]) -> list[float]:
        self.asked.append((query, documents))
        return [-float(len(document)) for document in documents]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def serve() -> Iterator[Serve]:
    services = []

    def run(settings: ServerSettings | None = None, **encoders: Any) -> DirectServer:
        server = DirectServer(
            ready_service(LLM.over(make_engine(FakeBackend()), ByteTokenizer(), "fake", **encoders), settings)
        )
        services.append(server.service)
        return server

    yield run
    for service in services:
        service.close(0)


@pytest.fixture
def server(serve: Serve) -> DirectServer:
    return serve(reranker=Shorter())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> CrossEncoder:
    return CrossEncoder(make_encoder(tmp_path_factory.mktemp("encoders") / "tiny", "bert", seed=4), threads=1)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_documents_come_back_the_best_first(server: DirectServer, path: str) -> None:
    status, answer, _ = server.post(path, {"query": "q", "documents": DOCUMENTS, "model": "shorter"})
    assert (status, answer["model"]) == (200, "shorter")
    assert answer["id"].startswith("rerank-")
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    expected = [sigmoid(-len(DOCUMENTS[index])) for index in (1, 2, 0)]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx(expected)
    assert all("document" not in result for result in answer["results"])


def test_the_best_n_come_with_their_texts_when_asked(server: DirectServer) -> None:
    body = {"query": "q", "documents": [{"text": "bb", "title": "x"}, "a"], "top_n": 1, "return_documents": True}
    _, answer, _ = server.post("/v1/rerank", body)
    (result,) = answer["results"]
    assert (result["index"], result["document"]) == (1, {"text": "a"})
    assert len(server.post("/v1/rerank", body | {"top_n": 9})[1]["results"]) == 2


def test_of_equal_documents_the_first_comes_first_however_large_the_scores(serve: Serve) -> None:
    class Large:
        def score(self, query: str, documents: list[str]) -> list[float]:
            return [900.0, 1000.0, 900.0]

    _, answer, _ = serve(reranker=Large()).post("/v1/rerank", {"query": "q", "documents": ["a", "b", "c"]})
    assert [(hit["index"], hit["relevance_score"]) for hit in answer["results"]] == [(1, 1.0), (0, 1.0), (2, 1.0)]
    assert (answer["model"], answer["usage"]) == ("Large", {})  # it counts no tokens


def test_texts_are_answered_with_a_list(server: DirectServer) -> None:
    status, answer, _ = server.post("/rerank", {"query": "q", "texts": ["aa", "b"], "return_text": True})
    assert status == 200
    assert [(hit["index"], hit["text"]) for hit in answer] == [(1, "b"), (0, "aa")]
    assert [hit["score"] for hit in answer] == pytest.approx([sigmoid(-1), sigmoid(-2)])
    _, raw, _ = server.post("/rerank", {"query": "q", "texts": ["aa", "b"], "raw_scores": True})
    assert raw == [{"index": 1, "score": -1.0}, {"index": 0, "score": -2.0}]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_pairs_are_scored_in_their_order(serve: Serve, path: str, names: tuple[str, str]) -> None:
    reranker = Shorter()
    server = serve(reranker=reranker)
    first, second = names
    one = server.post(path, {first: "q", second: "aaa"})[1]
    assert (one["object"], one["model"]) == ("list", "shorter")
    assert one["data"] == [{"index": 0, "object": "score", "score": pytest.approx(sigmoid(-3))}]
    server.post(path, {first: "q", second: ["a", "bb"]})
    pairs = server.post(path, {first: ["q", "r"], second: ["a", "bb"]})[1]
    assert [entry["score"] for entry in pairs["data"]] == pytest.approx([sigmoid(-1), sigmoid(-2)])
    assert reranker.asked == [("q", ["aaa"]), ("q", ["a", "bb"]), ("q", ["a"]), ("r", ["bb"])]


def test_a_reranker_with_score_alone_is_asked_once_a_query(serve: Serve) -> None:
    reranker = Shorter()
    body = {"queries": ["q", "r", "q"], "documents": ["a", "bb", "ccc"]}
    _, answer, _ = serve(reranker=reranker).post("/v1/score", body)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([sigmoid(-1), sigmoid(-2), sigmoid(-3)])
    assert reranker.asked == [("q", ["a", "ccc"]), ("r", ["bb"])]


def test_a_cross_encoder_reads_pairs_of_many_queries_once_and_together(
    serve: Serve, encoder: CrossEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, documents = random_texts(20, seed=5), [text * 9 for text in random_texts(20, seed=6)]
    expected = [float(encoder.score(q, [d], activation="sigmoid")[0]) for q, d in zip(queries, documents, strict=True)]
    n_tokens = sum(int(encoder.count_tokens(q, [d])[0]) for q, d in zip(queries, documents, strict=True))
    n_cut = -encoder.n_truncated
    encoder.score_pairs(list(zip(queries, documents, strict=True)))
    n_cut += encoder.n_truncated
    encoder.score("another", ["a"])
    inner, n_steps = encoder._encoder, [0]
    read: list[str] = []
    part, encode = inner.tokenizer.part, inner._backend.encode

    def noted_part(text: str, *, place: str) -> Any:
        read.append(text)
        return part(text, place=place)

    def counted_step(*arguments: Any) -> Any:
        n_steps[0] += 1
        return encode(*arguments)

    monkeypatch.setattr(inner.tokenizer, "part", noted_part)
    monkeypatch.setattr(inner._backend, "encode", counted_step)
    _, answer, headers = serve(reranker=encoder).post("/v1/score", {"text_1": queries, "text_2": documents})
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected)
    assert answer["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert headers["x-llm-decoder-truncated"] == str(n_cut)
    assert n_cut > 0
    assert sorted(read) == sorted([*set(queries), *documents])
    assert n_steps == [1]


def test_a_cross_encoder_counts_its_tokens_and_tells_what_it_cut(serve: Serve, encoder: CrossEncoder) -> None:
    server = serve(reranker=encoder)
    documents = [text for text in random_texts(6, seed=3) if text] + ["the cat " * 200]
    status, answer, headers = server.post("/v1/rerank", {"query": "the cat", "documents": documents})
    scores = encoder.score("the cat", documents, activation="sigmoid")
    assert status == 200
    assert [hit["index"] for hit in answer["results"]] == np.argsort(-scores, kind="stable").tolist()
    found = [hit["relevance_score"] for hit in answer["results"]]
    np.testing.assert_allclose(found, sorted(scores.tolist(), reverse=True), rtol=1e-6)
    n_tokens = int(encoder.count_tokens("the cat", documents).sum())
    assert answer["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    assert headers["x-llm-decoder-truncated"] == "1"
    _, _, headers = server.post("/v1/score", {"text_1": "the cat", "text_2": "the mat"})
    assert headers["x-llm-decoder-truncated"] == "0"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q"}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "texts": ["a"]}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", 7]}, "documents.1"),
        ("/v1/rerank", {"query": "q", "documents": [{"image": "a"}]}, "documents.0"),
        ("/v1/rerank", {"query": "q", "documents": ["a"] * 5}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "raw_scores": True}, "raw_scores"),
        ("/v1/rerank", {"query": "q", "texts": ["a"], "return_documents": True}, "return_documents"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_2": "a"}, "text_1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": ["b"] * 5}, "text_2"),
        ("/v1/score", {"queries": "a", "text_1": "b", "text_2": "c"}, "queries"),
    ],
)
def test_what_makes_no_pairs_is_refused_by_its_name(serve: Serve, path: str, body: Any, param: str) -> None:
    reranker = Shorter()
    status, answer, _ = serve(ServerSettings(max_inputs=4), reranker=reranker).post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert reranker.asked == []


@pytest.mark.parametrize("body", [{"query": "q", "documents": ["a"]}, {"text_1": "q", "text_2": "a"}])
def test_a_model_is_called_by_its_own_name_or_the_servers(server: DirectServer, body: dict[str, Any]) -> None:
    path = "/v1/rerank" if "query" in body else "/v1/score"
    assert [server.post(path, body | {"model": name})[0] for name in ("shorter", "fake", "other")] == [200, 200, 404]


def test_a_server_without_a_reranker_says_how_to_get_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Path:
        raise OPEN_WITHOUT

    monkeypatch.setattr(companions, "embedded_reranker", find)
    server = serve()
    for path, body in (("/v1/rerank", {"query": "q", "documents": ["a"]}), ("/score", {"text_1": "q", "text_2": "a"})):
        status, answer, _ = server.post(path, body)
        assert (status, answer["error"]["code"]) == (400, "unsupported")
        assert "--reranker" in answer["error"]["message"]
    assert [card["id"] for card in server.get("/v1/models")[1]["data"]] == ["fake"]


def test_the_embedded_reranker_answers_where_none_is_named(serve: Serve) -> None:
    try:
        name = embedded_reranker().name
    except ModelNotFoundError:
        pytest.skip("this checkout has no embedded reranker")
    documents = ["Lily found a key.", "Water boils at 100 degrees."]
    status, answer, _ = serve().post("/v1/rerank", {"query": "When does water boil?", "documents": documents})
    assert (status, answer["model"], answer["results"][0]["index"]) == (200, name, 1)


def test_a_reranker_that_breaks_tells_nothing_of_itself(serve: Serve) -> None:
    class Broken:
        def score(self, query: str, documents: list[str]) -> list[float]:
            raise ValueError("/secret/path")

    status, answer, _ = serve(reranker=Broken()).post("/v1/rerank", {"query": "q", "documents": ["a"]})
    assert status == 500
    assert "secret" not in answer["error"]["message"]


def test_pairs_are_counted_with_their_time_when_they_were_scored(server: DirectServer) -> None:
    counts = server.service.scoring
    server.post("/v1/rerank", {"query": "q", "documents": DOCUMENTS})
    server.post("/v1/score", {"text_1": "q", "text_2": ["a", "b"]})
    server.post("/v1/score", {"text_1": "q"})
    told = counts.added_to(server.service.llm.stats())
    assert told["n_scored"] == 5
    assert sum(told["histograms"]["scoring"]["counts"]) == 2
    assert told["histograms"]["scoring"]["sum"] > 0


def test_the_models_that_are_listed_answer_by_their_names(serve: Serve, encoder: CrossEncoder) -> None:
    class Vectors:
        name = "vectors"

        def embed(self, texts: list[str]) -> Any:
            return np.ones((len(texts), 2), np.float32)

        def count_tokens(self, texts: list[str]) -> Any:
            return np.ones(len(texts), np.int32)

    server = serve(reranker=encoder, embedder=Vectors())
    cards = server.get("/v1/models")[1]["data"]
    assert [(card["id"], card["task"]) for card in cards] == [
        ("fake", "generate"),
        ("tiny", "rerank"),
        ("vectors", "embed"),
    ]
    assert [server.get(f"/v1/models/{card['id']}")[1] for card in cards] == cards
    assert [server.post("/v1/embeddings", {"input": "a", "model": card["id"]})[0] for card in cards] == [200, 404, 200]
    assert server.get("/v1/models/other")[0] == 404


def test_the_embedded_reranker_is_found_by_its_name_and_offered_to_no_chat(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "embedded_reranker", lambda: Path("/nowhere/embedded-one"))
    server = serve()
    assert [card["id"] for card in server.get("/v1/models")[1]["data"]] == ["fake"]
    assert server.get("/v1/models/embedded-one")[1]["task"] == "rerank"
