"""The judge of the attention kernels: the formulas in NumPy float64, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def visible(position: int, window: int) -> range:
    """The positions that the token at `position` sees."""
    first = max(0, position - window + 1) if window > 0 else 0
    return range(first, position + 1)


def weights_of(q: NDArray[np.floating], keys: NDArray[np.floating], scale: float) -> Float64:
    """exp(q . k * scale - maximum) of one row over its visible keys [n, head_dim]; not yet divided by their sum."""
    scores = keys.astype(np.float64) @ q.astype(np.float64) * scale
    return np.exp(scores - scores.max())


def rows(q: NDArray[np.floating], n_kv_heads: int, position_begin: int) -> Iterator[tuple[int, int, int, int]]:
    """(token, head, KV head, position) of each row of q [n_tokens, n_heads, head_dim]."""
    n_tokens, n_heads, _ = q.shape
    for token in range(n_tokens):
        for head in range(n_heads):
            yield token, head, head // (n_heads // n_kv_heads), position_begin + token


def attention(
    q: NDArray[np.floating],
    keys: NDArray[np.floating],
    values: NDArray[np.floating],
    position_begin: int,
    scale: float,
    window: int = 0,
) -> Float64:
    """q [n_tokens, n_heads, head_dim] from position_begin on, over keys and values [n, n_kv_heads, head_dim]."""
    out = np.zeros(q.shape)
    for token, head, kv_head, position in rows(q, keys.shape[1], position_begin):
        seen = visible(position, window)
        weights = weights_of(q[token, head], keys[seen.start : seen.stop, kv_head], scale)
        out[token, head] = weights @ values[seen.start : seen.stop, kv_head].astype(np.float64) / weights.sum()
    return out


def weight_rounding_bound(
    q: NDArray[np.floating],
    keys: NDArray[np.floating],
    value_bytes: NDArray[np.floating],
    value_scales: NDArray[np.floating],
    page_size: int,
    position_begin: int,
    scale: float,
    window: int = 0,
) -> Float64:
    """What rounding a page's weights p * v_scale to 1/255 of the page's largest can change in each output at most.

    value_bytes: [n, n_kv_heads, head_dim] int8 values as they lie in the page, value_scales: [n, n_kv_heads].
    """
    bound = np.zeros(q.shape)
    for token, head, kv_head, position in rows(q, keys.shape[1], position_begin):
        seen = visible(position, window)
        weights = weights_of(q[token, head], keys[seen.start : seen.stop, kv_head], scale)
        scaled = weights * value_scales[seen.start : seen.stop, kv_head]
        magnitudes = np.abs(value_bytes[seen.start : seen.stop, kv_head].astype(np.float64))
        pages = np.arange(seen.start, seen.stop) // page_size
        for page in np.unique(pages):
            here = pages == page
            bound[token, head] += 0.5 / 255 * scaled[here].max() * magnitudes[here].sum(axis=0)
        bound[token, head] /= weights.sum()
    return bound


def bf16_bits(x: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The upper halves of the float32 next to x that have nothing in their lower halves, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    lower, upper = bits & 0xFFFF, bits >> 16
    rounds_up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    return (upper + rounds_up).astype(np.uint16)


def bf16(x: NDArray[np.floating]) -> Float32:
    """x rounded to bfloat16."""
    return (bf16_bits(x).astype(np.uint32) << 16).view(np.float32)


def int8_rows(x: NDArray[np.floating]) -> tuple[Float64, Float64]:
    """(q, scale) with x ~ q * scale: symmetric, +-127 over the last axis, ties to even, scale 1 for zeros."""
    largest = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
    return np.rint(x.astype(np.float32) * (np.float32(1) / scale)).astype(np.float64), scale[..., 0].astype(np.float64)
