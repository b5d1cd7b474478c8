"""reshape_and_cache, copy_blocks and swap_blocks through their doors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode, poison
from exported_tensor import CUDA, ExportedTensor

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

T, H, D, P, S = 7, 3, 40, 4, 16
SLOTS = np.array([3, 63, -1, 16, 17, 0, 40], np.int64)
LARGEST = {"fp8": 448.0, "int8": 127.0}


def rows_of(dtype: str, seed: int) -> np.ndarray:
    return encode(np.random.default_rng(seed).normal(size=(T, H, D)) * 3, dtype)


def pages_of(dtype: str) -> np.ndarray:
    return np.full((P, S, H, D), poison(dtype), encode(np.zeros(1), dtype).dtype)


def slots_of(pages: np.ndarray) -> np.ndarray:
    return pages.reshape(P * S, *pages.shape[2:])


def check_stored(pages: np.ndarray, kv_dtype: str, want: np.ndarray, scale: Any) -> None:
    """That the slots named hold want / scale, rounded, and the others what they held."""
    stored = slots_of(pages)
    named = SLOTS[SLOTS >= 0]
    untouched = np.setdiff1d(np.arange(P * S), named)
    np.testing.assert_array_equal(stored[untouched], slots_of(pages_of(kv_dtype))[untouched])
    values = decode(stored[named], kv_dtype) * scale
    size = np.abs(want[SLOTS >= 0])
    step = np.broadcast_to(scale, values.shape) / 2 if kv_dtype == "int8" else size * ROUNDING[kv_dtype]
    assert (
        np.abs(values - want[SLOTS >= 0])
        <= step * 1.001 + 1e-2 * (kv_dtype == "fp8") * np.broadcast_to(scale, size.shape)
    ).all()


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16"])
def test_each_token_goes_into_its_slot_and_no_other_changes(dtype: str, kv_dtype: str) -> None:
    key, value = rows_of(dtype, 0), rows_of(dtype, 1)
    k_cache, v_cache = pages_of(kv_dtype), pages_of(kv_dtype)
    ops.reshape_and_cache(key, value, k_cache, v_cache, SLOTS, dtype=dtype, kv_dtype=kv_dtype)
    check_stored(k_cache, kv_dtype, decode(key, dtype), 1.0)
    check_stored(v_cache, kv_dtype, decode(value, dtype), 1.0)


def test_float32_pages_are_the_cpus() -> None:
    key, value = rows_of("float32", 0), rows_of("float32", 1)
    k_cache, v_cache = pages_of("float32"), pages_of("float32")
    ops.reshape_and_cache(key, value, k_cache, v_cache, SLOTS)
    np.testing.assert_array_equal(slots_of(k_cache)[SLOTS[SLOTS >= 0]], key[SLOTS >= 0])
    np.testing.assert_array_equal(slots_of(v_cache)[SLOTS[SLOTS >= 0]], value[SLOTS >= 0])


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("kv_dtype", ["fp8", "int8"])
def test_bytes_are_divided_by_the_scale_of_all_or_of_their_head(kv_dtype: str) -> None:
    key, value = rows_of("bfloat16", 0), rows_of("bfloat16", 1)
    k_cache, v_cache = pages_of(kv_dtype), pages_of(kv_dtype)
    v_scale = np.array([0.1, 0.2, 0.15], np.float32)
    ops.reshape_and_cache(key, value, k_cache, v_cache, SLOTS, 0.125, v_scale, dtype="bfloat16", kv_dtype=kv_dtype)
    check_stored(k_cache, kv_dtype, decode(key, "bfloat16"), 0.125)
    check_stored(v_cache, kv_dtype, decode(value, "bfloat16"), v_scale[:, None])


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("kv_dtype", ["fp8", "int8"])
def test_scales_of_slots_are_made_and_attention_reads_what_was_written(kv_dtype: str) -> None:
    key, value = rows_of("bfloat16", 0), rows_of("bfloat16", 1)
    k_cache, v_cache = pages_of(kv_dtype), pages_of(kv_dtype)
    k_scale, v_scale = np.full((2, P, S, H), np.nan, np.float32)
    ops.reshape_and_cache(key, value, k_cache, v_cache, SLOTS, k_scale, v_scale, dtype="bfloat16", kv_dtype=kv_dtype)
    for rows, pages, scales in ((key, k_cache, k_scale), (value, v_cache, v_scale)):
        want = decode(rows, "bfloat16")
        named = SLOTS[SLOTS >= 0]
        made = slots_of(scales)[named]
        np.testing.assert_allclose(made, np.abs(want[SLOTS >= 0]).max(axis=-1) / LARGEST[kv_dtype], rtol=1e-6)
        assert np.isnan(np.delete(slots_of(scales), named, axis=0)).all()
        check_stored(pages, kv_dtype, want, made[..., None])
    table, one = np.array([[1]], np.int32), np.array([1], np.int32)
    out = ops.paged_attention(
        key[:1], k_cache, v_cache, table, one, np.array([0, 1], np.int32), k_scale=k_scale, v_scale=v_scale,
        q_dtype="bfloat16", kv_dtype=kv_dtype,
    )  # fmt: skip
    np.testing.assert_allclose(decode(out, "bfloat16")[0], decode(value, "bfloat16")[3], rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": np.zeros((T, D), np.float32)}, r"key must have shape \[T, Hkv, D\]"),
        (
            {"value": np.zeros((T, H, 8), np.float32)},
            r"value must have shape \[T, Hkv, D\] = \[7, 3, 40\], got \[7, 3, 8\]",
        ),
        ({"value": np.zeros((T, H, D), np.float16)}, "value must be float32, got float16"),
        ({"key": np.zeros((T, H, D))}, "key must be float32 or bfloat16 or float16, got float64"),
        ({"k_cache": pages_of("float16")[:, :, :2]}, r"k_cache must have shape \[P, S, Hkv, D\] = \[any, any, 3, 40\]"),
        ({"v_cache": pages_of("float16")[:3]}, r"v_cache must have shape .*, got \[3, 16, 3, 40\]"),
        ({"v_cache": pages_of("int8")}, "v_cache was said to hold float16: must be float16 or uint16, got int8"),
        ({"slot_mapping": SLOTS.astype(np.int32)}, "slot_mapping must be int64, got int32; pass it as int64"),
        ({"slot_mapping": SLOTS[1:]}, r"slot_mapping must have shape \[T\] = \[7\], got \[6\]"),
        ({"slot_mapping": SLOTS + 1}, "slot_mapping must be below 64, the slots of k_cache, got 64"),
        ({"k_scale": 0.0}, "k_scale must be above 0"),
        ({"v_scale": np.array([0.5, 0.0, 1.0], np.float32)}, "v_scale must be above 0"),
        ({"v_scale": -1.0}, "v_scale must be a finite number of at least 0, got -1.0"),
        (
            {"v_scale": np.ones((P, S, H), np.float32)},
            "v_scale of every slot is for pages of fp8 and int8, got float16",
        ),
        (
            {"k_scale": np.ones(2, np.float32)},
            r"k_scale must be a float or have shape \[3\] or \[4, 16, 3\], got \[2\]",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "key": rows_of("float32", 0),
        "value": rows_of("float32", 1),
        "k_cache": pages_of("float16"),
        "v_cache": pages_of("float16"),
        "slot_mapping": SLOTS,
        "kv_dtype": "float16",
    }
    with pytest.raises(InvalidArgumentError, match=rf"^\[reshape_and_cache\] .*{message}"):
        ops.reshape_and_cache(**arguments | changes)


def test_scales_that_are_made_need_a_place_that_can_be_written() -> None:
    k_scale = np.ones((P, S, H), np.float32)
    k_scale.flags.writeable = False
    arguments = (rows_of("float32", 0), rows_of("float32", 1), pages_of("int8"), pages_of("int8"), SLOTS)
    with pytest.raises(InvalidArgumentError, match="k_scale must be writeable"):
        ops.reshape_and_cache(*arguments, k_scale)


@pytest.mark.usefixtures("fake_device")
def test_scales_that_are_made_are_on_the_device_and_slots_may_be_in_host_memory() -> None:
    key, value = rows_of("bfloat16", 0), rows_of("bfloat16", 1)
    k_cache, v_cache = pages_of("int8"), pages_of("int8")
    k_scale, v_scale = np.ones((2, P, S, H), np.float32)
    there = [ExportedTensor(x, name, device=CUDA) for x, name in ((key, "bfloat16"), (value, "bfloat16"))]
    there += [ExportedTensor(x, device=CUDA) for x in (k_cache, v_cache)]
    with pytest.raises(InvalidArgumentError, match="k_scale must be on the device of key, cuda:0, got cpu"):
        ops.reshape_and_cache(*there, SLOTS, k_scale)
    scales = [ExportedTensor(x, device=CUDA) for x in (k_scale, v_scale)]
    ops.reshape_and_cache(*there, SLOTS, *scales)
    check_stored(k_cache, "int8", decode(key, "bfloat16"), slots_of(k_scale)[SLOTS[SLOTS >= 0]][..., None])


def layers(n: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(n)
    return [random.integers(0, 255, (6, 16, 2, 8)).astype(np.uint8) for _ in range(n)]


@pytest.mark.usefixtures("any_machine")
def test_copied_pages_are_the_same_in_every_layer_and_in_scales() -> None:
    keys, values = layers(2), layers(3)
    values[2] = values[2].astype(np.float32)
    before = [cache.copy() for cache in (*keys, *values)]
    ops.copy_blocks(keys, values, np.array([[0, 3], [0, 4], [5, 1]], np.int64))
    for cache, was in zip((*keys, *values), before, strict=True):
        np.testing.assert_array_equal(cache, was[[0, 5, 2, 0, 0, 5]])
    ops.copy_blocks(keys, values, np.zeros((0, 2), np.int64))


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_caches": [], "value_caches": []}, "must hold pages, got none"),
        ({"key_caches": None}, "key_caches must be a list, got NoneType"),
        ({"block_mapping": np.array([[0, 6]])}, r"destination pages of block_mapping must be in \[0, 6\), got 6"),
        ({"block_mapping": np.array([[-1, 2]])}, r"source pages of block_mapping must be in \[0, 6\), got -1"),
        ({"block_mapping": np.array([[0, 1], [2, 1]])}, "the destination of one copy, got 2 to page 1"),
        ({"block_mapping": np.array([[0, 1], [1, 2]])}, "must not be a source and a destination, got both of page 1"),
        ({"block_mapping": np.array([0, 1])}, r"block_mapping must have shape \[n, 2\]"),
        ({"block_mapping": np.array([[0, 1]], np.int32)}, "block_mapping must be int64, got int32; pass it as int64"),
        ({"value_caches": [layers(1)[0][:, ::2]]}, r"value_caches\[0\] must be contiguous"),
        ({"key_caches": [layers(1)[0].tobytes()]}, r"key_caches\[0\] must be a NumPy array or a tensor .*, got bytes"),
    ],
)
def test_copies_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"key_caches": layers(1), "value_caches": layers(1), "block_mapping": np.array([[0, 1]], np.int64)}
    with pytest.raises(InvalidArgumentError, match=rf"^\[copy_blocks\] .*{message}"):
        ops.copy_blocks(**arguments | changes)


@pytest.mark.usefixtures("host_machine")
def test_a_gpu_copies_pages_of_sixteen_bytes() -> None:
    with pytest.raises(InvalidArgumentError, match="must be of a multiple of 16 bytes and begin at one, got 8 bytes"):
        ops.copy_blocks([np.zeros((3, 8), np.uint8)], [], np.array([[0, 1]], np.int64))


@pytest.mark.usefixtures("any_machine")
def test_swapped_pages_go_where_they_are_told() -> None:
    src, dst = layers(2)
    dst = dst[:4].copy()
    was = dst.copy()
    ops.swap_blocks(src, dst, np.array([[5, 0], [4, 1], [0, 3]], np.int64))
    np.testing.assert_array_equal(dst, [src[5], src[4], was[2], src[0]])
    ops.swap_blocks(src, dst, np.zeros((0, 2), np.int64))


@pytest.mark.usefixtures("fake_device")
def test_pages_go_to_the_device_and_come_back() -> None:
    host, there = layers(2)
    want = host.copy()
    device = ExportedTensor(there, device=CUDA)
    ops.swap_blocks(host, device, np.array([[2, 5]], np.int64))
    np.testing.assert_array_equal(there[5], want[2])
    ops.swap_blocks(device, host, np.array([[5, 0]], np.int64))
    np.testing.assert_array_equal(host[0], want[2])


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dst": np.zeros((4, 16, 2, 4), np.uint8)}, r"dst must have shape \[Q, ...\] = \[any, 16, 2, 8\], got"),
        ({"dst": np.zeros((4, 16, 2, 8), np.int8)}, "dst must be uint8, got int8"),
        ({"block_mapping": np.array([[0, 4]])}, r"destination pages of block_mapping must be in \[0, 4\), got 4"),
        ({"block_mapping": np.array([[6, 0]])}, r"source pages of block_mapping must be in \[0, 6\), got 6"),
        ({"block_mapping": np.array([[0, 1], [2, 1]])}, "the destination of one copy, got 2 to page 1"),
    ],
)
def test_swaps_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"src": layers(1)[0], "dst": layers(1)[0][:4], "block_mapping": np.array([[0, 1]], np.int64)}
    with pytest.raises(InvalidArgumentError, match=rf"^\[swap_blocks\] .*{message}"):
        ops.swap_blocks(**arguments | changes)
