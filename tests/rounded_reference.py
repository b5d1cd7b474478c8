"""The NumPy reference with its rows rounded where a decoder of 16 bits rounds them: what a decoder may be off by.

It is the yardstick and never the judge: how far it is from the reference in float64 says how far rounding alone takes
a model. Names and shapes are those of llm_decoder.reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from llm_decoder.reference import attention, linear, rms_norm, rope, silu_mul

Array = np.ndarray[Any, np.dtype[np.float64]]
Round = Callable[[Array], Array]

ROW_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def rounded(x: Any, dtype: str) -> Any:
    """What is left of x in a row dtype, as float64."""
    return np.asarray(x, np.float32).astype(ROW_DTYPES[dtype]).astype(np.float64)


def rounded_page(x: Array, kv_dtype: str) -> Array:
    """Keys or values [n_tokens, n_kv_heads, head_dim] as pages keep them; of bytes with a scale a token and head."""
    if kv_dtype in ("bf16", "f16"):
        return np.asarray(rounded(x, {"bf16": "bfloat16", "f16": "float16"}[kv_dtype]))
    most = 127.0 if kv_dtype == "s8" else 448.0
    scale = np.abs(x).max(axis=-1, keepdims=True) / most
    scale[scale == 0.0] = 1.0
    codes = np.round(x / scale) if kv_dtype == "s8" else (x / scale).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return np.asarray(codes.astype(np.float64) * scale)


def fp8_rows(weight: Any) -> tuple[Any, Any]:
    """Rows of a float32 matrix [n, k] in fp8: codes [n, k] of ml_dtypes, scale float32 [n]."""
    scale = np.abs(weight).max(axis=1) / np.float32(448)
    scale[scale == 0.0] = 1.0
    return (weight / scale[:, None]).astype(ml_dtypes.float8_e4m3fn), scale


def forward(config: dict[str, Any], weights: Any, token_ids: Sequence[int], dtype: str, kv_dtype: str) -> Array:
    """Logits float64 [n_tokens, vocab_size]; the residual is not rounded."""

    def r(x: Array) -> Array:
        return np.asarray(rounded(x, dtype))

    eps, n_tokens, head_dim = config["norm_eps"], len(token_ids), config["head_dim"]
    x = np.asarray(weights["embedding"], np.float64)[np.asarray(token_ids)]
    for i in range(config["n_layers"]):
        layer = f"layer_{i}"
        normed = r(rms_norm(x, weights[f"{layer}/ln1"], eps))

        def heads(name: str, n: int, norm: str, normed: Array = normed, layer: str = layer) -> Array:
            rows = r(linear(normed, weights, f"{layer}/{name}")).reshape(n_tokens, n, head_dim)
            if norm and config["qk_norm"]:
                rows = rms_norm(rows, weights[f"{layer}/{norm}"], eps)
            if not norm:
                return rows
            return rope(rows, np.arange(n_tokens), config["rope_inv_freq"], config["rope_attention_factor"])

        q = r(heads("attn_q", config["n_heads"], "q_norm"))
        k = rounded_page(heads("attn_k", config["n_kv_heads"], "k_norm"), kv_dtype)
        v = rounded_page(heads("attn_v", config["n_kv_heads"], ""), kv_dtype)
        out = r(attention(q, k, v, config["attention_scale"], config["windows"][i])).reshape(n_tokens, -1)
        x = x + r(linear(out, weights, f"{layer}/attn_o"))
        normed = r(rms_norm(x, weights[f"{layer}/ln2"], eps))
        gate, up = (r(linear(normed, weights, f"{layer}/mlp_{part}")) for part in ("gate", "up"))
        x = x + r(linear(r(silu_mul(gate, up)), weights, f"{layer}/mlp_down"))
    x = r(rms_norm(x, weights["final_norm"], eps))
    return linear(x, weights, "lm_head" if "lm_head" in weights else "embedding")
