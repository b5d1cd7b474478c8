"""llm-decoder rerank: documents as arguments, lines and JSON, ranked by a small real cross-encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_fakes import Program
from encoder_factory import make_encoder

from llm_decoder import CrossEncoder, embedded
from llm_decoder.errors import ModelNotFoundError

QUERY = "the cat sat"
DOCUMENTS = ["a river of water", "the cat on the mat", "people called it very little", "when was the dog there"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoders") / "tiny", "bert", seed=4)


@pytest.fixture(scope="module")
def best(folder: Path) -> list[tuple[int, float]]:
    """(document, score) as the library ranks them."""
    scores = CrossEncoder(folder, threads=1).score(QUERY, DOCUMENTS, activation="sigmoid")
    return [(int(index), float(scores[index])) for index in np.argsort(-scores, kind="stable")]


def test_documents_are_printed_the_best_first(cli: Program, folder: Path, best: list[tuple[int, float]]) -> None:
    ran = cli("rerank", QUERY, *DOCUMENTS, "--reranker", str(folder))
    rows = [line.split(maxsplit=2) for line in ran.out.splitlines()]
    assert (ran.code, rows[0]) == (0, ["SCORE", "INDEX", "DOCUMENT"])
    assert rows[1:] == [[f"{score:.4f}", str(index), DOCUMENTS[index]] for index, score in best]


@pytest.mark.parametrize("form", ["lines", "json"])
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_file_and_standard_input_give_a_document_a_line(
    cli: Program, folder: Path, best: list[tuple[int, float]], tmp_path: Path, form: str, source: str
) -> None:
    lines = DOCUMENTS if form == "lines" else [json.dumps({"text": text, "id": 7}) for text in DOCUMENTS]
    text = "\n".join(lines) + "\n\n"
    (tmp_path / "documents").write_text(text)
    given = "-" if source == "stdin" else str(tmp_path / "documents")
    ran = cli("rerank", QUERY, given, "--reranker", str(folder), "--top-n", "2", "--json", stdin=text)
    told = json.loads(ran.out)
    assert (ran.code, told["model"], told["n_truncated"]) == (0, "tiny", 0)
    assert [(hit["index"], hit["text"]) for hit in told["results"]] == [(i, DOCUMENTS[i]) for i, _ in best[:2]]
    assert [hit["relevance_score"] for hit in told["results"]] == pytest.approx([score for _, score in best[:2]])


def test_a_document_that_is_cut_is_told(cli: Program, folder: Path) -> None:
    ran = cli("rerank", QUERY, "the cat " * 200, "a\ndog", "--reranker", str(folder))
    assert ran.code == 0
    assert "1 pairs were longer than 96 tokens" in ran.err
    assert any(line.endswith(" a dog") for line in ran.out.splitlines())


@pytest.mark.parametrize(
    ("documents", "stdin", "words"),
    [
        (["no such file"], "", "need a file, - or several documents"),
        (["-"], "\n \n", "need a document a line"),
        (["-"], '{"text": "a"}\n{"body": "b"}\n', "document 2: need a JSON object"),
        (["-"], "{not json}\n", "document 1: need a JSON object"),
    ],
)
def test_what_has_no_documents_is_wrong_usage(
    cli: Program, folder: Path, documents: list[str], stdin: str, words: str
) -> None:
    ran = cli("rerank", QUERY, *documents, "--reranker", str(folder), stdin=stdin)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())


def test_the_variable_names_the_reranker_too(cli: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise ModelNotFoundError("[embedded] need the embedded reranker, got none")

    monkeypatch.setattr(embedded, "embedded_reranker", none)
    without = cli("rerank", QUERY, *DOCUMENTS)
    assert (without.code, "need the embedded reranker" in without.err) == (1, True)
    monkeypatch.setenv("LLM_DECODER_RERANKER", str(folder))
    assert cli("rerank", QUERY, *DOCUMENTS).code == 0
