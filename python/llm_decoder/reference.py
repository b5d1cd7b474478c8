"""The model in plain NumPy, written from the formulas: no pages, no kernels, no cache, float64 throughout.

It judges the decoders and shares no code with them. Weights are the unfused ones of a checkpoint, under our names
(`embedding`, `layer_<i>/attn_q`, ...), each of shape [n_out, n_in]; `<name>.bias` where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["attention", "forward", "linear", "log_softmax", "rms_norm", "rope", "silu_mul"]

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


def linear(x: Array, weights: Weights, name: str) -> Array:
    """x [n_tokens, n_in] times the transpose of weight `name` [n_out, n_in], plus `<name>.bias` [n_out] if any."""
    y = x @ np.asarray(weights[name], np.float64).T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + np.asarray(bias, np.float64)


def rms_norm(x: Array, weight: NDArray[Any], eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019)."""
    normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
    return np.asarray(normed * np.asarray(weight, np.float64))


def rope(x: Array, positions: NDArray[Any], inv_freq: ArrayLike, attention_factor: float = 1.0) -> Array:
    """Rotary position embedding (Su et al. 2021) of x [n_tokens, n_heads, head_dim], halves apart as in HF checkpoints.

    inv_freq [half]: radians per position; channels past 2 * half stay as they are. The angle is a float32 product, as
    HF transformers computes it.
    """
    frequencies = np.asarray(inv_freq, np.float32)
    half = len(frequencies)
    angle = np.asarray(positions, np.float32)[:, None] * frequencies[None, :]
    cos = np.cos(angle.astype(np.float64))[:, None, :] * attention_factor
    sin = np.sin(angle.astype(np.float64))[:, None, :] * attention_factor
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention(q: Array, k: Array, v: Array, scale: float, window: int = 0) -> Array:
    """Causal attention with grouped queries (Ainslie et al. 2023).

    q [n_tokens, n_heads, head_dim]; k, v [n_tokens, n_kv_heads, head_dim]; out like q. Position p sees the positions
    (p - window, p], or all up to p when window is 0.
    """
    n_tokens, n_heads, _ = q.shape
    group = n_heads // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    query, key = np.arange(n_tokens)[:, None], np.arange(n_tokens)[None, :]
    is_seen = key <= query if window == 0 else (key <= query) & (key > query - window)
    scores = np.where(is_seen, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("hqk,khd->qhd", p, v))


def silu_mul(gate: Array, up: Array) -> Array:
    """silu(gate) * up, the gated activation of SwiGLU (Shazeer 2020)."""
    return gate / (1.0 + np.exp(-gate)) * up


def log_softmax(logits: Array) -> Array:
    """Log probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def forward(config: Any, weights: Weights, token_ids: Sequence[int] | NDArray[Any]) -> Array:
    """Logits float64 [n_tokens, vocab_size] of one sequence from its first token on.

    config: a ModelConfig or a mapping with its fields. weights: see the module. KeyError names a missing weight.
    """
    field = config.__getitem__ if isinstance(config, Mapping) else lambda name: getattr(config, name)
    x = np.asarray(weights["embedding"], np.float64)[np.asarray(token_ids)]
    for i in range(field("n_layers")):
        x = x + _attention_block(
            field, weights, f"layer_{i}", rms_norm(x, weights[f"layer_{i}/ln1"], field("norm_eps")), i
        )
        x = x + _mlp_block(weights, f"layer_{i}", rms_norm(x, weights[f"layer_{i}/ln2"], field("norm_eps")))
    x = rms_norm(x, weights["final_norm"], field("norm_eps"))
    return linear(x, weights, "lm_head" if "lm_head" in weights else "embedding")


def _attention_block(field: Any, weights: Weights, layer: str, x: Array, index: int) -> Array:
    n_tokens, head_dim = len(x), field("head_dim")
    q = linear(x, weights, f"{layer}/attn_q").reshape(n_tokens, field("n_heads"), head_dim)
    k = linear(x, weights, f"{layer}/attn_k").reshape(n_tokens, field("n_kv_heads"), head_dim)
    v = linear(x, weights, f"{layer}/attn_v").reshape(n_tokens, field("n_kv_heads"), head_dim)
    if field("qk_norm"):
        q = rms_norm(q, weights[f"{layer}/q_norm"], field("norm_eps"))
        k = rms_norm(k, weights[f"{layer}/k_norm"], field("norm_eps"))
    positions = np.arange(n_tokens)
    q = rope(q, positions, field("rope_inv_freq"), field("rope_attention_factor"))
    k = rope(k, positions, field("rope_inv_freq"), field("rope_attention_factor"))
    out = attention(q, k, v, field("attention_scale"), field("windows")[index])
    return linear(out.reshape(n_tokens, -1), weights, f"{layer}/attn_o")


def _mlp_block(weights: Weights, layer: str, x: Array) -> Array:
    gated = silu_mul(linear(x, weights, f"{layer}/mlp_gate"), linear(x, weights, f"{layer}/mlp_up"))
    return linear(gated, weights, f"{layer}/mlp_down")
