"""Folders that are no encoder, or a broken one: each is refused with what it is, what was needed, and what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_factory import encoder_config, make_encoder, random_encoder, wordpiece_vocabulary
from models_factory import make_checkpoint, write_json, write_shards

from llm_decoder import CrossEncoder, SentenceEncoder
from llm_decoder.encoders import encoder as encoder_module
from llm_decoder.encoders.families import parse_encoder
from llm_decoder.errors import MalformedFileError, ModelNotFoundError, NotEnoughMemoryError, UnsupportedModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "model", "bert")


def edit(path: Path, **changes: Any) -> None:
    """Replaces fields of a JSON file; `...` removes one."""
    values = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in values.items() if value is not ...})


def with_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object], **options: Any) -> None:
    """Writes the checkpoint's tensors again after `change`."""
    config = json.loads((folder / "config.json").read_text())
    tensors = random_encoder(config, **options)
    change(tensors)
    write_shards(folder, tensors)


def test_no_folder_is_told(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", "", "\0", "x" * 5000):
        with pytest.raises(ModelNotFoundError, match="need a folder"):
            CrossEncoder(name)


def test_a_hub_id_is_told_how_to_become_a_folder() -> None:
    with pytest.raises(ModelNotFoundError, match="hf download owner/reranker --local-dir FOLDER"):
        CrossEncoder("owner/reranker")


def test_a_language_model_is_told(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    for opened in (CrossEncoder, SentenceEncoder):
        with pytest.raises(UnsupportedModelError, match=r"need an encoder of bert.*'llama' \(a language model"):
            opened(folder)


def test_a_sentence_encoder_is_no_cross_encoder(tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model", "bert", head=False)
    with pytest.raises(UnsupportedModelError, match="an encoder without the head of a cross-encoder"):
        CrossEncoder(folder)
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match=r"a sentence encoder \(BertModel\).*with SentenceEncoder"):
        CrossEncoder(folder)
    edit(folder / "config.json", architectures=...)
    with pytest.raises(UnsupportedModelError, match=r"without a classifier \(no tensor 'classifier.weight'\)"):
        CrossEncoder(folder)


def test_a_cross_encoder_is_no_sentence_encoder(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="open it with CrossEncoder"):
        SentenceEncoder(folder)


def test_a_classifier_of_several_labels_is_told(folder: Path) -> None:
    with_tensors(folder, lambda tensors: None, n_labels=3)
    with pytest.raises(UnsupportedModelError, match=r"classifier.weight\] need one label.*got 3"):
        CrossEncoder(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors.pop("bert.encoder.layer.1.attention.self.key.bias"))
    with pytest.raises(MalformedFileError, match=r"layer.1.attention.self.key.bias' of shape \[48\], got none"):
        CrossEncoder(folder)


def test_a_missing_pooler_is_named(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors.pop("bert.pooler.dense.weight"))
    with pytest.raises(MalformedFileError, match=r"'bert.pooler.dense.weight' of shape \[48, 48\]"):
        CrossEncoder(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors.update({"bert.embeddings.LayerNorm.weight": np.ones(47, np.float32)}))
    with pytest.raises(MalformedFileError, match=r"LayerNorm.weight\] need shape \[48\].*got \[47\]"):
        CrossEncoder(folder)


def test_a_tensor_that_has_no_place_is_named(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors.update({"bert.adapter.weight": np.ones(4, np.float32)}))
    with pytest.raises(UnsupportedModelError, match=r"1 tensors have no place.*'bert.adapter.weight'"):
        CrossEncoder(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["bert.encoder.layer.2.output.dense.weight", "bert.embeddings.LayerNorm.bias"])
@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float, name: str, quantization: str) -> None:
    with_tensors(folder, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    with pytest.raises(MalformedFileError, match=rf"{name}\] need finite weights"):
        CrossEncoder(folder, quantization=quantization)


def test_a_head_that_is_not_finite_is_named(folder: Path) -> None:
    with_tensors(folder, lambda tensors: tensors["classifier.weight"].fill(np.nan))
    with pytest.raises(MalformedFileError, match=r"classifier.weight\] need finite weights"):
        CrossEncoder(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (folder.rename, (folder.parent / "gone",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedModelError, match=r"only pickle files \(pytorch_model.bin\)"):
        CrossEncoder(folder)
    with pytest.raises(UnsupportedModelError, match="pickle files can run code"):
        CrossEncoder(folder / "pytorch_model.bin")
    assert folder.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("hidden_act", "gelu_fast"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("something_new", 3),
    ],
)
def test_a_field_that_changes_results_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=field):
        parse_encoder(encoder_config("bert", vocab_size=100) | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_types", ["sliding_attention"] * 4),
        ("layer_types", ["full_attention", "full_attention", "sliding_attention", "full_attention"]),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn", "factor": 2.0}}),
        ("classifier_pooling", "max"),
        ("classifier_activation", "mish"),
    ],
)
def test_a_field_of_modernbert_that_is_not_run_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=field if field != "rope_parameters" else "rope_type"):
        parse_encoder(encoder_config("modernbert", vocab_size=100) | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 0), ("hidden_size", 50), ("num_hidden_layers", -1), ("vocab_size", None), ("layer_norm_eps", "x")],
)
def test_an_impossible_number_is_refused(field: str, value: object) -> None:
    with pytest.raises(MalformedFileError):
        parse_encoder(encoder_config("bert", vocab_size=100) | {field: value})


