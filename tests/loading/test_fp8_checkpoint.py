"""HF folders whose matrices are in fp8: codes and scales as they are, or the floats that they stand for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rounded_reference
from models_factory import encode, hf_config, make_checkpoint, random_weights, write_safetensors

from llm_decoder import backends, quantize
from llm_decoder.convert import convert
from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.fp8_checkpoint import fp8_values
from llm_decoder.gpu_weights import packers
from llm_decoder.loading import load_model
from llm_decoder.quantize import pack_in_memory
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

BY_ROW: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}
WHOLE: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]


@pytest.fixture(autouse=True)
def _host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_cuda", lambda: importlib.import_module("llm_decoder._cuda_host"))


def stored_tensors(by_row: bool) -> tuple[Stored, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What the file holds, and codes and scales [n] of its fp8 matrices by the checkpoint's names."""
    stored: Stored = {}
    matrices = {}
    for name, weight in random_weights(hf_config("llama")).items():
        if ".layers." not in name or weight.ndim != 2:
            stored[name] = ("BF16", weight.shape, encode(weight, "BF16"))
            continue
        codes, scale = rounded_reference.fp8_rows(weight)
        codes = codes.view(np.uint8)
        stem = name.removesuffix("weight")
        if by_row:
            stored[f"{stem}weight_scale"] = ("F32", (len(scale), 1), encode(scale, "F32"))
        else:
            scale = np.full(len(scale), 0.015625, np.float32)
            stored[f"{stem}weight_scale"] = ("BF16", (), encode(scale[:1], "BF16"))
            stored[f"{stem}input_scale"] = ("F32", (1,), encode(np.ones(1, np.float32), "F32"))
        stored[name] = ("F8_E4M3", weight.shape, codes.tobytes())
        matrices[name] = (codes, scale)
    return stored, matrices


def write(folder: Path, stored: Stored, quantization: dict[str, Any] | None) -> Path:
    make_checkpoint(folder, "llama", dtype="BF16", quantization_config=quantization)
    write_safetensors(folder / "model.safetensors", stored)
    return folder


O_PROJ = "model.layers.0.self_attn.o_proj."


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("block_floats", [1, 1 << 20])
def test_codes_and_scales_reach_a_gpu_as_they_are(
    tmp_path: Path, by_row: bool, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    stored, matrices = stored_tensors(by_row)
    checkpoint = SafetensorsCheckpoint(write(tmp_path, stored, BY_ROW if by_row else WHOLE))
    packed = pack_in_memory(checkpoint, "gpu_f8")
    for ours, theirs in {"attn_o": "self_attn.o_proj", "mlp_down": "mlp.down_proj"}.items():
        codes, scale = matrices[f"model.layers.1.{theirs}.weight"]
        np.testing.assert_array_equal(packed[f"layer_1/{ours}"].data, packers().pack_gpu_f8(codes))
        np.testing.assert_array_equal(packed[f"layer_1/{ours}"].scales, scale)
    fused = [matrices[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    codes, scale = (np.concatenate(pieces) for pieces in zip(*fused, strict=True))
    np.testing.assert_array_equal(packed["layer_0/attn_qkv"].data, packers().pack_gpu_f8(codes))
    np.testing.assert_array_equal(packed["layer_0/attn_qkv"].scales, scale)


def test_elsewhere_they_are_the_floats_that_they_stand_for(tmp_path: Path) -> None:
    stored, matrices = stored_tensors(by_row=True)
    folder = write(tmp_path, stored, BY_ROW)
    checkpoint = SafetensorsCheckpoint(folder)
    codes, scale = matrices[f"{O_PROJ}weight"]
    want = fp8_values(codes) * scale[:, None]
    np.testing.assert_array_equal(checkpoint.read("layer_0/attn_o"), want)
    np.testing.assert_array_equal(checkpoint.rows("layer_0/attn_o", 3, 7), want[3:7])
    assert checkpoint.stored_dtype("layer_0/attn_o") == "fp8"
    assert load_model(folder, quantization="none").weights["layer_0/attn_o"].layout == "f32"
    assert load_model(folder).weights["layer_0/attn_o"].layout == "w8"


def test_every_code_has_its_value() -> None:
    import ml_dtypes

    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(fp8_values(codes), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_a_code_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    stored, matrices = stored_tensors(by_row=True)
    codes, _ = matrices[f"{O_PROJ}weight"]
    codes = codes.copy()
    codes[5, 7] = 0xFF
    stored[f"{O_PROJ}weight"] = ("F8_E4M3", codes.shape, codes.tobytes())
    checkpoint = SafetensorsCheckpoint(write(tmp_path, stored, BY_ROW))
    for layout in ("gpu_f8", "w8", "f32"):
        with pytest.raises(MalformedFileError, match=r"layer_0/attn_o.*finite"):
            pack_in_memory(checkpoint, layout)


def test_blocks_are_refused_by_name(tmp_path: Path) -> None:
    stored, _ = stored_tensors(by_row=True)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    with pytest.raises(UnsupportedModelError, match=r"quantization_config\] .* 'fp8 in blocks'"):
        SafetensorsCheckpoint(write(tmp_path, stored, blocks))
    stored[f"{O_PROJ}weight_scale_inv"] = stored.pop(f"{O_PROJ}weight_scale")
    with pytest.raises(UnsupportedModelError, match=r"o_proj\.weight\] need fp8 with a scale .*, got scales of blocks"):
        SafetensorsCheckpoint(write(tmp_path, stored, WHOLE))


def test_scales_that_are_missing_or_of_a_wrong_shape_are_refused_by_name(tmp_path: Path) -> None:
    stored, _ = stored_tensors(by_row=True)
    scale = f"{O_PROJ}weight_scale"
    stored[scale] = ("F32", (2,), encode(np.ones(2, np.float32), "F32"))
    with pytest.raises(UnsupportedModelError, match=r"o_proj\.weight_scale\] need a scale for each of 64 rows .*\[2\]"):
        SafetensorsCheckpoint(write(tmp_path, stored, BY_ROW))
    del stored[scale]
    with pytest.raises(MalformedFileError, match=r"o_proj\.weight\] need its scale '.*o_proj\.weight_scale', got none"):
        SafetensorsCheckpoint(write(tmp_path, stored, BY_ROW))


def test_scales_of_pages_are_refused(tmp_path: Path) -> None:
    stored, _ = stored_tensors(by_row=True)
    stored["model.layers.0.self_attn.k_scale"] = ("F32", (1,), encode(np.ones(1, np.float32), "F32"))
    with pytest.raises(UnsupportedModelError, match="k_scale"):
        SafetensorsCheckpoint(write(tmp_path, stored, BY_ROW))


def test_convert_copies_floats_alone(tmp_path: Path) -> None:
    stored, _ = stored_tensors(by_row=True)
    folder = write(tmp_path / "model", stored, BY_ROW)
    with pytest.raises(UnsupportedModelError, match=r"need matrices in floats to copy, got fp8; .*--no-float"):
        convert(folder, tmp_path / "floats")
    convert(folder, tmp_path / "int8", float_weights=False)
    before, after = load_model(folder), load_model(tmp_path / "int8")
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(weight.data, after.weights[name].data, name)
