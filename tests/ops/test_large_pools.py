"""Pools whose pages lie further apart than 32 bits count, in memory that is only promised."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt
import pytest
from paged_batch import PagedBatch

from llm_decoder import ops

NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux


@pytest.fixture(params=["cpu", "host machine"], autouse=True)
def machine(request: pytest.FixtureRequest) -> None:
    """No device, for whose tests all that lies between is copied; test_torch_on_a_device.py has one of its own."""
    if request.param != "cpu":
        request.getfixturevalue("host_machine")


def promised(n_bytes: int) -> npt.NDArray[np.uint8]:
    memory = mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    return np.frombuffer(memory, np.uint8)


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_pages_more_than_2_to_the_31_elements_apart_are_written_and_attended_to(kv_dtype: str) -> None:
    batch = PagedBatch(((1, 40), (20, 20)), n_heads=2, n_kv_heads=1, kv_dtype=kv_dtype)
    options = {"kv_dtype": kv_dtype} | ({"k_scale": 0.02, "v_scale": 0.02} if kv_dtype == "int8" else {})
    want = ops.paged_attention(*batch.arguments(), q_dtype="bfloat16", **options)
    stride = 2**31 + 64
    page = batch.k_cache[0].size
    apart = []
    for cache in (batch.k_cache, batch.v_cache):
        n_bytes = ((len(cache) - 1) * stride + page) * cache.itemsize
        pool = promised(n_bytes).view(cache.dtype)
        strides = (stride * cache.itemsize, *cache.strides[1:])
        apart.append(np.lib.stride_tricks.as_strided(pool, cache.shape, strides))
        apart[-1][...] = cache
    got = ops.paged_attention(
        batch.q, *apart, batch.block_table, batch.seq_lens, batch.cu_seqlens_q, q_dtype="bfloat16", **options
    )
    np.testing.assert_array_equal(got, want)
    last = len(batch.k_cache) - 1
    rows = batch.q[:2, :1].copy()
    slots = np.array([last * 16 + 3, (last - 1) * 16], np.int64)
    for caches in (apart, (batch.k_cache, batch.v_cache)):
        ops.reshape_and_cache(rows, rows, *caches, slots, dtype="bfloat16", **options)
    np.testing.assert_array_equal(apart[0][[last, last - 1]], batch.k_cache[[last, last - 1]])


def test_pages_behind_the_first_4_gib_are_copied_and_swapped() -> None:
    page_bytes = 1 << 16
    n_pages = (1 << 16) + 8
    pool = promised(n_pages * page_bytes).reshape(n_pages, page_bytes)
    random = np.random.default_rng(0)
    far, near = random.integers(0, 255, (2, page_bytes), np.uint8)
    pool[n_pages - 1], pool[2] = far, near
    ops.copy_blocks([pool], [], np.array([[n_pages - 1, 0], [2, n_pages - 3]], np.int64))
    np.testing.assert_array_equal(pool[0], far)
    np.testing.assert_array_equal(pool[n_pages - 3], near)
    few = np.zeros((3, page_bytes), np.uint8)
    ops.swap_blocks(pool, few, np.array([[n_pages - 1, 2], [n_pages - 3, 0]], np.int64))
    np.testing.assert_array_equal(few[2], far)
    ops.swap_blocks(few, pool, np.array([[2, n_pages - 2]], np.int64))
    np.testing.assert_array_equal(pool[n_pages - 2], far)
