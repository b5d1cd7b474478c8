"""An LLM with encoders beside it: who scores its answers, who makes vectors of texts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from encoder_factory import make_encoder
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder import LLM, CrossEncoder, SearchParams, SentenceEncoder, companions, embedded
from llm_decoder.errors import ConfigError, InvalidRequestError, ModelNotFoundError, UnsupportedModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "scorer", "bert", seed=4)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "sentences", "bert", head=False, seed=4)


def over(**encoders: object) -> LLM:
    return LLM.over(make_engine(FakeBackend()), ByteTokenizer(), "fake", **encoders)  # type: ignore[arg-type]


def test_a_folder_scores_the_answers_of_a_search(folder: Path) -> None:
    with over(reranker=folder) as llm:
        (output,) = llm.search("one", SearchParams(width=4, n=4, max_tokens=5, scorer="reranker", alpha=1.0))
    expected = CrossEncoder(folder).score("one", [answer.text for answer in output.outputs])
    assert [answer.rerank_score for answer in output.outputs] == expected.tolist()
    assert expected.tolist() == sorted(expected.tolist(), reverse=True)


def test_an_encoder_that_is_open_already_is_taken_as_it_is(folder: Path, sentences: Path) -> None:
    reranker, embedder = CrossEncoder(folder), SentenceEncoder(sentences)
    with over(reranker=reranker, embedder=embedder) as llm:
        assert llm.reranker is reranker
        assert llm.embedder is embedder


def test_the_embedded_reranker_is_opened_once_when_it_is_first_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def find() -> Path:
        asked.append(folder)
        return folder

    monkeypatch.setattr(companions, "embedded_reranker", find)
    with over() as llm:
        llm.generate("one")
        assert not asked
        found: list[object] = []
        threads = [threading.Thread(target=lambda: found.append(llm.reranker)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(asked) == 1
    assert len({id(reranker) for reranker in found}) == 1


def test_an_installation_without_the_embedded_reranker_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Path:
        raise ModelNotFoundError("[there] need the embedded reranker, got none")

    monkeypatch.setattr(companions, "embedded_reranker", find)
    with over() as llm:
        with pytest.raises(InvalidRequestError, match=r"need the embedded reranker.*reranker=FOLDER") as caught:
            llm.search("one", SearchParams(scorer="reranker"))
        assert caught.value.param == "scorer"
        assert llm.generate("one")[0].outputs  # others go on


def test_the_embedded_reranker_is_beside_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "embedded.py"))
    with pytest.raises(ModelNotFoundError, match="need the embedded reranker, got none"):
        embedded.embedded_reranker()
    folder = make_encoder(tmp_path / "embedded" / "reranker")
    assert embedded.embedded_reranker() == folder


def test_vectors_come_from_the_embedder(sentences: Path) -> None:
    with over(embedder=str(sentences)) as llm:
        vectors = llm.embed(["the cat", "a dog"])
        assert (vectors == SentenceEncoder(sentences).embed(["the cat", "a dog"])).all()
        assert llm.embed("the cat").shape == (1, 48)
        with pytest.raises(InvalidRequestError, match=r"texts\[0\]\] need a text"):
            llm.embed([[1, 2, 3]])  # token ids are the language model's, not the encoder's


def test_without_an_embedder_vectors_are_the_models_own() -> None:
    with over() as llm:
        assert llm.embedder is None
        assert llm.embed("one").dtype == np.float32


def test_a_wrong_folder_is_told_before_the_model_is_loaded(folder: Path, sentences: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="need a cross-encoder"):
        LLM("no/such/model/here", reranker=sentences)
    with pytest.raises(UnsupportedModelError, match="need a sentence encoder"):
        LLM("no/such/model/here", embedder=folder)
    with pytest.raises(ModelNotFoundError, match="nothing"):
        LLM("no/such/model/here", reranker="nothing")


@pytest.mark.parametrize("option", ["reranker", "embedder"])
def test_what_is_no_encoder_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        LLM("no/such/model/here", **{option: 7})  # type: ignore[arg-type]
