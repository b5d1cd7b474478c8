"""Packing: fused rows in the right order, whole panels, the layouts that cpu_kernels.h draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models_factory import hf_config, make_checkpoint, random_weights, write_shards

from llm_decoder import quantize
from llm_decoder.backends import expand_w4, pack_bf16, unpack_w8
from llm_decoder.errors import MalformedFileError
from llm_decoder.packed_tensor import DATA_ALIGN, PackedTensor, core_tensors
from llm_decoder.quantize import pack_in_memory
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 123, "head_dim": 22, "intermediate_size": 61}


def rows_of(packed: PackedTensor) -> np.ndarray:
    """float32 [n, k] out of a packed matrix, by the layout's own drawing."""
    n, k = packed.shape
    if packed.layout == "f32":
        return packed.data.reshape(-1, k, 16).transpose(0, 2, 1).reshape(-1, k)[:n]
    assert packed.scales is not None
    k_padded = -(-k // 4) * 4
    panels = packed.data.reshape(-1, k_padded // 4, 16, 4).transpose(0, 2, 1, 3).reshape(-1, k_padded)
    assert (panels[:, k:] == 128).all(), "channels past k are zero"
    assert (panels[n:] == 128).all(), "rows past n are zero"
    return (panels[:n, :k].astype(np.float32) - 128) * packed.scales[:, None]


@pytest.fixture(params=[{}, ODD], ids=["even", "odd"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", attention_bias=True, **request.param))


@pytest.mark.parametrize("block_floats", [1, 1 << 10, 1 << 20])
def test_float_matrices_hold_every_part_in_order(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed = pack_in_memory(checkpoint, "f32")
    for tensor in core_tensors(checkpoint.config, "f32"):
        whole = np.concatenate([checkpoint.read(part) for part in tensor.parts])
        found = packed[tensor.name]
        np.testing.assert_array_equal(found.data if tensor.layout == "vector" else rows_of(found), whole, tensor.name)
        assert found.data.nbytes == tensor.data_bytes


@pytest.mark.parametrize("block_floats", [1, 1 << 10, 1 << 20])
def test_bfloat16_matrices_are_the_floats_rounded_and_take_half_the_bytes(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed, floats = pack_in_memory(checkpoint, "bf16"), pack_in_memory(checkpoint, "f32")
    for tensor in core_tensors(checkpoint.config, "bf16"):
        found, whole = packed[tensor.name], floats[tensor.name]
        assert found.data.nbytes == tensor.data_bytes
        if tensor.layout == "vector":
            np.testing.assert_array_equal(found.data, whole.data)
            continue
        np.testing.assert_array_equal(found.data, pack_bf16(whole.data.reshape(-1, 16).T.copy()).ravel())
        assert 2 * found.data.nbytes == whole.data.nbytes


def test_a_checkpoint_in_bfloat16_is_taken_as_it_is(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", dtype="BF16"))
    packed, floats = pack_in_memory(checkpoint, "bf16"), pack_in_memory(checkpoint, "f32")
    for name, found in packed.items():
        if found.layout == "bf16":
            np.testing.assert_array_equal(found.data, floats[name].data.view(np.uint32) >> 16)


def test_a_float_past_the_largest_bfloat16_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = random_weights(hf_config("llama"))
    weights["lm_head.weight"][17, 3] = np.finfo(np.float32).max
    write_shards(folder, weights)
    with pytest.raises(MalformedFileError, match=r"lm_head.*another dtype"):
        pack_in_memory(SafetensorsCheckpoint(folder), "bf16")


@pytest.mark.parametrize("block_floats", [1, 1 << 10, 1 << 20])
def test_int8_matrices_are_within_half_a_step_of_the_floats(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed = pack_in_memory(checkpoint, "w8")
    for tensor in core_tensors(checkpoint.config, "w8"):
        if tensor.layout == "vector":
            continue
        whole = np.concatenate([checkpoint.read(part) for part in tensor.parts])
        scales = packed[tensor.name].scales
        assert scales is not None
        np.testing.assert_allclose(scales, np.abs(whole).max(axis=1) / 127, rtol=1e-6)
        assert (np.abs(rows_of(packed[tensor.name]) - whole) <= scales[:, None] * 0.5001).all()
        assert np.abs(unpack_w8(packed[tensor.name].data, *tensor.shape)).max() == 127


@pytest.mark.parametrize("block_floats", [1, 1 << 10, 1 << 20])
def test_int4_matrices_are_near_the_floats_and_the_outer_layers_stay_int8(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed, int8 = pack_in_memory(checkpoint, "w4"), pack_in_memory(checkpoint, "w8")
    for tensor in core_tensors(checkpoint.config, "w4"):
        found = packed[tensor.name]
        assert found.data.nbytes == tensor.data_bytes
        if tensor.layout != "w4":
            np.testing.assert_array_equal(found.data, int8[tensor.name].data)
            continue
        whole = np.concatenate([checkpoint.read(part) for part in tensor.parts])
        assert found.scales is not None
        np.testing.assert_array_equal(found.scales, int8[tensor.name].scales)
        error = expand_w4(found.data, *tensor.shape) * found.scales[:, None] - whole
        assert (error**2).sum() < 0.01 * (whole**2).sum()
    assert {tensor.name for tensor in core_tensors(checkpoint.config, "w4") if tensor.layout == "w8"} == {
        "embedding",
        "lm_head",
    }


def test_packed_matrices_are_aligned_for_vector_loads(checkpoint: SafetensorsCheckpoint) -> None:
    for tensor in pack_in_memory(checkpoint, "w8").values():
        assert tensor.data.ctypes.data % DATA_ALIGN == 0


def test_progress_counts_bytes_up_to_the_total(checkpoint: SafetensorsCheckpoint) -> None:
    calls: list[tuple[int, int, str]] = []
    pack_in_memory(checkpoint, "w8", lambda done, total, what: calls.append((done, total, what)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][1] == sum(tensor.data_bytes for tensor in core_tensors(checkpoint.config, "w8"))
    assert any("attn_qkv" in what for _, _, what in calls)


def test_a_row_of_zeros_has_scale_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = random_weights(hf_config("llama"))
    weights["lm_head.weight"][17] = 0.0
    write_shards(folder, weights)
    packed = pack_in_memory(SafetensorsCheckpoint(folder), "w8")["lm_head"]
    assert packed.scales is not None
    assert packed.scales[17] == 1.0
    assert not rows_of(packed)[17].any()
