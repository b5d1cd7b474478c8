"""CUDADecoders of tiny random models on the host machine that stands for a GPU, and what judges them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import rounded_reference
from tiny_decoder import Weights, fuse, quantized_as_float
from tiny_decoder import tiny_config as any_tiny_config

from llm_decoder import _core, reference


def gpu_module() -> Any:
    return importlib.import_module("llm_decoder._cuda_host")


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """As tiny_decoder's, with the sizes that a GPU's products and heads want: multiples of 8."""
    sizes = {"hidden_size": 64, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "intermediate_size": 88}
    return any_tiny_config(**{**sizes, "vocab_size": 331, **overrides})


def half_bits(weight: np.ndarray, dtype: str) -> np.ndarray:
    return weight.astype(rounded_reference.ROW_DTYPES[dtype]).view(np.uint16)


def set_weight(decoder: Any, name: str, weight: np.ndarray, layout: str) -> None:
    """layout: half, w8, w4 (embedding and output layer w8)."""
    gpu = gpu_module()
    if weight.ndim == 1:
        decoder.set_weight(name, "vector", weight.shape, weight)
    elif layout == "half":
        layout = {"bfloat16": "gpu_bf16", "float16": "gpu_f16"}[decoder.dtype]
        decoder.set_weight(name, layout, weight.shape, gpu.pack_gpu_half(half_bits(weight, decoder.dtype)))
    elif layout == "w4" and name not in ("embedding", "lm_head"):
        *groups, scale = _core.quantize_weight_groups(weight)
        decoder.set_weight(name, "gpu_w4", weight.shape, gpu.pack_gpu_w4(*groups), scale)
    else:
        q, scale = _core.quantize_weight_rows(weight)
        decoder.set_weight(name, "gpu_w8", weight.shape, gpu.pack_gpu_w8(q), scale)


def as_seen(weights: Weights, layout: str, dtype: str) -> Weights:
    """Every matrix as the floats that its packed form stands for."""
    if layout == "w8":
        return quantized_as_float(weights)
    seen = dict(weights)
    for name, weight in weights.items():
        if weight.ndim != 2:
            continue
        if layout == "half":
            seen[name] = rounded_reference.rounded(weight, dtype)
        elif name in ("embedding", "lm_head"):
            seen |= quantized_as_float({name: weight})
        else:
            *groups, scale = _core.quantize_weight_groups(weight)
            q = _core.expand_w4(_core.pack_w4(*groups), *weight.shape)
            seen[name] = q.astype(np.float32) * scale[:, None]
    return seen


def make_decoder(
    config: dict[str, Any],
    weights: Weights,
    layout: str = "half",
    *,
    dtype: str = "bfloat16",
    deterministic: bool = False,
    max_tokens: int = 128,
) -> Any:
    decoder = gpu_module().CUDADecoder(config, dtype=dtype, deterministic=deterministic)
    for name, weight in fuse(config, weights).items():
        set_weight(decoder, name, weight, layout)
    decoder.finalize(max_tokens)
    return decoder


def make_cache(
    decoder: Any,
    config: dict[str, Any],
    dtype: str = "bf16",
    *,
    n_pages: Any = 32,
    window: Any = 0,
    layers: Any = None,
    n_tier_slots: Any = 0,
) -> Any:
    sizes = (config["n_layers"] if layers is None else layers, config["n_kv_heads"], config["head_dim"])
    places = {"window": window, "n_tier_slots": n_tier_slots}
    return gpu_module().KvCache(decoder, n_pages, 16, *sizes, dtype=dtype, **places)


class Judge:
    """The reference's logits of one sequence, and how far a decoder of 16 bits may be from them: twice as far as
    rounding alone takes the reference, by its largest and by its mean error."""

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        tokens: Sequence[int],
        *,
        layout: str = "half",
        dtype: str = "bfloat16",
        kv_dtype: str = "bf16",
    ) -> None:
        seen = as_seen(weights, layout, dtype)
        self.want = reference.forward(config, seen, tokens)
        error = np.abs(rounded_reference.forward(config, seen, tokens, dtype, kv_dtype) - self.want)
        self.most, self.mean = 2.0 * float(error.max()), 2.0 * float(error.mean())

    def check(self, got: np.ndarray, begin: int = 0) -> None:
        """got: logits of the tokens from `begin` on."""
        want = self.want[begin : begin + len(got)]
        error = np.abs(got - want)
        assert got.shape == want.shape
        assert error.max() <= self.most, f"{error.max()} above {self.most}"
        assert error.mean() <= self.mean, f"{error.mean()} above {self.mean}"
        second, first = np.sort(want, axis=-1)[:, -2:].T
        is_clear = first - second > 2.0 * self.most
        assert np.array_equal(got.argmax(axis=-1)[is_clear], want.argmax(axis=-1)[is_clear])
