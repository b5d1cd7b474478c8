"""The `weights/` directory: convert writes it, it loads to the same weights, and files that lie are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models_factory import FAMILIES, make_checkpoint

from llm_decoder import convert as convert_module
from llm_decoder.config import load_settings
from llm_decoder.convert import convert
from llm_decoder.errors import (
    ConfigError,
    LLMDecoderError,
    MalformedFileError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from llm_decoder.loading import LoadedModel, load_model
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint
from llm_decoder.weights_dir import WeightsDirectory

SETTINGS_FILES = {
    "model_config.yaml",
    "runtime_config.yaml",
    "chat_template.json",
    "weight_paths.yaml",
    "paths.json",
}


def assert_same_weights(one: LoadedModel, other: LoadedModel) -> None:
    assert one.config == other.config
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        np.testing.assert_array_equal(weight.data, other.weights[name].data, name)
        assert (weight.scales is None) == (other.weights[name].scales is None)
        if weight.scales is not None:
            np.testing.assert_array_equal(weight.scales, other.weights[name].scales, name)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return convert(make_checkpoint(tmp_path / "model", "llama"), tmp_path / "weights")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_the_round_trip_gives_the_same_weights_bit_for_bit(tmp_path: Path, family: str, dtype: str) -> None:
    source = make_checkpoint(tmp_path / "model", family, dtype=dtype, n_shards=2)
    weights = convert(source, tmp_path / "weights")
    assert_same_weights(load_model(source), load_model(weights))
    assert_same_weights(load_model(source, dtype="float32"), load_model(weights, dtype="float32"))


def test_float_files_are_the_checkpoint_s_bytes(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", dtype="BF16")
    weights = convert(source, tmp_path / "weights")
    raw = SafetensorsCheckpoint(source).raw("layer_1/mlp_down").tobytes()
    assert (weights / "layer_1" / "mlp_down.bin").read_bytes() == raw


def test_the_tree_is_the_documented_one(weights: Path) -> None:
    assert {path.name for path in weights.iterdir()} == {
        *("embedding.bin", "final_norm.bin", "lm_head.bin", "layer_0", "layer_1", "int8", "config")
    }
    layer = {path.name for path in (weights / "layer_0").iterdir()}
    names = ("ln1", "ln2", "attn_q", "attn_k", "attn_v", "attn_o", "mlp_gate", "mlp_up", "mlp_down")
    assert layer == {f"{name}.bin" for name in names}
    int8 = {path.name for path in (weights / "int8" / "layer_0").iterdir()}
    assert int8 == {f"{name}{kind}.bin" for name in names[2:] for kind in ("", ".scale")}
    assert {path.name for path in (weights / "config").iterdir()} >= {*SETTINGS_FILES, "tokenizer.json"}


def test_a_tied_model_has_no_lm_head_file(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "qwen3")
    weights = convert(source, tmp_path / "weights")
    assert not (weights / "lm_head.bin").exists()
    assert not (weights / "int8" / "lm_head.bin").exists()


def test_tokenizer_template_and_generation_defaults_come_along(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 5], "top_p": 0.9}')
    before, after = load_model(source), load_model(convert(source, tmp_path / "weights"))
    messages = [{"role": "user", "content": "Tell me a story."}]
    assert before.tokenizer.apply_chat_template(messages) == after.tokenizer.apply_chat_template(messages)
    assert before.eos_token_ids == after.eos_token_ids == {1, 5}
    assert before.generation_defaults == after.generation_defaults


def test_its_settings_files_are_read_by_the_one_schema(weights: Path) -> None:
    settings = load_settings(weights / "config", environment={})
    assert settings.model.architecture is not None
    assert settings.model.architecture["model_type"] == "llama"
    assert settings.weights.int8 is not None
    assert settings.weights.int8["embedding"].scale == "int8/embedding.scale.bin"


def test_int8_alone_is_enough_to_run_in_int8(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    weights = convert(source, tmp_path / "weights", float_weights=False)
    assert not (weights / "embedding.bin").exists()
    assert_same_weights(load_model(source), load_model(weights))


def test_float_alone_is_quantised_on_load_to_the_same_int8(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    weights = convert(source, tmp_path / "weights", int8=False)
    assert not (weights / "int8").exists()
    assert_same_weights(load_model(source), load_model(weights))


def test_the_standard_layout_needs_no_list_of_paths(weights: Path) -> None:
    before = load_model(weights)
    (weights / "config" / "weight_paths.yaml").write_text("float: null\nint8: null\n")
    assert_same_weights(before, load_model(weights))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    source = make_checkpoint(tmp_path / "model", "llama")
    convert(source, tmp_path / "weights", progress=lambda done, total, what: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]


# --- files that lie


@pytest.mark.parametrize("change", [-1, 1, 4, -4])
@pytest.mark.parametrize("name", ["layer_0/ln1.bin", "int8/layer_0/attn_q.bin", "int8/embedding.scale.bin"])
def test_a_file_of_another_size_is_refused_by_its_path(weights: Path, name: str, change: int) -> None:
    path = weights / name
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(MalformedFileError, match=Path(name).name):
        load_model(weights)


def test_a_missing_file_is_refused_by_its_path(weights: Path) -> None:
    (weights / "layer_1" / "ln2.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"layer_1/ln2\.bin"):
        load_model(weights)


def set_path(weights: Path, value: Any, key: str = "path", table: str = "float", name: str = "layer_0/ln1") -> None:
    listed = weights / "config" / "weight_paths.yaml"
    content = yaml.safe_load(listed.read_text())
    content[table][name][key] = value
    listed.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    "path", ["../secret.bin", "/etc/passwd", "layer_0/../../x.bin", "", "..", "a\\..\\b", "x\0.bin"]
)
def test_a_path_that_leads_out_of_the_directory_is_refused(weights: Path, path: str) -> None:
    set_path(weights, path)
    with pytest.raises((MalformedFileError, ConfigError)):
        load_model(weights)


def test_a_scale_path_that_leads_out_of_the_directory_is_refused(weights: Path) -> None:
    set_path(weights, "../x.bin", key="scale", table="int8", name="embedding")
    with pytest.raises(MalformedFileError, match="inside the directory"):
        load_model(weights)


def test_a_link_that_leads_out_of_the_directory_is_refused(weights: Path, tmp_path: Path) -> None:
    inside, outside = weights / "layer_0" / "ln1.bin", tmp_path / "outside.bin"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(MalformedFileError, match="link that leads out"):
        load_model(weights)


def test_a_folder_that_is_a_link_out_of_the_directory_is_refused(weights: Path, tmp_path: Path) -> None:
    shutil.move(weights / "layer_0", tmp_path / "outside")
    (weights / "layer_0").symlink_to(tmp_path / "outside")
    with pytest.raises(MalformedFileError, match="link that leads out"):
        load_model(weights)


def test_a_link_that_leads_to_itself_is_refused(weights: Path) -> None:
    path = weights / "layer_0" / "ln1.bin"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(LLMDecoderError):
        load_model(weights)


def test_a_folder_in_place_of_a_file_is_refused(weights: Path) -> None:
    path = weights / "layer_0" / "ln1.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(MalformedFileError, match="regular file"):
        load_model(weights)


def test_a_shape_that_is_not_the_model_s_is_refused(weights: Path) -> None:
    set_path(weights, [32, 2], key="shape")
    with pytest.raises(MalformedFileError, match=r"need shape \[64\]"):
        load_model(weights)


@pytest.mark.parametrize("shape", [[2**63], [-1], [0], "64", [64.0], None, [True]])
def test_a_shape_that_is_none_is_refused(weights: Path, shape: Any) -> None:
    set_path(weights, shape, key="shape")
    with pytest.raises((ConfigError, MalformedFileError)):
        load_model(weights)


def test_an_unknown_dtype_is_refused(weights: Path) -> None:
    set_path(weights, "float8", key="dtype")
    with pytest.raises(UnsupportedModelError, match="float8"):
        load_model(weights)


def test_a_weight_that_is_not_listed_is_refused(weights: Path) -> None:
    listed = weights / "config" / "weight_paths.yaml"
    content = yaml.safe_load(listed.read_text())
    del content["float"]["final_norm"]
    listed.write_text(yaml.safe_dump(content))
    with pytest.raises(MalformedFileError, match="final_norm"):
        load_model(weights)


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused(weights: Path, scale: float) -> None:
    path = weights / "int8" / "layer_1" / "mlp_up.scale.bin"
    scales = np.fromfile(path, "<f4")
    scales[3] = scale
    scales.tofile(path)
    with pytest.raises(MalformedFileError, match=r"mlp_up\.scale\.bin"):
        load_model(weights)


def test_minus_128_is_refused_as_outside_the_symmetric_range(weights: Path) -> None:
    path = weights / "int8" / "layer_1" / "mlp_up.bin"
    q = np.fromfile(path, "i1")
    q[5] = -128
    q.tofile(path)
    with pytest.raises(MalformedFileError, match="-128"):
        load_model(weights)


@pytest.mark.parametrize(
    "content",
    [
        "architecture: !!python/object/apply:os.system ['true']",
        "architecture: &a {model_type: llama}\nmore: *a",
        "architecture: [1]",
        "unclosed: {",
        "- a\n- b",
    ],
)
def test_a_model_config_that_is_no_plain_table_is_refused(weights: Path, content: str) -> None:
    (weights / "config" / "model_config.yaml").write_text(content)
    with pytest.raises((ConfigError, MalformedFileError), match=r"model_config\.yaml"):
        load_model(weights)


def test_no_architecture_anywhere_is_refused(weights: Path) -> None:
    (weights / "config" / "model_config.yaml").write_text("architecture: null\n")
    with pytest.raises(ModelNotFoundError, match="architecture"):
        load_model(weights)


def test_float_is_dequantised_when_only_int8_is_there(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    weights = WeightsDirectory(convert(source, tmp_path / "weights", float_weights=False), prefer_int8=False)
    exact = SafetensorsCheckpoint(source).read("layer_0/attn_q")
    found = weights.read("layer_0/attn_q")
    assert np.abs(found - exact).max() <= np.abs(exact).max() / 127
    assert found.dtype == np.float32


# --- converting when things go wrong


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "weights" in path.name]


def test_a_target_with_files_is_kept_unless_overwritten(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    target = tmp_path / "weights"
    target.mkdir()
    (target / "precious.txt").write_text("x")
    with pytest.raises(ModelLoadError, match="empty"):
        convert(source, target)
    assert (target / "precious.txt").exists()
    convert(source, target, overwrite=True)
    assert load_model(target).config.n_layers == 2
    assert leftovers(tmp_path) == ["weights"]


def test_an_empty_target_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    convert(make_checkpoint(tmp_path / "model", "llama"), tmp_path / "weights")
    assert (tmp_path / "weights" / "embedding.bin").exists()


def test_a_disk_too_small_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ModelLoadError, match=r"need [\d,]+ bytes, the disk has 1,000 free; free some"):
        convert(source, tmp_path / "weights")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_while_converting_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    real = convert_module._create

    def create(path: Path) -> Any:
        if path.name == "mlp_up.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(convert_module, "_create", create)
    with pytest.raises(ModelLoadError, match=r"need .* bytes, the disk has"):
        convert(source, tmp_path / "weights")
    assert leftovers(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError, match="choose another folder"):
        convert(source, tmp_path / "file" / "weights")


def test_an_interrupted_conversion_leaves_nothing_that_looks_finished_and_runs_again(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    n_calls = 0

    def interrupt(done: int, total: int, what: str) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "weights", progress=interrupt)
    assert leftovers(tmp_path) == []
    killed = tmp_path / ".weights.writing-killed"  # what a killed process would leave
    killed.mkdir()
    convert(source, tmp_path / "weights")
    assert leftovers(tmp_path) == ["weights"]


def test_a_weights_directory_is_not_converted_again(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="already"):
        convert(weights, tmp_path / "again")


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither"):
        convert(tmp_path, tmp_path / "weights", float_weights=False, int8=False)


def test_the_config_written_is_what_was_found_about_tying(tmp_path: Path) -> None:
    weights = convert(make_checkpoint(tmp_path / "model", "qwen3"), tmp_path / "weights")
    content = yaml.safe_load((weights / "config" / "model_config.yaml").read_text())
    assert content["architecture"]["tie_word_embeddings"] is True
    assert json.loads((weights / "config" / "chat_template.json").read_text())["stop"] == []


def test_a_model_is_never_replaced_by_its_own_conversion(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "models" / "model", "llama")
    link = tmp_path / "link"
    link.symlink_to(source)
    for target in (source, source.parent, link):
        with pytest.raises(ModelLoadError, match="need a folder that can be replaced"):
            convert(source, target, overwrite=True)
    assert load_model(source).config.n_layers == 2


def test_the_working_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    (tmp_path / "work" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "inside")
    with pytest.raises(ModelLoadError, match="need a folder that can be replaced"):
        convert(source, tmp_path / "work", overwrite=True)


def test_a_limit_on_file_sizes_is_not_told_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(path: Path) -> Any:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(convert_module, "_create", create)
    with pytest.raises(ModelLoadError, match=r"need [\d,]+ bytes, got: File too large; "):
        convert(make_checkpoint(tmp_path / "model", "llama"), tmp_path / "weights")


@pytest.mark.parametrize("name", ["embedding.bin", "lm_head.bin", "layer_1/mlp_up.bin"])
def test_a_float_weight_that_is_missing_is_never_taken_from_int8(weights: Path, name: str) -> None:
    (weights / name).unlink()
    with pytest.raises(ModelNotFoundError, match=name):
        load_model(weights, quantization="none")


def test_an_int8_weight_that_is_missing_is_never_taken_from_float(weights: Path) -> None:
    (weights / "int8" / "layer_1" / "mlp_up.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"int8/layer_1/mlp_up\.bin"):
        load_model(weights)


def test_a_directory_without_its_embedding_is_still_told_what_it_lacks(weights: Path) -> None:
    shutil.rmtree(weights / "int8")
    (weights / "embedding.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"embedding\.bin"):
        load_model(weights)