def test_an_encoder_that_does_not_fit_the_memory_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "available_memory_bytes", lambda: 150_000)
    with pytest.raises(NotEnoughMemoryError, match=r"needs \d+ MiB.*int8"):
        CrossEncoder(folder, quantization="none")
    assert CrossEncoder(folder).name == "model"  # a quarter of it does


def test_code_that_a_folder_names_is_never_followed(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "evil.py--Model"})
    (folder / "evil.py").write_text("raise SystemExit")
    assert np.isfinite(CrossEncoder(folder).score("a", ["b"])).all()
    edit(folder / "config.json", model_type="jina-bert")
    with pytest.raises(UnsupportedModelError, match="Python code, which is never run"):
        CrossEncoder(folder)


def test_old_names_of_norms_are_read(folder: Path) -> None:
    expected = CrossEncoder(folder).score("the cat", ["a dog"])

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)

    with_tensors(folder, rename)
    assert CrossEncoder(folder).score("the cat", ["a dog"]) == expected


def test_a_tokenizer_of_another_model_is_told(folder: Path) -> None:
    with_words = json.loads((folder / "tokenizer.json").read_text())
    with_words["model"]["vocab"]["words"] = 999
    (folder / "tokenizer.json").write_text(json.dumps(with_words))
    with pytest.raises(MalformedFileError, match=r"ids up to 999.*belong to different models"):
        CrossEncoder(folder)


def test_a_missing_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        CrossEncoder(folder)


def test_a_sentencepiece_model_alone_is_told_with_the_remedy(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
    with pytest.raises(UnsupportedModelError, match=r"got sentencepiece.bpe.model.*save_pretrained"):
        CrossEncoder(folder)


def test_a_vocabulary_gives_the_tokens_of_the_tokenizer(folder: Path) -> None:
    texts = ["The cat, was on the mat.", "zzz [SEP]", "", "Caf\u00e9 \u6771"]
    expected = CrossEncoder(folder).score("a dog", texts)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(wordpiece_vocabulary()) + "\n")
    assert CrossEncoder(folder).score("a dog", texts).tolist() == expected.tolist()
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    changed = CrossEncoder(folder).score("a dog", texts)
    assert changed[0] != expected[0]  # an upper-case T is no token of it


def test_a_vocabulary_without_its_special_tokens_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("the\ncat\n")
    with pytest.raises(MalformedFileError, match=r"need the unk_token '\[UNK\]'"):
        CrossEncoder(folder)


def test_the_length_is_the_least_of_model_tokenizer_and_asked_for(folder: Path, tmp_path: Path) -> None:
    assert CrossEncoder(folder).max_length == 96
    edit(folder / "tokenizer_config.json", model_max_length=64)
    assert CrossEncoder(folder).max_length == 64
    assert CrossEncoder(folder, max_length=80).max_length == 80
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    assert CrossEncoder(folder).max_length == 96
    assert CrossEncoder(make_encoder(tmp_path / "roberta", "roberta")).max_length == 96  # 98 less those of padding
    assert CrossEncoder(make_encoder(tmp_path / "modernbert", "modernbert")).max_length == 128


def test_a_text_may_lose_its_beginning_instead(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", truncation_side="left")
    encoder = CrossEncoder(folder, max_length=8)
    assert encoder.score("dog", ["cat " * 5000 + "mat river water"]) == encoder.score("dog", ["cat mat river water"])
