"""Attention over pages in float64, written from the formula: the judge of every implementation behind llm_decoder.ops.

Of token t at position p of its sequence (its tokens are the last of its seq_len positions) and query head h, over the
keys j that the causal limit and the window let it see:

    logit_j = softcap(scale * q . k_j * k_scale_j) - slope_h * |p - j|         softcap(x) = c * tanh(x / c)
    lse = log(sum_j exp(logit_j) + exp(sink_h))
    out = sum_j exp(logit_j - lse) * v_j * v_scale_j

A row without anything to look at is 0, its lse is -inf, or the sink where there is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


def paged_attention_reference(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_table: Array,
    seq_lens: Array,
    cu_seqlens_q: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    k_scale: float | Array | None = None,
    v_scale: float | Array | None = None,
) -> tuple[Float64s, Float64s]:
    """(out float64 [T, Hq, D], lse float64 [T, Hq], base e).

    q [T, Hq, D], k_cache and v_cache [P, S, Hkv, D] are values, not codes: 16-bit floats and fp8 are widened before
    (element_codes.decode), int8 is its integers. The rest is as in llm_decoder.ops.paged_attention. Nothing is read but
    the slots of keys that some token of their sequence sees.
    """
    n_tokens, n_heads, head_dim = q.shape
    n_kv_heads = k_cache.shape[2]
    out = np.zeros((n_tokens, n_heads, head_dim))
    lse = np.full((n_tokens, n_heads), -np.inf)
    scale = head_dim**-0.5 if scale is None else scale
    sink = np.full(n_heads, -np.inf) if sinks is None else np.asarray(sinks, np.float64)
    for sequence, seq_len in enumerate(seq_lens):
        begin, end = int(cu_seqlens_q[sequence]), int(cu_seqlens_q[sequence + 1])
        for token in range(begin, end):
            position = int(seq_len) - (end - token)
            keys = _visible_keys(position, int(seq_len), causal, window)
            k = _gather(k_cache, k_scale, block_table[sequence], keys)
            v = _gather(v_cache, v_scale, block_table[sequence], keys)
            rows = q[token].astype(np.float64).reshape(n_kv_heads, -1, head_dim)  # the heads of each KV head
            logits = scale * (rows @ k.transpose(1, 2, 0)).reshape(n_heads, -1)
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            if alibi_slopes is not None:
                logits = logits - np.asarray(alibi_slopes, np.float64)[:, None] * np.abs(position - keys)
            largest = np.maximum(sink, logits.max(axis=1, initial=-np.inf))
            sees = largest > -np.inf
            largest[~sees] = 0
            weights = np.exp(logits - largest[:, None])
            total = weights.sum(axis=1) + np.exp(sink - largest)
            total[~sees] = 1
            sums = weights.reshape(n_kv_heads, n_heads // n_kv_heads, len(keys)) @ v.transpose(1, 0, 2)
            out[token] = sums.reshape(n_heads, head_dim) / total[:, None]
            lse[token] = np.where(sees, largest + np.log(total), -np.inf)
    return out, lse


def _visible_keys(position: int, seq_len: int, causal: bool, window: tuple[int, int]) -> npt.NDArray[np.int64]:
    keys = np.arange(seq_len)
    left, right = window
    last = position if causal else (seq_len if right < 0 else position + right)
    first = 0 if left < 0 else position - left
    return keys[(keys >= first) & (keys <= last)]


def _gather(cache: Array, scale: float | Array | None, table: Array, keys: npt.NDArray[np.int64]) -> Float64s:
    """float64 [n_keys, Hkv, D]."""
    page_size = cache.shape[1]
    pages, slots = table[keys // page_size].astype(np.int64), keys % page_size
    rows: Float64s = cache[pages, slots].astype(np.float64)
    if scale is None:
        return rows
    scales = np.asarray(scale, np.float64)
    return rows * (scales[pages, slots] if scales.ndim == 3 else scales)[..., None]
