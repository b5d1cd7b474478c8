"""Batches for paged attention: every feature can be asked for, and whatever no token may look at is poison."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from element_codes import encode, poison

Array = npt.NDArray[Any]

# (positions, tokens that ask: the last of them) of each sequence.
BATCHES = {
    "decode": ((1, 1), (16, 1), (17, 1), (300, 1), (65, 1)),
    "prompt": ((33, 33), (1, 1), (70, 70)),
    "chunk": ((100, 31), (40, 7), (258, 5)),  # the last from one span of the CPU into the next
    "mixed": ((90, 1), (0, 0), (37, 37), (64, 13), (3, 5), (0, 2), (280, 2)),
    "shared": ((300, 1), (310, 1), (280, 4), (40, 1)),  # all begin with the pages of the first
    "empty": ((0, 1), (5, 0), (0, 3)),
    "long": ((300, 60), (270, 40)),  # runs of tokens, the first of which end before the last span
}
# Query heads a KV head -> KV heads.
KV_HEADS = {1: 3, 2: 2, 5: 2, 8: 1, 71: 1}
# What a dead entry of a block table may hold.
DEAD_ENTRIES = np.array([-(2**31), -1, 2**31 - 1, 10**9], np.int32)


@dataclasses.dataclass(frozen=True)
class Case:
    q_dtype: str = "float32"
    kv_dtype: str = "float32"
    scales: str = "none"  # or all, head, slot
    head_dim: int = 64
    ratio: int = 2
    page_size: int = 16
    causal: bool = True
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    lse: bool = True
    batch: str = "mixed"
    layout: str = "nhd"  # or joint: K beside V in a page, or hnd: heads before slots
    seed: int = 0


@dataclasses.dataclass
class Batch:
    """Arguments of paged_attention; floats that NumPy lacks are codes (element_codes)."""

    q_dtype: str
    kv_dtype: str
    q: Array
    k_cache: Array
    v_cache: Array
    block_table: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]
    cu_seqlens_q: npt.NDArray[np.int32]
    scale: float
    causal: bool = True
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi_slopes: npt.NDArray[np.float32] | None = None
    sinks: npt.NDArray[np.float32] | None = None
    k_scale: float | npt.NDArray[np.float32] | None = None
    v_scale: float | npt.NDArray[np.float32] | None = None
    return_lse: bool = True

    def sequence(self, number: int) -> Batch:
        """That one alone."""
        begin, end = self.cu_seqlens_q[number : number + 2]
        return dataclasses.replace(
            self,
            q=self.q[begin:end],
            block_table=self.block_table[number : number + 1],
            seq_lens=self.seq_lens[number : number + 1],
            cu_seqlens_q=np.array([0, end - begin], np.int32),
        )

    def arguments(self) -> dict[str, Any]:
        """What paged_attention and its reference both take."""
        names = ("block_table", "seq_lens", "cu_seqlens_q", "scale", "causal", "window", "softcap", "alibi_slopes")
        shared = {name: getattr(self, name) for name in (*names, "sinks", "k_scale", "v_scale")}
        return {"q": self.q, "k_cache": self.k_cache, "v_cache": self.v_cache, **shared}


def first_seen(case: Case, seq_len: int, n_tokens: int) -> int:
    """The first position that any token sees; seq_len where there is none."""
    if n_tokens == 0:
        return seq_len
    left = case.window[0]
    return 0 if left < 0 else min(seq_len, max(0, seq_len - n_tokens - left))


def make_batch(case: Case) -> Batch:
    rng = np.random.default_rng(case.seed)
    lengths = BATCHES[case.batch]
    n_kv_heads = KV_HEADS[case.ratio]
    n_heads = n_kv_heads * case.ratio
    tables, n_pages = _tables(case, rng)
    seen = np.zeros((n_pages, case.page_size), bool)
    block_table = rng.choice(DEAD_ENTRIES, (len(lengths), max(map(len, tables)) + 2))
    for row, table, (seq_len, n_tokens) in zip(block_table, tables, lengths, strict=True):
        first = first_seen(case, seq_len, n_tokens)
        positions = np.arange(first, seq_len)
        seen[table[positions // case.page_size], positions % case.page_size] = True
        live = slice(first // case.page_size, -(-seq_len // case.page_size))
        row[live] = table[live]
    cu_seqlens_q = np.cumsum([0] + [n for _, n in lengths]).astype(np.int32)
    k_scale, v_scale = (_scale(case, rng, seen, n_kv_heads) for _ in "kv")
    k_cache, v_cache = _caches(case, rng, seen, n_kv_heads)
    return Batch(
        case.q_dtype,
        case.kv_dtype,
        _queries(case, rng, int(cu_seqlens_q[-1]), n_heads),
        k_cache,
        v_cache,
        block_table.astype(np.int32),
        np.array([seq_len for seq_len, _ in lengths], np.int32),
        cu_seqlens_q,
        case.head_dim**-0.5,
        case.causal,
        case.window,
        case.softcap,
        rng.uniform(0, 0.6, n_heads).astype(np.float32) if case.alibi else None,
        _sinks(rng, n_heads) if case.sinks else None,
        k_scale,
        v_scale,
        case.lse,
    )


def _tables(case: Case, rng: np.random.Generator) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Pages of each sequence, in no order, and how many there are: a few belong to nobody."""
    counts = [-(-seq_len // case.page_size) for seq_len, _ in BATCHES[case.batch]]
    n_pages = sum(counts) + 3
    free = rng.permutation(n_pages)
    tables = [free[end - n : end] for n, end in zip(counts, itertools.accumulate(counts), strict=True)]
    if case.batch == "shared":
        for table, (seq_len, n_tokens) in list(zip(tables, BATCHES["shared"], strict=True))[1:]:
            n_shared = min((seq_len - n_tokens) // case.page_size, len(tables[0]) - 1)
            table[:n_shared] = tables[0][:n_shared]
    return tables, n_pages


def _scale(
    case: Case, rng: np.random.Generator, seen: npt.NDArray[np.bool_], n_kv_heads: int
) -> float | npt.NDArray[np.float32] | None:
    size = 1 / _spread(case)
    if case.scales == "none":
        return None
    if case.scales == "all":
        return float(np.float32(size * rng.uniform(0.5, 1.5)))
    shape = (n_kv_heads,) if case.scales == "head" else (*seen.shape, n_kv_heads)
    scales: npt.NDArray[np.float32] = (size * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    if case.scales == "slot":
        scales[~seen] = np.nan
    return scales


def _spread(case: Case) -> float:
    """Of the elements in the pages; what they stand for is near 1."""
    return 40.0 if case.scales != "none" and case.kv_dtype in ("fp8", "int8") else 1.5


def _caches(case: Case, rng: np.random.Generator, seen: npt.NDArray[np.bool_], n_kv_heads: int) -> tuple[Array, Array]:
    shape = (*seen.shape, n_kv_heads, case.head_dim)
    codes = [encode(rng.standard_normal(shape) * _spread(case), case.kv_dtype) for _ in "kv"]
    for cache in codes:
        cache[~seen] = poison(case.kv_dtype)
    if case.layout == "joint":
        pool = np.stack(codes, axis=1)
        return pool[:, 0], pool[:, 1]
    if case.layout == "hnd":
        k, v = (np.ascontiguousarray(cache.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for cache in codes)
        return k, v
    return codes[0], codes[1]


def _queries(case: Case, rng: np.random.Generator, n_tokens: int, n_heads: int) -> Array:
    """With a row that is of no sequence at the end, and unless the layout is nhd, two heads of others beside them."""
    n_others = 0 if case.layout == "nhd" else 2
    q = encode(rng.standard_normal((n_tokens + 1, n_heads + n_others, case.head_dim)) * 2, case.q_dtype)
    q[n_tokens] = q[:, n_heads:] = poison(case.q_dtype)
    return q[:, :n_heads]


def _sinks(rng: np.random.Generator, n_heads: int) -> npt.NDArray[np.float32]:
    sinks = (rng.standard_normal(n_heads) * 2).astype(np.float32)
    sinks[0] = -np.inf
    return sinks
