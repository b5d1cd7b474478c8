"""Encoders in plain NumPy, written from the formulas: one sequence at a time, no kernels, float64 throughout.

It judges the core's encoder and shares no code with it. Weights are those of `encoders.config.weight_shapes`, each
matrix [n_out, n_in]: attn_qkv has the rows of q, then k, then v; a gated mlp_fc1 those that are activated first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.reference import Array, Weights, linear, rope

__all__ = ["activate", "encode", "layer_norm"]


def layer_norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * `name` + `<name>.bias` over the last axis (Ba, Kiros and Hinton 2016)."""
    centered = x - x.mean(axis=-1, keepdims=True)
    normed = centered / np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + eps)
    normed = normed * np.asarray(weights[name], np.float64)
    bias = weights.get(f"{name}.bias")
    return np.asarray(normed if bias is None else normed + np.asarray(bias, np.float64))


def activate(x: Array, activation: str) -> Array:
    """One of config.ACTIVATIONS: GELU by erf or by tanh (Hendrycks and Gimpel 2016), ReLU, SiLU."""
    if activation == "gelu":
        return np.asarray(0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2.0))))
    if activation == "gelu_tanh":
        return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))
    if activation == "relu":
        return np.maximum(x, 0.0)
    return x / (1.0 + np.exp(-x))


def encode(
    config: EncoderConfig,
    weights: Mapping[str, npt.NDArray[Any]],
    token_ids: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
    type_ids: npt.NDArray[np.int32] | None = None,
) -> npt.NDArray[np.float32]:
    """Hidden states float32 [n_tokens, hidden_size] of sequences that lie one behind the other.

    token_ids int32 [n_tokens], counts int32 [n_seqs] tokens of each, type_ids int32 [n_tokens] (None: all 0).
    KeyError names a missing weight.
    """
    ends = np.cumsum(counts)
    types = np.zeros_like(token_ids) if type_ids is None else type_ids
    rows = [
        _encode_one(config, weights, token_ids[end - count : end], types[end - count : end])
        for end, count in zip(ends, counts, strict=True)
    ]
    return np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, config.hidden_size), np.float32)


def _encode_one(config: EncoderConfig, weights: Weights, tokens: npt.NDArray[Any], types: npt.NDArray[Any]) -> Array:
    x = np.asarray(weights["embedding"], np.float64)[tokens]
    if config.n_positions:
        rows = config.position_offset + np.arange(len(tokens))
        x = x + np.asarray(weights["position_embedding"], np.float64)[rows]
    if config.n_types:
        x = x + np.asarray(weights["type_embedding"], np.float64)[types]
    if config.embedding_norm:
        x = layer_norm(x, weights, "embedding_norm", config.norm_eps)
    for i in range(config.n_layers):
        layer = f"layer_{i}"
        if config.norm_placement == "post":
            x = layer_norm(x + _attention(config, weights, i, x), weights, f"{layer}/ln1", config.norm_eps)
            x = layer_norm(x + _mlp(config, weights, layer, x), weights, f"{layer}/ln2", config.norm_eps)
        else:
            is_normed = i > 0 or config.has_first_norm
            normed = layer_norm(x, weights, f"{layer}/ln1", config.norm_eps) if is_normed else x
            x = x + _attention(config, weights, i, normed)
            x = x + _mlp(config, weights, layer, layer_norm(x, weights, f"{layer}/ln2", config.norm_eps))
    return layer_norm(x, weights, "final_norm", config.norm_eps) if config.final_norm else x


def _attention(config: EncoderConfig, weights: Weights, index: int, x: Array) -> Array:
    n_tokens, head_dim = len(x), config.head_dim
    qkv = linear(x, weights, f"layer_{index}/attn_qkv").reshape(n_tokens, 3, config.n_heads, head_dim)
    q, k, v = qkv[:, 0], qkv[:, 1], qkv[:, 2]
    positions = np.arange(n_tokens)
    theta = config.rope_theta_of(index)
    if theta:
        inv_freq = 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)
        q, k = rope(q, positions, inv_freq), rope(k, positions, inv_freq)
    scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    window = config.window_of(index)
    if window:
        scores = np.where(np.abs(positions[:, None] - positions[None, :]) <= window, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", p, v).reshape(n_tokens, -1)
    return linear(out, weights, f"layer_{index}/attn_o")


def _mlp(config: EncoderConfig, weights: Weights, layer: str, x: Array) -> Array:
    inner = linear(x, weights, f"{layer}/mlp_fc1")
    if config.gated:
        first, second = np.split(inner, 2, axis=-1)
        inner = activate(first, config.activation) * second
    else:
        inner = activate(inner, config.activation)
    return linear(inner, weights, f"{layer}/mlp_fc2")
