"""A batch of sequences in pages: random values, pages in a random order, NaN wherever nothing may look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from attention_reference import paged_attention_reference
from element_codes import ROUNDING, decode, encode, poison

Array = npt.NDArray[Any]
MIXED = ((1, 1), (1, 40), (5, 18), (33, 33), (0, 7), (3, 131))  # (tokens, keys) of each sequence


@dataclass
class PagedBatch:
    """sequences: (tokens, keys) of each. Arrays hold codes where NumPy lacks the dtype."""

    sequences: tuple[tuple[int, int], ...] = MIXED
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    q_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        counts = [n for n, _ in self.sequences]
        self.seq_lens = np.array([n for _, n in self.sequences], np.int32)
        self.cu_seqlens_q = np.cumsum([0, *counts]).astype(np.int32)
        self.q = encode(random.normal(size=(sum(counts), self.n_heads, self.head_dim)), self.q_dtype)
        self.block_table = self._make_table(random)
        self.k_cache, self.v_cache = (self._make_cache(random) for _ in "kv")

    def _make_table(self, random: np.random.Generator) -> Array:
        n_pages = -(-self.seq_lens // self.page_size)
        self.n_pages = int(n_pages.sum()) + 3
        free = random.permutation(self.n_pages)
        table = np.full((len(n_pages), int(n_pages.max(initial=0)) + 2), np.iinfo(np.int32).min, np.int32)
        begin = 0
        for row, n in zip(table, n_pages, strict=True):
            row[:n] = free[begin : begin + n]
            begin += n
        return table

    def _make_cache(self, random: np.random.Generator) -> Array:
        shape = (self.n_pages, self.page_size, self.n_kv_heads, self.head_dim)
        values = random.normal(size=shape) * (40 if self.kv_dtype == "int8" else 1)
        cache = encode(values, self.kv_dtype)
        is_live = np.zeros(shape[:2], bool)
        for row, seq_len in zip(self.block_table, self.seq_lens, strict=True):
            for key in range(seq_len):
                is_live[row[key // self.page_size], key % self.page_size] = True
        cache[~is_live] = poison(self.kv_dtype)
        return cache

    def arguments(self) -> tuple[Array, ...]:
        """The positional ones of paged_attention."""
        return self.q, self.k_cache, self.v_cache, self.block_table, self.seq_lens, self.cu_seqlens_q

    def dtypes(self) -> dict[str, str]:
        return {"q_dtype": self.q_dtype, "kv_dtype": self.kv_dtype}

    def reference(self, **options: Any) -> tuple[Array, Array]:
        return paged_attention_reference(
            decode(self.q, self.q_dtype),
            decode(self.k_cache, self.kv_dtype),
            decode(self.v_cache, self.kv_dtype),
            self.block_table,
            self.seq_lens,
            self.cu_seqlens_q,
            **options,
        )

    def check(self, out: Array, lse: Array, **options: Any) -> None:
        """That they are what the formula gives: probabilities and result are each rounded to q's dtype."""
        want, want_lse = self.reference(**options)
        got = decode(out, self.q_dtype)
        # int8 probabilities and queries of the CPU's int8 kernels are coarser.
        unit = max(ROUNDING[self.q_dtype], 1 / 64 if self.kv_dtype == "int8" else 2.0**-20)
        size = np.abs(want).max(axis=-1, keepdims=True)
        assert np.isfinite(got).all()
        assert (np.abs(got - want) <= 2 * unit * size).all(), np.abs(got - want).max()
        is_empty = np.isneginf(want_lse)
        np.testing.assert_array_equal(np.isneginf(lse), is_empty)
        tolerance = 0.05 if self.kv_dtype == "int8" else 2e-3
        np.testing.assert_allclose(lse[~is_empty], want_lse[~is_empty], rtol=tolerance, atol=tolerance)
