"""HF folders: which files are read, and what a folder must hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models_factory import (
    encode,
    hf_config,
    make_checkpoint,
    make_tokenizer,
    random_weights,
    write_json,
    write_safetensors,
    write_shards,
)

from llm_decoder.errors import (
    ConfigError,
    MalformedFileError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from llm_decoder.loading import find_model, load_model
from llm_decoder.model_config import weight_shapes
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint
from llm_decoder.safetensors_file import to_float32


def rewrite(folder: Path, change: dict[str, np.ndarray | None], seed: int = 0) -> None:
    """The folder's weights again, with tensors replaced, or dropped where None."""
    config = json.loads((folder / "config.json").read_text())
    weights = random_weights(config, seed) | change
    write_shards(folder, {name: values for name, values in weights.items() if values is not None})


def test_sharded_and_single_checkpoints_hold_the_same_weights(tmp_path: Path) -> None:
    one = SafetensorsCheckpoint(make_checkpoint(tmp_path / "one", "qwen2"))
    many = SafetensorsCheckpoint(make_checkpoint(tmp_path / "many", "qwen2", n_shards=3))
    assert one.config == many.config
    for name in weight_shapes(one.config):
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_rows_are_the_rows_of_the_whole(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", dtype="BF16"))
    whole = checkpoint.read("layer_1/mlp_up")
    np.testing.assert_array_equal(checkpoint.rows("layer_1/mlp_up", 3, 20), whole[3:20])


@pytest.mark.parametrize(("stored", "layout"), [("BF16", "bf16"), ("F16", "f32"), ("F32", "f32")])
def test_weights_that_are_not_quantised_keep_their_precision_in_the_smallest_layout(
    tmp_path: Path, stored: str, layout: str
) -> None:
    folder = make_checkpoint(tmp_path, "llama", dtype=stored)
    checkpoint = SafetensorsCheckpoint(folder)
    write_json(folder / "config.json", hf_config("llama", torch_dtype="bfloat16"))  # a word that does not count
    weight = load_model(folder, quantization="none").weights["layer_1/attn_o"]
    assert weight.layout == layout
    rows = weight.data.reshape(-1, weight.shape[1], 16).transpose(0, 2, 1).reshape(weight.shape)
    np.testing.assert_array_equal(to_float32(rows), checkpoint.read("layer_1/attn_o"))
    assert load_model(folder).weights["layer_1/attn_o"].layout == "w8"


@pytest.mark.parametrize(
    ("name", "layout"), [("model.layers.1.mlp.up_proj.weight", "f32"), ("model.norm.weight", "bf16")]
)
def test_one_matrix_in_float32_keeps_all_in_float32_and_a_vector_does_not(
    tmp_path: Path, name: str, layout: str
) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    tensors = {
        theirs: (dtype, values.shape, encode(values, dtype))
        for theirs, values in random_weights(hf_config("llama")).items()
        for dtype in ["F32" if theirs == name else "BF16"]
    }
    write_safetensors(folder / "model.safetensors", tensors)
    assert load_model(folder, quantization="none").weights["embedding"].layout == layout


def test_links_to_files_elsewhere_are_followed_as_the_hub_cache_needs(tmp_path: Path) -> None:
    real = make_checkpoint(tmp_path / "blobs", "llama")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert load_model(snapshot).config.n_layers == 2


def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(MalformedFileError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*\[96, 64\]"):
        SafetensorsCheckpoint(folder)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, {"model.norm.weight": np.ones(63, np.float32)})
    with pytest.raises(MalformedFileError, match=r"model\.norm\.weight.*\[64\].*\[63\]"):
        SafetensorsCheckpoint(folder)


def test_a_bias_that_would_be_dropped_is_an_error(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, {"model.layers.0.mlp.up_proj.bias": np.ones(96, np.float32)})
    with pytest.raises(UnsupportedModelError, match="would change the output"):
        SafetensorsCheckpoint(folder)


def test_saved_rope_buffers_are_ignored(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    assert SafetensorsCheckpoint(folder).config.n_layers == 2


def test_a_nan_in_the_weights_is_refused_with_the_tensor_s_name(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = random_weights(json.loads((folder / "config.json").read_text()))
    poisoned = weights["model.layers.1.self_attn.k_proj.weight"].copy()
    poisoned[5, 7] = np.nan
    rewrite(folder, {"model.layers.1.self_attn.k_proj.weight": poisoned})
    for dtype in ("auto", "bfloat16", "float32"):
        with pytest.raises(MalformedFileError, match="layer_1/attn_k"):
            load_model(folder, dtype=dtype)


def test_a_tied_model_may_store_its_head_when_it_is_the_embedding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    embedding = random_weights(json.loads((folder / "config.json").read_text()))["model.embed_tokens.weight"]
    rewrite(folder, {"lm_head.weight": embedding})
    assert SafetensorsCheckpoint(folder).config.tie_word_embeddings


def test_a_stored_head_that_differs_goes_over_the_word_tied(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    embedding = random_weights(json.loads((folder / "config.json").read_text()))["model.embed_tokens.weight"]
    rewrite(folder, {"lm_head.weight": embedding + 1})
    checkpoint = SafetensorsCheckpoint(folder)
    np.testing.assert_array_equal(checkpoint.read("lm_head"), embedding + 1)
    assert not checkpoint.config.tie_word_embeddings


def test_a_tied_model_may_store_its_head_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    embedding = random_weights(json.loads((folder / "config.json").read_text()))["model.embed_tokens.weight"]
    rewrite(folder, {"lm_head.weight": embedding, "model.embed_tokens.weight": None})
    np.testing.assert_array_equal(SafetensorsCheckpoint(folder).read("embedding"), embedding)


def test_an_index_that_names_a_file_which_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", n_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="model-00002-of-00002"):
        SafetensorsCheckpoint(folder)


def test_the_same_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", n_shards=2)
    (folder / "model-00002-of-00002.safetensors").write_bytes(
        (folder / "model-00001-of-00002.safetensors").read_bytes()
    )
    with pytest.raises(MalformedFileError, match="too"):
        SafetensorsCheckpoint(folder)


def test_unknown_paths_and_names_are_refused_without_a_network(tmp_path: Path) -> None:
    for name in [str(tmp_path / "absent"), "./absent", "a/b/c", "../x", "", "what is this?", "x\0y"]:
        with pytest.raises(ModelNotFoundError):
            load_model(name)


def test_a_file_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="folder it lies in"):
        load_model(tmp_path / "config.json")


def test_an_empty_folder_is_refused_by_the_name_of_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        load_model(tmp_path)


BAD_JSON = {
    "cut off": b'{"model_type": "llama"',
    "empty": b"",
    "a list": b"[]",
    "a number": b"7",
    "NaN": b'{"rms_norm_eps": NaN}',
    "a key twice": b'{"model_type": "llama", "model_type": "evil"}',
    "nested without end": b'{"a":' * 100_000,
    "no UTF-8": b'{"a": "\xff\xfe"}',
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_config_json_that_is_no_sound_object_is_refused(tmp_path: Path, case: str) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_bytes(BAD_JSON[case])
    with pytest.raises(MalformedFileError, match=r"config\.json"):
        SafetensorsCheckpoint(folder)


def test_a_config_json_of_megabytes_is_refused_unread(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_bytes(b" " * (9 * 2**20))
    with pytest.raises(MalformedFileError, match="at most"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("options", [{"quantization": "int3"}, {"dtype": "float8"}, {"quantization": "awq"}])
def test_unknown_precisions_are_refused_with_the_known_ones(tmp_path: Path, options: dict[str, str]) -> None:
    from llm_decoder.errors import ConfigError

    with pytest.raises(ConfigError, match="need auto"):
        load_model(tmp_path, **options)


def test_a_load_error_is_one_class_for_callers_that_do_not_care_which() -> None:
    for error in (ModelNotFoundError, UnsupportedModelError, MalformedFileError):
        assert issubclass(error, ModelLoadError)


def test_a_name_longer_than_the_system_takes_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="too long"):
        find_model("x" * 5000)


@pytest.mark.parametrize("option", ["chat_template", "system"])
def test_a_text_that_is_none_is_refused_by_its_option(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\[{option}\] must be a text, got int"):
        load_model(make_checkpoint(tmp_path / "model"), **{option: 5})  # type: ignore[arg-type]


def test_a_folder_without_tokenizer_files_loads_for_token_ids(tmp_path: Path) -> None:
    loaded = load_model(make_checkpoint(tmp_path, tokenizer=False))
    assert loaded.config.vocab_size == 331
    assert loaded.tokenizer.decode([5, 6]) == ""
    assert loaded.eos_token_ids == {1}, "config.json still says how an answer ends"
    assert loaded.chat_template is None


def test_a_folder_that_lacks_the_tokenizer_its_settings_are_of_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        load_model(folder)


def test_a_tokenizer_folder_that_was_named_must_hold_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tokenizer=False)
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        load_model(folder, tokenizer=tmp_path)
    with_one = load_model(folder, tokenizer=make_tokenizer(tmp_path / "tokenizer"))
    assert with_one.tokenizer.encode("a dog")


@pytest.mark.parametrize("source", ["{% if %}", "{{ ", "{{ x | no_such_filter }}", "{% include 'x' %}"])
def test_a_chat_template_that_does_not_compile_is_refused_before_a_model_is_looked_for(source: str) -> None:
    with pytest.raises(ConfigError, match=r"^\[chat_template\] it does not compile: "):
        load_model("/no/such/model", chat_template=source)


def test_a_chat_template_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\[chat_template\] needs a tokenizer, got none.*tokenizer\.json"):
        load_model(make_checkpoint(tmp_path, tokenizer=False), chat_template="x")
