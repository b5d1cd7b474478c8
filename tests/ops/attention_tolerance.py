"""How far a result may lie from the formula.

The rule of FlashAttention's own tests: at most twice as far as plain attention at the same precision (three times
with a softcap, whose tanh adds an error of its own), plus twice what rounding a number near 0.3 there and back costs;
the mean at most half a time less. Plain attention is computed here with NumPy in float32: all keys at once,
probabilities rounded as the implementation rounds them, the result rounded to the queries' dtype. It shares no code
with the reference or with any kernel.

Two things are added. FLOAT32 of the largest value: sums of a few hundred terms in another order, and an exponential
by table (1.5e-7). And where int8 pages meet int8 queries: the queries are rounded before the reference sees them, so
that nothing is left but what rounding a page's weights p * v_scale to 1/255 of the page's largest can do, which is a
bound for each element and not a guess.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from attention_cases import Batch
from element_codes import decode, encode

Array = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]

FLOAT32 = 2e-6
# The sum and the largest score in float32; scores are a few units.
LSE = 1e-5


@dataclasses.dataclass
class Plain:
    """[T, Hq, D] each."""

    out: npt.NDArray[np.float64]
    weight_rounding: npt.NDArray[np.float64]  # by 8 bits a page
    largest_value: float


def int8_rows(q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What rows of queries are once they are int8: +-127 over the head, ties to even."""
    floats = q.astype(np.float32)
    largest = np.abs(floats).max(axis=-1, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
    return (np.rint(floats * (np.float32(1) / scale)) * scale.astype(np.float64)).astype(np.float64)


def rounded(x: Array, dtype: str) -> npt.NDArray[np.float64]:
    return decode(encode(x, dtype), dtype)


def plain_attention(batch: Batch, q: npt.NDArray[np.float64], p_dtype: str) -> Plain:
    n_tokens, n_heads, head_dim = q.shape
    out, bound = np.zeros((2, n_tokens, n_heads, head_dim))
    largest_value = 0.0
    page_size, n_kv_heads = batch.k_cache.shape[1:3]
    group = n_heads // n_kv_heads
    for sequence, seq_len in enumerate(batch.seq_lens):
        begin, end = batch.cu_seqlens_q[sequence : sequence + 2]
        positions = np.arange(begin, end) - end + seq_len
        keys = np.arange(seq_len)
        mask = _sees(batch, positions[:, None], keys[None])
        seen = mask.any(axis=0)
        if not seen.any():
            continue
        keys, mask = keys[seen], mask[:, seen]
        pages, slots = batch.block_table[sequence, keys // page_size], keys % page_size
        k, v = decode(batch.k_cache[pages, slots], batch.kv_dtype), decode(batch.v_cache[pages, slots], batch.kv_dtype)
        k_scale, v_scale = (_scales(s, pages, slots, n_kv_heads) for s in (batch.k_scale, batch.v_scale))
        largest_value = max(largest_value, float(np.abs(v * v_scale).max()))
        for head in range(n_heads):
            kv_head = head // group
            logits = np.float32(batch.scale) * (
                q[begin:end, head].astype(np.float32) @ (k * k_scale)[:, kv_head].astype(np.float32).T
            )
            if batch.softcap:
                logits = np.float32(batch.softcap) * np.tanh(logits / np.float32(batch.softcap))
            if batch.alibi_slopes is not None:
                logits = logits - batch.alibi_slopes[head] * np.abs(positions[:, None] - keys).astype(np.float32)
            logits = np.where(mask, logits, -np.inf).astype(np.float32)
            largest = logits.max(axis=1, keepdims=True, initial=-np.inf)
            sink = np.float32(-np.inf) if batch.sinks is None else batch.sinks[head]
            largest = np.maximum(largest, sink)
            largest[largest == -np.inf] = 0
            p = np.exp(logits - largest)
            total = p.sum(axis=1, keepdims=True) + np.exp(sink - largest)
            total[total == 0] = 1
            values = (v * v_scale)[:, kv_head].astype(np.float32)
            out[begin:end, head] = rounded((rounded(p, p_dtype).astype(np.float32) @ values) / total, batch.q_dtype)
            weights = p * v_scale[:, kv_head, 0]
            for page in np.unique(keys // page_size):
                here = keys // page_size == page
                size = (mask[:, here, None] * np.abs(v[here, kv_head])[None]).sum(axis=1)
                bound[begin:end, head] += 0.5 / 255 * weights[:, here].max(axis=1, keepdims=True) * size / total
    return Plain(out, bound, largest_value)


def _sees(batch: Batch, position: Array, key: Array) -> npt.NDArray[np.bool_]:
    left, right = batch.window
    sees: npt.NDArray[np.bool_] = np.ones(np.broadcast(position, key).shape, bool)
    if left >= 0:
        sees &= key >= position - left
    if batch.causal:
        sees &= key <= position
    elif right >= 0:
        sees &= key <= position + right
    return sees


def _scales(scale: float | Array | None, pages: Array, slots: Array, n_kv_heads: int) -> npt.NDArray[np.float64]:
    """[n_keys, n_kv_heads, 1]"""
    scales = np.asarray(1.0 if scale is None else scale, np.float64)
    if scales.ndim == 3:
        scales = scales[pages, slots]
    return np.broadcast_to(scales, (len(pages), n_kv_heads))[..., None]


def check_close(
    got: npt.NDArray[np.float64], reference: npt.NDArray[np.float64], plain: Plain, batch: Batch, int8_is_vnni: bool
) -> None:
    bound = plain.weight_rounding if int8_is_vnni and batch.kv_dtype == "int8" else np.zeros_like(reference)
    factor = 3 if batch.softcap else 2
    q_dtype = batch.q_dtype
    near = rounded(rounded(reference + 0.3, q_dtype) - 0.3, q_dtype)
    two_roundings = float(np.abs(near - rounded(reference, q_dtype)).max(initial=0))
    plain_error, error = np.abs(plain.out - reference), np.abs(got - reference)
    floor = FLOAT32 * plain.largest_value
    most = factor * plain_error.max(initial=0) + 2 * two_roundings + floor + bound
    assert np.isfinite(got).all()
    worst = np.unravel_index(np.argmax(error - most), error.shape) if error.size else ()
    assert (error <= most).all(), f"at {worst}: {got[worst]} for {reference[worst]}, {error[worst]} > {most[worst]}"
    if error.size:
        assert error.mean() <= (factor - 0.5) * plain_error.mean() + floor + bound.mean()
