"""Decoders of tiny random models, built straight from arrays: what the tests of the core step through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_decoder import _core

Weights = dict[str, np.ndarray]


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """The fields of ModelConfig for a model whose sizes are multiples of nothing."""
    config: dict[str, Any] = {
        "n_layers": 2,
        "hidden_size": 72,
        "n_heads": 3,
        "n_kv_heads": 1,
        "head_dim": 40,
        "intermediate_size": 91,
        "vocab_size": 1003,
        "max_model_len": 512,
        "norm_eps": 1e-5,
        "qk_norm": False,
        "rope_attention_factor": 1.0,
    }
    config.update(overrides)
    head_dim = config["head_dim"]
    config.setdefault("attention_scale", head_dim**-0.5)
    config.setdefault("windows", [0] * config["n_layers"])
    config.setdefault("rope_inv_freq", [float(x) for x in 10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)])
    return config


def random_weights(config: dict[str, Any], seed: int = 0, *, biases: bool = False, tied: bool = True) -> Weights:
    """Unfused float32 weights by our names, spread enough that every part of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    q_size, kv_size = config["n_heads"] * head_dim, config["n_kv_heads"] * head_dim

    def matrix(n: int, k: int) -> np.ndarray:
        return (rng.standard_normal((n, k)) * 1.5 / np.sqrt(k)).astype(np.float32)

    def norm(n: int) -> np.ndarray:
        return (1.0 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    weights = {"embedding": rng.standard_normal((config["vocab_size"], hidden)).astype(np.float32)}
    weights["final_norm"] = norm(hidden)
    if not tied:
        weights["lm_head"] = matrix(config["vocab_size"], hidden)
    for i in range(config["n_layers"]):
        shapes = {
            "attn_q": (q_size, hidden),
            "attn_k": (kv_size, hidden),
            "attn_v": (kv_size, hidden),
            "attn_o": (hidden, q_size),
            "mlp_gate": (config["intermediate_size"], hidden),
            "mlp_up": (config["intermediate_size"], hidden),
            "mlp_down": (hidden, config["intermediate_size"]),
        }
        for name, shape in shapes.items():
            weights[f"layer_{i}/{name}"] = matrix(*shape)
            if biases:
                weights[f"layer_{i}/{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32) * np.float32(0.3)
        weights[f"layer_{i}/ln1"], weights[f"layer_{i}/ln2"] = norm(hidden), norm(hidden)
        if config["qk_norm"]:
            weights[f"layer_{i}/q_norm"], weights[f"layer_{i}/k_norm"] = norm(head_dim), norm(head_dim)
    return weights


def rounded_to_bf16(weights: Weights) -> Weights:
    """Every matrix as the floats that its bf16 form stands for."""
    rounded = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2:
            panels = _core.pack_bf16(weight).astype(np.uint32) << np.uint32(16)
            rows = panels.view(np.float32).reshape(-1, weight.shape[1], 16).transpose(0, 2, 1)
            rounded[name] = np.ascontiguousarray(rows.reshape(-1, weight.shape[1])[: len(weight)])
    return rounded


_FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "mlp_gate_up": ("mlp_gate", "mlp_up")}


def fuse(config: dict[str, Any], weights: Weights) -> Weights:
    """The same weights under the names of the core: attn_qkv and mlp_gate_up instead of their parts."""
    fused = dict(weights)
    for i in range(config["n_layers"]):
        for name, parts in _FUSED.items():
            for suffix in ("", ".bias"):
                keys = [f"layer_{i}/{part}{suffix}" for part in parts]
                if keys[0] in fused:
                    fused[f"layer_{i}/{name}{suffix}"] = np.concatenate([fused.pop(key) for key in keys])
    return fused


def quantized_as_float(weights: Weights) -> Weights:
    """Every matrix as int8 rows times their scales: what a w8 decoder computes with."""
    rounded = dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2:
            q, scale = _core.quantize_weight_rows(weight)
            rounded[name] = q.astype(np.float32) * scale[:, None]
    return rounded


def set_weight(decoder: Any, name: str, weight: np.ndarray, layout: str) -> None:
    """layout: f32, bf16, w8, w4 (embedding and output layer w8), or "w4 as w8": the w8 weights that w4 stands for."""
    if weight.ndim == 1:
        decoder.set_weight(name, "vector", weight.shape, weight)
    elif layout == "f32":
        decoder.set_weight(name, "f32", weight.shape, _core.pack_f32(weight))
    elif layout == "bf16":
        decoder.set_weight(name, "bf16", weight.shape, _core.pack_bf16(weight))
    elif layout == "w4" and name not in ("embedding", "lm_head"):
        *groups, scale = _core.quantize_weight_groups(weight)
        decoder.set_weight(name, "w4", weight.shape, _core.pack_w4(*groups), scale)
    elif layout == "w4 as w8" and name not in ("embedding", "lm_head"):
        *groups, scale = _core.quantize_weight_groups(weight)
        q = _core.expand_w4(_core.pack_w4(*groups), *weight.shape)
        decoder.set_weight(name, "w8", weight.shape, _core.pack_w8(q), scale)
    else:
        q, scale = _core.quantize_weight_rows(np.nan_to_num(weight))
        scale[np.isnan(weight).any(axis=1)] = np.nan  # a poisoned row stays poisoned
        decoder.set_weight(name, "w8", weight.shape, _core.pack_w8(q), scale)


def make_decoder(
    config: dict[str, Any], weights: Weights, layout: str, *, threads: int = 1, isa: str = "auto", max_tokens: int = 128
) -> Any:
    decoder = _core.INT8Decoder(config, threads, isa)
    for name, weight in fuse(config, weights).items():
        set_weight(decoder, name, weight, layout)
    decoder.finalize(max_tokens)
    return decoder


def make_cache(
    config: dict[str, Any],
    dtype: str = "f32",
    *,
    n_pages: Any = 64,
    window: Any = 0,
    layers: Any = None,
    n_tier_slots: Any = 0,
) -> Any:
    sizes = (config["n_layers"] if layers is None else layers, config["n_kv_heads"], config["head_dim"])
    return _core.KvCache(n_pages, 16, *sizes, dtype=dtype, window=window, n_tier_slots=n_tier_slots)


def i32(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int32)


NO_TOKEN, LAST_TOKEN, ALL_TOKENS = 0, 1, 2


@dataclass
class Walk:
    """A sequence on its walk through a cache: what was admitted, and the logits that came back so far."""

    tokens: list[int]
    seq_id: int
    n_cached: int
    n_done: int = 0
    logits: list[np.ndarray] = field(default_factory=list)

    def all_logits(self) -> np.ndarray:
        return np.concatenate(self.logits)


class Runner:
    """Steps sequences through a decoder and its cache, several at once."""

    def __init__(self, decoder: Any, cache: Any) -> None:
        self.decoder, self.cache = decoder, cache

    def admit(self, tokens: Sequence[int]) -> Walk:
        seq_id, n_cached = self.cache.admit(i32(tokens))
        return Walk(list(tokens), seq_id, n_cached, n_done=n_cached)

    def step(self, parts: Sequence[tuple[Walk, int]], want: int = ALL_TOKENS) -> None:
        """Runs the next n tokens of each sequence and keeps their logits."""
        ids = np.array([sequence.seq_id for sequence, _ in parts], np.int64)
        counts = i32(n for _, n in parts)
        tokens = i32(t for sequence, n in parts for t in sequence.tokens[sequence.n_done : sequence.n_done + n])
        assert self.cache.reserve(ids, counts)
        n_rows = self.decoder.step(self.cache, tokens, ids, counts, np.full(len(parts), want, np.uint8))
        logits = self.decoder.logits()
        assert len(logits) == n_rows
        self.cache.commit(ids, counts, tokens)
        row = 0
        for sequence, n in parts:
            n_wanted = {NO_TOKEN: 0, LAST_TOKEN: 1, ALL_TOKENS: n}[want]
            sequence.logits.append(logits[row : row + n_wanted])
            sequence.n_done += n
            row += n_wanted

    def run(self, tokens: Sequence[int], chunks: Sequence[int] | None = None) -> np.ndarray:
        """Logits of the tokens that are not cached, in steps of `chunks` tokens; ends the sequence."""
        sequence = self.admit(tokens)
        for n in chunks or [len(sequence.tokens) - sequence.n_cached]:
            self.step([(sequence, n)])
        assert sequence.n_done == len(tokens)
        self.cache.release(sequence.seq_id)
        return sequence.all_logits()
