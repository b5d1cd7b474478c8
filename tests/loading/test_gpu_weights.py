"""Weights for a GPU: the bricks that pack_gpu_weights.h draws, of rows fused and quantised as the CPU's."""

from __future__ import annotations

import importlib
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import rounded_reference
from models_factory import hf_config, make_checkpoint, random_weights, write_shards

from llm_decoder import backends, quantize, weight_cache
from llm_decoder.backends import expand_w4, unpack_w8
from llm_decoder.errors import BackendError, ConfigError, MalformedFileError, UnsupportedModelError
from llm_decoder.gpu_weights import choose_gpu_dtype, choose_gpu_layout, packers
from llm_decoder.loading import choose_layout
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor, core_tensors
from llm_decoder.quantize import pack_in_memory
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

Floats = npt.NDArray[np.float32]

ODD = {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 136, "head_dim": 24, "intermediate_size": 72}


@pytest.fixture(autouse=True)
def _host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_cuda", lambda: importlib.import_module("llm_decoder._cuda_host"))


@pytest.fixture(params=[{}, ODD], ids=["even", "odd"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", attention_bias=True, **request.param))


def bricks_of(packed: PackedTensor, n_inputs: int) -> npt.NDArray[np.uint8]:
    """[n / 64, k / n_inputs, bytes of a brick]"""
    n, k = packed.shape
    return packed.data.reshape(-(-n // 64), -(-k // n_inputs), -1)


def values_of(packed: PackedTensor) -> Floats:
    """float32 [n, k], before scales, out of bricks: by the indices that the layout's drawing names."""
    n, k = packed.shape
    if packed.layout in ("gpu_bf16", "gpu_f16"):
        halves = bricks_of(packed, 64).view(np.uint16)
        # rows of bricks, columns, tiles, eights of inputs, eights of outputs, outputs, runs, inputs
        rows = halves.reshape(*halves.shape[:2], 4, 2, 2, 8, 4, 8).transpose(0, 2, 4, 5, 1, 6, 3, 7)
        bits = rows.reshape(rows.shape[0] * 64, -1)[:n, :k]
        if packed.layout == "gpu_f16":
            return bits.copy().view(np.float16).astype(np.float32)
        return (bits.astype(np.uint32) << 16).view(np.float32)
    bricks = bricks_of(packed, 128)
    if packed.layout in ("gpu_w8", "gpu_f8"):
        rows = bricks.reshape(*bricks.shape[:2], 4, 4, 8, 4, 2, 8).transpose(0, 2, 6, 4, 1, 5, 3, 7)
        codes = rows.reshape(rows.shape[0] * 64, -1)[:n, :k]
        if packed.layout == "gpu_f8":
            return codes.copy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        return codes.astype(np.float32) - 128
    assert packed.layout == "gpu_w4"
    words = bricks[:, :, :4096].copy().view(np.uint32).reshape(*bricks.shape[:2], 4, 2, 8, 4, 2, 2)
    shifts = np.array([i % 2 * 16 + i // 2 * 4 for i in range(8)], np.uint32)
    # rows of bricks, columns, tiles, sixteens of inputs, outputs, runs, eights of outputs, eights of inputs, inputs
    q = (words[..., None] >> shifts & 15).transpose(0, 2, 6, 4, 1, 5, 3, 7, 8)
    groups = bricks[:, :, 4096:].reshape(*bricks.shape[:2], 8, 4, 4, 2, 2).transpose(0, 4, 5, 2, 1, 3, 6)
    rows = q.reshape(*q.shape[:6], 32) * groups[..., :1].astype(np.float32) + (groups[..., 1:].astype(np.float32) - 128)
    return rows.reshape(rows.shape[0] * 64, -1)[:n, :k].astype(np.float32)


def whole(checkpoint: SafetensorsCheckpoint, parts: tuple[str, ...]) -> Floats:
    return np.concatenate([checkpoint.read(part) for part in parts])


def rounded(values: Floats, layout: str) -> Floats:
    if layout == "gpu_f16":
        return values.astype(np.float16).astype(np.float32)
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)  # 8 bits, ties to even


@pytest.mark.parametrize("block_floats", [1, 1 << 20])
@pytest.mark.parametrize("layout", ["gpu_bf16", "gpu_f16"])
def test_half_matrices_are_the_floats_rounded_part_below_part(
    checkpoint: SafetensorsCheckpoint, layout: MatrixLayout, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed = pack_in_memory(checkpoint, layout)
    for tensor in core_tensors(checkpoint.config, layout):
        found, floats = packed[tensor.name], whole(checkpoint, tensor.parts)
        assert found.data.nbytes == tensor.data_bytes
        assert found.scales is None
        if tensor.layout == "vector":
            np.testing.assert_array_equal(found.data, floats)
        else:
            np.testing.assert_array_equal(values_of(found), rounded(floats, layout), tensor.name)


@pytest.mark.parametrize("block_floats", [1, 1 << 20])
def test_int8_matrices_are_those_of_the_cpu(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed, of_cpu = pack_in_memory(checkpoint, "gpu_w8"), pack_in_memory(checkpoint, "w8")
    for tensor in core_tensors(checkpoint.config, "gpu_w8"):
        found, same = packed[tensor.name], of_cpu[tensor.name]
        assert found.data.nbytes == tensor.data_bytes
        if tensor.layout == "vector":
            continue
        np.testing.assert_array_equal(values_of(found), unpack_w8(same.data, *tensor.shape), tensor.name)
        np.testing.assert_array_equal(found.scales, same.scales)


@pytest.mark.parametrize("block_floats", [1, 1 << 20])
def test_int4_matrices_are_those_of_the_cpu_and_the_outer_layers_int8(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed, of_cpu = pack_in_memory(checkpoint, "gpu_w4"), pack_in_memory(checkpoint, "w4")
    layouts = {tensor.name: tensor.layout for tensor in core_tensors(checkpoint.config, "gpu_w4")}
    assert (layouts["embedding"], layouts["lm_head"], layouts["layer_0/attn_o"]) == ("gpu_w8", "gpu_w8", "gpu_w4")
    for tensor in core_tensors(checkpoint.config, "gpu_w4"):
        found, same = packed[tensor.name], of_cpu[tensor.name]
        assert found.data.nbytes == tensor.data_bytes
        if tensor.layout == "vector":
            continue
        expand = expand_w4 if tensor.layout == "gpu_w4" else unpack_w8
        np.testing.assert_array_equal(values_of(found), expand(same.data, *tensor.shape), tensor.name)
        np.testing.assert_array_equal(found.scales, same.scales)


@pytest.mark.parametrize("block_floats", [1, 1 << 20])
def test_fp8_matrices_are_the_rows_rounded_and_the_outer_layers_int8(
    checkpoint: SafetensorsCheckpoint, block_floats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_BLOCK_FLOATS", block_floats)
    packed = pack_in_memory(checkpoint, "gpu_f8")
    layouts = {tensor.name: tensor.layout for tensor in core_tensors(checkpoint.config, "gpu_f8")}
    assert (layouts["embedding"], layouts["lm_head"], layouts["layer_0/attn_o"]) == ("gpu_w8", "gpu_w8", "gpu_f8")
    for tensor in core_tensors(checkpoint.config, "gpu_f8"):
        found = packed[tensor.name]
        assert found.data.nbytes == tensor.data_bytes
        if tensor.layout == "gpu_f8":
            codes, scale = rounded_reference.fp8_rows(whole(checkpoint, tensor.parts))
            np.testing.assert_array_equal(values_of(found), codes.astype(np.float32), tensor.name)
            np.testing.assert_array_equal(found.scales, scale)


def test_fp8_rounds_to_the_nearest_ties_to_even_and_never_past_the_largest() -> None:
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    between = (values[1:] + values[:-1]) / 2
    around = [np.nextafter(between, np.float32(side)) for side in (0, 1e3)]
    row = np.concatenate([values, between, *around, [448.0]]).astype(np.float32)
    rows = np.stack([row, -row, row * np.float32(2.0**-140), row * np.float32(3.1e35), np.zeros_like(row)])
    q, scale = packers().quantize_f8_rows(rows)
    codes, want = rounded_reference.fp8_rows(rows)
    np.testing.assert_array_equal(q, codes.view(np.uint8))
    np.testing.assert_array_equal(scale, want)
    assert scale.tolist()[:2] == [1.0, 1.0]
    assert scale[4] == 1.0
    assert not (q & 0x7F == 0x7F).any()


@pytest.mark.parametrize("layout", ["gpu_w4", "gpu_f8"])
def test_they_are_mapped_from_the_cache_the_second_time(
    checkpoint: SafetensorsCheckpoint, layout: MatrixLayout, tmp_path: Path
) -> None:
    first = pack_in_memory(checkpoint, layout)
    for _ in range(2):
        mapped = weight_cache.load_or_pack(checkpoint, layout, cache_dir=tmp_path / "cache")
        assert mapped is not None
        assert mapped.keys() == first.keys()
        for name, tensor in first.items():
            np.testing.assert_array_equal(mapped[name].data, tensor.data, name)
            assert mapped[name].layout == tensor.layout
    assert len(weight_cache.list_entries(tmp_path / "cache")) == 1


def test_a_float_past_the_largest_float16_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = random_weights(hf_config("llama"))
    weights["lm_head.weight"][17, 3] = 65520.0
    write_shards(folder, weights)
    pack_in_memory(SafetensorsCheckpoint(folder), "gpu_bf16")
    with pytest.raises(MalformedFileError, match=r"lm_head.*another dtype"):
        pack_in_memory(SafetensorsCheckpoint(folder), "gpu_f16")


@pytest.mark.parametrize("layout", ["gpu_bf16", "gpu_f16", "gpu_w8", "gpu_f8"])
def test_a_nan_is_refused_by_name(tmp_path: Path, layout: MatrixLayout) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    weights = random_weights(hf_config("llama"))
    # one that rounding carries to -0
    weights["model.layers.0.self_attn.o_proj.weight"][17, 3] = np.uint32(0x7FFFFFFF).view(np.float32)
    write_shards(folder, weights)
    with pytest.raises(MalformedFileError, match=r"attn_o.*finite"):
        pack_in_memory(SafetensorsCheckpoint(folder), layout)


def test_without_the_extension_packing_says_what_is_missing(
    checkpoint: SafetensorsCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_nothing() -> None:
        raise BackendError("this build has no CUDA extension")

    monkeypatch.setattr(backends, "load_cuda", load_nothing)
    with pytest.raises(BackendError, match="no CUDA extension"):
        pack_in_memory(checkpoint, "gpu_w8")


@pytest.mark.parametrize(("stored", "dtype"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "bfloat16")])
def test_activations_have_the_type_of_the_checkpoint_if_kernels_take_it(
    tmp_path: Path, stored: str, dtype: str
) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", dtype=stored))
    assert choose_gpu_dtype(checkpoint) == dtype
    assert choose_gpu_dtype(checkpoint, "float16") == "float16"


def test_the_layout_is_that_of_the_dtype_unless_integers_are_asked_for(checkpoint: SafetensorsCheckpoint) -> None:
    config = checkpoint.config
    assert choose_gpu_layout(config, "auto", "bfloat16") == "gpu_bf16"
    assert choose_gpu_layout(config, "none", "float16") == "gpu_f16"
    assert choose_gpu_layout(config, "int8", "float16") == "gpu_w8"
    assert choose_gpu_layout(config, "int4", "bfloat16") == "gpu_w4"
    assert choose_gpu_layout(config, "fp8", "bfloat16") == "gpu_f8"


def test_names_that_are_not_known_and_sizes_that_no_kernel_takes_are_refused(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, "llama", intermediate_size=61))
    with pytest.raises(ConfigError, match=r"\[dtype\] need auto, bfloat16 or float16 on a GPU, got 'float32'"):
        choose_gpu_dtype(checkpoint, "float32")
    with pytest.raises(ConfigError, match=r"\[quantization\] need auto, none, int8, int4, fp8, got 'int2'"):
        choose_gpu_layout(checkpoint.config, "int2", "bfloat16")
    with pytest.raises(ConfigError, match=r"\[quantization\] fp8 is for GPUs, got the CPU; use int8"):
        choose_layout("fp8", "auto")
    with pytest.raises(UnsupportedModelError, match="intermediate_size to be a multiple of 8 on a GPU, got 61"):
        choose_gpu_layout(checkpoint.config, "auto", "bfloat16")
