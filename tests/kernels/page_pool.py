"""A pool of pages in the layout of `include/llm_decoder/paged_kv.h`, poisoned wherever nobody has written."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_decoder import _core

LINE_BYTES = 64
BF16_NAN = 0x7FC1
# What a dead entry of a page table may hold.
DEAD_ENTRIES = (-(2**31), -1, 2**31 - 1, 10**9)


def aligned(shape: tuple[int, ...], dtype: type, fill: float) -> NDArray[Any]:
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + LINE_BYTES, np.uint8)
    begin = -raw.ctypes.data % LINE_BYTES
    out: NDArray[Any] = raw[begin : begin + n_bytes].view(dtype).reshape(shape)
    out[...] = fill
    return out


class PagePool:
    def __init__(self, dtype: str, n_pages: int, n_kv_heads: int, head_dim: int, page_size: int) -> None:
        padded = -(-head_dim // 16) * 16
        self.dtype, self.n_pages, self.n_kv_heads = dtype, n_pages, n_kv_heads
        self.head_dim, self.page_size = head_dim, page_size
        self.k_scale: NDArray[np.float32] | None = None
        self.v_scale: NDArray[np.float32] | None = None
        self.k: NDArray[Any]
        self.v: NDArray[Any]
        if dtype == "f32":
            self.k = aligned((n_pages, n_kv_heads, padded, page_size), np.float32, np.nan)
            self.v = aligned((n_pages, n_kv_heads, page_size, padded), np.float32, np.nan)
        elif dtype == "bf16":
            self.k = aligned((n_pages, n_kv_heads, padded, page_size), np.uint16, BF16_NAN)
            self.v = aligned((n_pages, n_kv_heads, page_size, padded), np.uint16, BF16_NAN)
        else:
            self.k = aligned((n_pages, n_kv_heads, padded // 4, page_size, 4), np.uint8, 251)
            self.v = aligned((n_pages, n_kv_heads, page_size // 4, padded, 4), np.int8, -113)
            self.k_scale = aligned((n_pages, n_kv_heads, page_size), np.float32, np.nan)
            self.v_scale = aligned((n_pages, n_kv_heads, page_size), np.float32, np.nan)

    def arrays(self) -> list[NDArray[Any]]:
        return [array for array in (self.k, self.v, self.k_scale, self.v_scale) if array is not None]

    def poison(self, page: int) -> None:
        """The page as if it had never been written."""
        fresh = PagePool(self.dtype, 1, self.n_kv_heads, self.head_dim, self.page_size)
        for mine, other in zip(self.arrays(), fresh.arrays(), strict=True):
            mine[page] = other[0]

    def table(self, rng: np.random.Generator, n_tokens: int) -> NDArray[np.int32]:
        """Pages for n_tokens in no order, then dead entries."""
        n_pages = -(-n_tokens // self.page_size)
        live = rng.permutation(self.n_pages)[:n_pages]
        return np.concatenate([live, DEAD_ENTRIES]).astype(np.int32)

    def append(
        self, isa: str, table: NDArray[np.int32], position: int, key: NDArray[np.float32], value: NDArray[np.float32]
    ) -> None:
        _core.kernels.append_kv(
            isa,
            self.k,
            self.v,
            self.k_scale,
            self.v_scale,
            table,
            position,
            np.ascontiguousarray(key),
            np.ascontiguousarray(value),
        )

    def attend_batch(
        self,
        isa: str,
        queries: list[NDArray[np.float32]],
        tables: list[NDArray[np.int32]],
        positions: list[int],
        scale: float,
        window: int = 0,
        n_threads: int = 0,
    ) -> list[NDArray[np.float32]]:
        """One call for all sequences; queries [n_tokens, n_heads, head_dim] each, from its position on. n_threads > 0:
        cut and shared as a decoder of so many threads does it, 0: one item for each sequence and KV head."""
        width = max(len(table) for table in tables)
        block_table = np.full((len(tables), width), DEAD_ENTRIES[0], np.int32)
        for row, table in zip(block_table, tables, strict=True):
            row[: len(table)] = table
        begins = np.cumsum([0] + [len(q) for q in queries]).astype(np.int32)
        out = _core.kernels.paged_attention(
            isa,
            np.concatenate(queries),
            self.k,
            self.v,
            self.k_scale,
            self.v_scale,
            block_table,
            begins,
            np.array(positions, np.int32),
            scale,
            window,
            n_threads,
        )
        return [out[begin:end] for begin, end in itertools.pairwise(begins)]

    def attend(
        self, isa: str, q: NDArray[np.float32], table: NDArray[np.int32], position: int, scale: float, window: int = 0
    ) -> NDArray[np.float32]:
        return self.attend_batch(isa, [q], [table], [position], scale, window)[0]

    def stored(self, table: NDArray[np.int32], n_tokens: int) -> tuple[NDArray[np.float64], ...]:
        """(key bytes, key scales, value bytes, value scales) of an s8 sequence, gathered element by element."""
        assert self.k_scale is not None
        assert self.v_scale is not None
        keys = np.zeros((n_tokens, self.n_kv_heads, self.head_dim))
        values = np.zeros_like(keys)
        key_scales = np.zeros((n_tokens, self.n_kv_heads))
        value_scales = np.zeros_like(key_scales)
        channel = np.arange(self.head_dim)
        for position in range(n_tokens):
            page, slot = table[position // self.page_size], position % self.page_size
            keys[position] = self.k[page][:, channel // 4, slot, channel % 4].astype(np.float64) - 128
            values[position] = self.v[page][:, slot // 4, channel, slot % 4]
            key_scales[position] = self.k_scale[page, :, slot]
            value_scales[position] = self.v_scale[page, :, slot]
        return keys, key_scales, values, value_scales
