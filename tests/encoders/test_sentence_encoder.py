"""SentenceEncoder at its seam, and what its folder may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_factory import make_encoder, random_texts
from models_factory import write_json

from llm_decoder import SentenceEncoder
from llm_decoder.errors import InvalidRequestError, MalformedFileError, ModelNotFoundError, UnsupportedModelError

TEXTS = random_texts(20, seed=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of sentence-transformers: mean, normalised."""
    return make_sentences(tmp_path / "sentences")


def make_sentences(folder: Path, *modules: str, pooling: dict[str, Any] | None = None) -> Path:
    make_encoder(folder, "bert", head=False, seed=2)
    kinds = modules or ("Transformer", "Pooling", "Normalize")
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], 1))]
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))],
    )  # fmt: skip
    for path in paths[1:]:
        (folder / path).mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True})
    return folder


def test_a_plain_encoder_gives_the_mean_as_it_is(folder: Path, tmp_path: Path) -> None:
    plain = SentenceEncoder(make_encoder(tmp_path / "plain", "bert", head=False, seed=2)).embed(TEXTS)
    normalised = SentenceEncoder(folder).embed(TEXTS)
    assert plain.shape == (20, 48)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.1
    assert np.allclose(np.linalg.norm(normalised, axis=1), 1, atol=1e-6)
    pooled = SentenceEncoder(make_sentences(tmp_path / "pooled", "Transformer", "Pooling")).embed(TEXTS)
    assert (pooled == plain).all()
    assert np.allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), normalised, atol=1e-6)


def test_a_vector_never_depends_on_the_other_texts(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    together = encoder.embed(TEXTS)
    assert all((encoder.embed(text)[0] == row).all() for text, row in zip(TEXTS, together, strict=True))


def test_one_text_is_a_list_of_one_and_none_give_none(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    assert encoder.embed("the cat").shape == (1, 48)
    assert encoder.embed([]).shape == (0, 48)
    assert encoder.hidden_size == 48
    assert encoder.name == "sentences"


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}],
)
def test_the_first_token_is_pooled_where_the_folder_says_so(tmp_path: Path, pooling: dict[str, Any]) -> None:
    first = SentenceEncoder(make_sentences(tmp_path / "first", pooling=pooling)).embed(TEXTS)
    mean = SentenceEncoder(make_sentences(tmp_path / "mean")).embed(TEXTS)
    assert np.abs(first - mean).max() > 0.01


def test_the_length_of_the_folder_counts(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    encoder = SentenceEncoder(folder)
    assert encoder.max_length == 9
    assert (encoder.embed(["the cat " * 20]) == encoder.embed(["the cat " * 3 + "the"])).all()
    assert encoder.n_truncated == 1
    assert encoder.count_tokens(["the", "the cat " * 20]).tolist() == [3, 9]
    assert SentenceEncoder(folder, max_length=30).max_length == 30


def test_the_default_prompt_is_put_before_every_text(folder: Path) -> None:
    plain = SentenceEncoder(folder)
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": "the words: ", "document": ""}, "default_prompt_name": "query"},
    )
    prompted = SentenceEncoder(folder)
    assert (prompted.embed(TEXTS) == plain.embed([f"the words: {text}" for text in TEXTS])).all()


@pytest.mark.parametrize(
    "modules", [("Transformer", "Pooling", "Dense"), ("Transformer",), ("WordEmbeddings", "Pooling")]
)
def test_modules_that_are_not_run_are_named(tmp_path: Path, modules: tuple[str, ...]) -> None:
    folder = make_encoder(tmp_path / "model", "bert", head=False)
    write_json(folder / "modules.json", [{"type": f"x.{kind}", "path": ""} for kind in modules])
    with pytest.raises(UnsupportedModelError, match=", ".join(modules)):
        SentenceEncoder(folder)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "max"}, {"pooling_mode": ["cls", "mean"]}, {"include_prompt": False}]
)
def test_other_poolings_are_refused(tmp_path: Path, pooling: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="1_Pooling"):
        SentenceEncoder(make_sentences(tmp_path / "model", pooling=pooling))


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "..", 3])
def test_a_module_outside_of_the_folder_is_refused(folder: Path, path: object) -> None:
    write_json(folder / "modules.json", [{"type": "x.Transformer", "path": path}, {"type": "x.Pooling", "path": ""}])
    with pytest.raises(MalformedFileError, match=r"modules\.json"):
        SentenceEncoder(folder)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, "[NaN]"])
def test_a_broken_list_of_modules_is_refused(folder: Path, text: str) -> None:
    (folder / "modules.json").write_text(text)
    with pytest.raises(MalformedFileError, match=r"modules\.json"):
        SentenceEncoder(folder)


def test_a_missing_pooling_is_named(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match="1_Pooling"):
        SentenceEncoder(folder)


@pytest.mark.parametrize("texts", [None, 3, [3], [["a"]], ["\ud800"], b"a"])
def test_what_is_no_text_is_refused(folder: Path, texts: object) -> None:
    with pytest.raises(InvalidRequestError, match="texts"):
        SentenceEncoder(folder).embed(texts)  # type: ignore[arg-type]
