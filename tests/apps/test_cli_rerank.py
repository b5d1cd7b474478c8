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


def test_cross_encoders_are_computed_on_the_cpu_alone(cli: Program, folder: Path) -> None:
    ran = cli("rerank", QUERY, "a", "b", "--reranker", str(folder), "--device", "cuda")
    assert (ran.code, ran.out) == (2, "")
    assert "need cpu, where cross-encoders are computed, got 'cuda'" in " ".join(ran.err.split())
    assert cli("rerank", QUERY, "a", "b", "--reranker", str(folder), "--device", "cpu").code == 0


def test_the_variable_names_the_reranker_too(cli: Program, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise ModelNotFoundError("[embedded] need the embedded reranker, got none")

    monkeypatch.setattr(embedded, "embedded_reranker", none)
    without = cli("rerank", QUERY, *DOCUMENTS)
    assert (without.code, "need the embedded reranker" in without.err) == (1, True)
    monkeypatch.setenv("LLM_DECODER_RERANKER", str(folder))
    assert cli("rerank", QUERY, *DOCUMENTS).code == 0


def line(query: object, documents: object, **more: object) -> str:
    return json.dumps({"query": query, "documents": documents} | more)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_a_batch_ranks_the_documents_of_each_line(
    cli: Program, folder: Path, best: list[tuple[int, float]], tmp_path: Path, source: str
) -> None:
    objects = [{"text": text, "label": 1} for text in DOCUMENTS]
    text = "\n".join(
        [line(QUERY, DOCUMENTS, id="a"), "", line("the river", ["water", "the dog"]), line(QUERY, objects)]
    )
    (tmp_path / "lines.jsonl").write_text(text)
    given = "-" if source == "stdin" else str(tmp_path / "lines.jsonl")
    ran = cli("rerank", "--batch", given, "--top-n", "2", "--reranker", str(folder), stdin=text)
    assert (ran.code, ran.err) == (0, "")
    first, second, third = (json.loads(told) for told in ran.out.splitlines())
    assert [first["index"], second["index"], third["index"]] == [0, 2, 3]
    assert (first["id"], first["model"], first["n_truncated"]) == ("a", "tiny", 0)
    assert [(hit["index"], hit["text"]) for hit in first["results"]] == [(i, DOCUMENTS[i]) for i, _ in best[:2]]
    assert [hit["relevance_score"] for hit in first["results"]] == pytest.approx([score for _, score in best[:2]])
    assert third["results"] == first["results"]
    alone = cli("rerank", "the river", "water", "the dog", "--reranker", str(folder), "--json")
    assert second["results"] == json.loads(alone.out)["results"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{torn", "need a JSON object on each line"),
        (b"[1]", "got a JSON list"),
        (b"\xff", "need lines of UTF-8"),
        (line(7, ["a"]).encode(), "[query] need a text, got 7"),
        (line("", ["a"]).encode(), "[query] need a text, got ''"),
        (line("a", []).encode(), "[documents] need a list of texts, got []"),
        (line("a", "b").encode(), "[documents] need a list of texts, got 'b'"),
        (line("a", ["b", {"body": "c"}]).encode(), "[documents[1]] need texts, or objects"),
        (line("a", ["b", "\ud800"]).encode(), "[documents[1]] need valid Unicode"),
    ],
)
def test_a_bad_line_of_a_batch_is_named_and_the_others_go_on(
    cli: Program, folder: Path, tmp_path: Path, bad: bytes, said: str
) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"\n".join([line(QUERY, DOCUMENTS).encode(), bad, line(QUERY, DOCUMENTS).encode()]))
    ran = cli("rerank", "--batch", str(file), "--reranker", str(folder))
    first, second, third = (json.loads(told) for told in ran.out.splitlines())
    assert ran.code == 1
    assert first["results"] == third["results"]
    assert (second["index"], set(second)) == (1, {"index", "error"})
    assert said in second["error"]["message"]
    assert ran.err.startswith(f"warning: [{file}] line 2: ")
    assert ran.err.count("\n") == 1


def test_a_bad_line_keeps_its_id_and_what_is_cut_is_told_of_its_line(cli: Program, folder: Path) -> None:
    text = "\n".join([line(1, [], id=5), line("the cat " * 200, ["a", "b"]), line("cat", ["a"])])
    ran = cli("rerank", "--batch", "-", "--reranker", str(folder), stdin=text)
    first, second, third = (json.loads(told) for told in ran.out.splitlines())
    assert first["id"] == 5
    assert (second["n_truncated"], third["n_truncated"]) == (2, 0)
    assert "2 pairs were longer than 96 tokens" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "need a query and documents, or --batch FILE"),
        (("only a query",), "need a query and documents, or --batch FILE"),
        (("query", "document", "--batch", "-"), "its lines have the queries"),
    ],
)
def test_a_query_comes_with_documents_or_a_batch(cli: Program, arguments: tuple[str, ...], said: str) -> None:
    ran = cli("rerank", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in " ".join(ran.err.split())


def test_a_batch_that_is_not_there_is_an_error(cli: Program, folder: Path) -> None:
    ran = cli("rerank", "--batch", "no-such-file.jsonl", "--reranker", str(folder))
    assert (ran.code, ran.out) == (1, "")
    assert "No such file" in ran.err


def test_the_settings_name_the_reranker_and_a_flag_goes_over_them(
    cli: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "runtime_config.yaml").write_text("")
    (config / "paths.json").write_text(json.dumps({"reranker": str(folder)}))
    for arguments in (("--config", str(config)), ()):
        monkeypatch.chdir(tmp_path)  # where ./config is read
        told = cli("rerank", QUERY, *DOCUMENTS, *arguments, "--json")
        assert (told.code, json.loads(told.out)["model"]) == (0, "tiny")
    missing = str(tmp_path / "missing")
    assert cli("rerank", QUERY, *DOCUMENTS, "--reranker", missing).code == 1
    (config / "paths.json").write_text(json.dumps({"reranker": missing}))
    ran = cli("rerank", QUERY, *DOCUMENTS)
    assert (ran.code, ran.out) == (1, "")
    assert missing in ran.err
