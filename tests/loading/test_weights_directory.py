"""The `weights/` directory: convert writes it, it loads to the same weights, and files that lie are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
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
from llm_decoder.no_tokenizer import TOKENIZER_FILES
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


def test_a_model_without_a_tokenizer_is_converted_for_token_ids(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    assert_same_weights(load_model(source), load_model(convert(source, tmp_path / "weights")))


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_a_tokenizer_of_any_form_comes_along(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", tokenizer=False)
    (source / name).write_text("x")
    monkeypatch.setattr(convert_module, "load_tokenizer", lambda folder: SimpleNamespace(chat_template=None))
    assert (convert(source, tmp_path / "weights") / "config" / name).read_text() == "x"


def test_a_broken_tokenizer_is_told_before_anything_is_written(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(MalformedFileError, match=r"tokenizer\.json"):
        convert(source, tmp_path / "weights", progress=lambda done, total, what: pytest.fail("written"))
    assert leftovers(tmp_path) == []


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
    assert load_model(tmp_path / "weights", quantization="none").weights["embedding"].layout == "f32"


def test_a_directory_in_bfloat16_is_not_widened_unless_asked(tmp_path: Path) -> None:
    weights = convert(make_checkpoint(tmp_path / "model", "llama", dtype="BF16"), tmp_path / "weights")
    assert load_model(weights, quantization="none").weights["embedding"].layout == "bf16"
    assert load_model(weights, dtype="float32").weights["embedding"].layout == "f32"


# --- whose architecture counts


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """config/ beside weights/, and a model that both were made from."""
    convert(make_checkpoint(tmp_path / "model", "llama"), tmp_path / "weights")
    shutil.move(tmp_path / "weights" / "config", tmp_path / "config")
    return tmp_path


def test_a_config_beside_the_directory_describes_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = load_model(project / "model"), load_model(project / "weights")
    assert_same_weights(before, after)
    assert before.tokenizer.encode("Once upon a time") == after.tokenizer.encode("Once upon a time")
    monkeypatch.chdir(project / "weights")
    assert_same_weights(before, load_model("."))


def test_a_settings_folder_describes_a_directory_without_a_config(project: Path) -> None:
    shutil.move(project / "config", project / "elsewhere")
    with pytest.raises(ModelNotFoundError, match=rf"need its architecture.*{project / 'weights'}/config"):
        load_model(project / "weights")
    loaded = load_model(project / "weights", config_dir=project / "elsewhere")
    assert_same_weights(load_model(project / "model"), loaded)


def test_the_settings_folder_goes_over_the_config_beside_the_directory(project: Path) -> None:
    shutil.copytree(project / "config", project / "elsewhere")
    (project / "config" / "model_config.yaml").write_text("architecture: {model_type: unheard-of}\n")
    assert load_model(project / "weights", config_dir=project / "elsewhere").config.model_type == "llama"
    with pytest.raises(UnsupportedModelError, match="unheard-of"):
        load_model(project / "weights")


def test_a_settings_folder_that_describes_nothing_leaves_the_config_beside_the_directory(project: Path) -> None:
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "model_config.yaml").write_text("architecture: null\n")
    assert load_model(project / "weights", config_dir=project / "elsewhere").config.model_type == "llama"


@pytest.mark.parametrize("table", ["architecture", "float", "int8"])
@pytest.mark.parametrize("model", ["weights", "model", None, "owner/name", "a\0b", "x" * 5000])
def test_a_table_of_the_settings_that_no_model_reads_is_refused(
    weights: Path, tmp_path: Path, table: str, model: str | None
) -> None:
    settings = tmp_path / "settings"
    settings.mkdir()
    name = "model_config.yaml" if table == "architecture" else "weight_paths.yaml"
    (settings / name).write_text(f"{table}: {{}}\n")
    with pytest.raises(ConfigError, match=rf"{name}: {table}\] need null"):
        load_model(tmp_path / model if model in ("weights", "model") else model, config_dir=settings)


def test_the_directory_s_own_config_may_be_named_as_the_settings(weights: Path) -> None:
    assert load_model(weights, config_dir=weights / "config").config.model_type == "llama"


def test_weight_paths_that_lie_apart_from_the_architecture_are_refused(project: Path) -> None:
    (project / "weights" / "config").mkdir()
    shutil.move(project / "config" / "weight_paths.yaml", project / "weights" / "config")
    with pytest.raises(ConfigError, match=r"weights/config/weight_paths\.yaml: float\] need null"):
        load_model(project / "weights")


def test_a_settings_folder_that_is_none_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^\[config_dir\] need a folder"):
        load_model(weights, config_dir=tmp_path / "absent")


# --- weights that nobody asked for


LEFT_OVER = {
    "layer_0/attn_o.bias": "attention_bias",
    "layer_1/attn_q.bias": "attention_bias",
    "layer_0/q_norm": "no q/k norm",
    "layer_0/k_norm": "no q/k norm",
    "layer_0/mlp_up.bias": "mlp_bias",
    "layer_1/mlp_fc1": "no such part",
    "layer_2/ln1": "num_hidden_layers is 2",
    "final_norm.bias": "no such part",
}


@pytest.mark.parametrize("name", LEFT_OVER)
def test_a_file_of_a_weight_that_the_architecture_lacks_is_refused_by_its_path_and_knob(
    weights: Path, name: str
) -> None:
    path = weights / f"{name}.bin"
    path.parent.mkdir(exist_ok=True)
    np.ones(64, np.float32).tofile(path)
    with pytest.raises(UnsupportedModelError, match=rf"^\[{path}\] .*{LEFT_OVER[name]}.*would change the output"):
        load_model(weights)


@pytest.mark.parametrize("file", ["lm_head.bin", "int8/lm_head.bin", "int8/lm_head.scale.bin"])
def test_a_head_of_its_own_beside_tied_embeddings_is_refused(tmp_path: Path, file: str) -> None:
    weights = convert(make_checkpoint(tmp_path / "model", "qwen3"), tmp_path / "weights")
    (weights / file).write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=rf"{file}\] .*tie_word_embeddings is true"):
        load_model(weights)


def test_files_of_other_names_are_left_alone(weights: Path) -> None:
    for name in ("notes.txt", "notes.bin", "layer_0/notes.bin", "int8/notes.bin"):
        (weights / name).write_text("mine")
    assert load_model(weights).config.n_layers == 2


def add_entry(weights: Path, table: str, name: str, entry: dict[str, Any]) -> None:
    listed = weights / "config" / "weight_paths.yaml"
    content = yaml.safe_load(listed.read_text())
    content[table][name] = entry
    listed.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("table", ["float", "int8"])
@pytest.mark.parametrize("name", ["layer_0/attn_o.bias", "nonsense"])
def test_a_listed_weight_that_the_architecture_lacks_is_refused_by_its_name(
    weights: Path, table: str, name: str
) -> None:
    add_entry(weights, table, name, {"path": f"{name}.bin", "dtype": "float32", "shape": [64]})
    with pytest.raises(
        UnsupportedModelError, match=rf"weight_paths\.yaml: {table}\] .*{name}.*would change the output"
    ):
        load_model(weights)


def test_a_vector_listed_as_int8_is_refused(weights: Path) -> None:
    add_entry(weights, "int8", "final_norm", {"path": "int8/final_norm.bin", "dtype": "int8", "shape": [64]})
    with pytest.raises(UnsupportedModelError, match=r"int8\] need matrices alone, got the vector 'final_norm'"):
        load_model(weights)


def test_an_int8_entry_without_a_scale_has_the_standard_one(weights: Path) -> None:
    before = load_model(weights)
    listed = weights / "config" / "weight_paths.yaml"
    content = yaml.safe_load(listed.read_text())
    del content["int8"]["embedding"]["scale"]
    listed.write_text(yaml.safe_dump(content))
    assert_same_weights(before, load_model(weights))


def test_a_changed_dtype_is_packed_anew(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", dtype="BF16")
    weights = convert(source, tmp_path / "weights", int8=False)
    before = load_model(weights)
    set_path(weights, "float16", key="dtype", name="layer_0/ln1")
    after = load_model(weights)
    assert not np.array_equal(before.weights["layer_0/ln1"].data, after.weights["layer_0/ln1"].data)


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
