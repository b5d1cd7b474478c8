"""Decode over pages in Triton, of the usual kind: a program a sequence, KV head and split, all query heads of the KV
head in one tile, then a second kernel that merges the splits. What one writes in an afternoon, tuned by its
autotuner."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
LEAST_ROWS = 16  # of a product on tensor cores
PROGRAMS_PER_SM = 4

CONFIGS = [triton.Config({}, num_warps=n_warps, num_stages=n_stages) for n_warps in (2, 4, 8) for n_stages in (2, 3, 4)]


@triton.autotune(CONFIGS, key=["N_SPLITS", "max_pages"])
@triton.jit
def decode_splits(
    q,
    k_cache,
    v_cache,
    block_table,
    seq_lens,
    states,
    state_lse,
    scale_log2e,
    max_pages,
    N_HEADS: tl.constexpr,
    N_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    N_SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = N_HEADS // N_KV_HEADS
    n_keys = tl.load(seq_lens + sequence)
    n_pages = tl.cdiv(n_keys, PAGE_SIZE)
    per_split = tl.cdiv(n_pages, N_SPLITS)
    begin = split * per_split
    end = tl.minimum(begin + per_split, n_pages)

    rows = tl.arange(0, ROWS)
    slots = tl.arange(0, PAGE_SIZE)
    channels = tl.arange(0, HEAD_DIM)
    heads = kv_head * group + rows
    is_row = rows < group
    at_q = (sequence * N_HEADS + heads[:, None]) * HEAD_DIM + channels[None, :]
    query = tl.load(q + at_q, mask=is_row[:, None], other=0.0)

    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for i in range(begin, end):
        page = tl.load(block_table + sequence * max_pages + i).to(tl.int64)
        at = ((page * PAGE_SIZE + slots) * N_KV_HEADS + kv_head) * HEAD_DIM
        is_key = i * PAGE_SIZE + slots < n_keys
        k = tl.load(k_cache + at[None, :] + channels[:, None])
        logits = tl.dot(query, k) * scale_log2e
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        largest_now = tl.maximum(largest, tl.max(logits, 1))
        p = tl.exp2(logits - largest_now[:, None])
        kept = tl.exp2(largest - largest_now)
        v = tl.load(v_cache + at[:, None] + channels[None, :])
        total = total * kept + tl.sum(p, 1)
        out = out * kept[:, None] + tl.dot(p.to(v.dtype), v)
        largest = largest_now

    has_keys = total > 0
    divisor = tl.where(has_keys, total, 1.0)
    at_state = (sequence * N_HEADS + heads) * N_SPLITS + split
    tl.store(state_lse + at_state, tl.where(has_keys, largest + tl.log2(divisor), float("-inf")), mask=is_row)
    tl.store(states + at_state[:, None] * HEAD_DIM + channels[None, :], out / divisor[:, None], mask=is_row[:, None])


@triton.jit
def merge_splits(states, state_lse, out, N_SPLITS: tl.constexpr, SPLITS_PADDED: tl.constexpr, HEAD_DIM: tl.constexpr):
    row = tl.program_id(0)
    splits = tl.arange(0, SPLITS_PADDED)
    channels = tl.arange(0, HEAD_DIM)
    is_split = splits < N_SPLITS
    lse = tl.load(state_lse + row * N_SPLITS + splits, mask=is_split, other=float("-inf"))
    weights = tl.exp2(lse - tl.max(lse, 0))
    at = (row * N_SPLITS + splits[:, None]) * HEAD_DIM + channels[None, :]
    parts = tl.load(states + at, mask=is_split[:, None], other=0.0)
    merged = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * HEAD_DIM + channels, merged.to(out.dtype.element_ty))


class PagedDecode:
    """q [B, Hq, D], k_cache and v_cache [P, S, Hkv, D] without gaps, block_table int32 [B, M] on the device; seq_lens
    int32 [B], NumPy's."""

    def __init__(
        self, torch: Any, q: Any, k_cache: Any, v_cache: Any, block_table: Any, seq_lens: Any, n_sms: int
    ) -> None:
        n_sequences, self._n_heads, self._head_dim = q.shape
        _, self._page_size, self._n_kv_heads, _ = k_cache.shape
        self._q, self._k, self._v, self._table = q, k_cache, v_cache, block_table
        self._seq_lens = torch.from_numpy(seq_lens).cuda()
        n_unsplit = n_sequences * self._n_kv_heads
        self._n_splits = max(1, min(block_table.shape[1], -(-PROGRAMS_PER_SM * n_sms // n_unsplit)))
        self._states = torch.empty(n_sequences, self._n_heads, self._n_splits, self._head_dim, device="cuda")
        self._lse = torch.empty(n_sequences, self._n_heads, self._n_splits, device="cuda")
        self._out = torch.empty_like(q)

    def run(self) -> Any:
        n_sequences, max_pages = self._table.shape
        decode_splits[(n_sequences, self._n_kv_heads, self._n_splits)](
            self._q,
            self._k,
            self._v,
            self._table,
            self._seq_lens,
            self._states,
            self._lse,
            self._head_dim**-0.5 * LOG2E,
            max_pages,
            N_HEADS=self._n_heads,
            N_KV_HEADS=self._n_kv_heads,
            HEAD_DIM=self._head_dim,
            PAGE_SIZE=self._page_size,
            N_SPLITS=self._n_splits,
            ROWS=max(LEAST_ROWS, triton.next_power_of_2(self._n_heads // self._n_kv_heads)),
        )
        merge_splits[(n_sequences * self._n_heads,)](
            self._states,
            self._lse,
            self._out,
            N_SPLITS=self._n_splits,
            SPLITS_PADDED=triton.next_power_of_2(self._n_splits),
            HEAD_DIM=self._head_dim,
        )
        return self._out
