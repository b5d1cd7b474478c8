"""Rotary position embeddings: a config's base and scaling become frequencies, computed as the checkpoints were trained
(float32, in the order of HF transformers' modeling_rope_utils)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.models.fields import Fields

__all__ = ["Rope", "read_rope"]

_LAYER_TYPES = ("full_attention", "sliding_attention")
_REFUSED = {
    "dynamic": "its frequencies change with the length of the text, so cached keys would be wrong",
    "longrope": "it has two sets of frequencies, chosen by the length of the text",
}


@dataclass(frozen=True)
class Rope:
    """`inv_freq`: [head_dim / 2], radians per position. `attention_factor` multiplies cos and sin. `scaled_len` is the
    context that the scaling was made for, in tokens, when it says one."""

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0
    scaled_len: int | None = None


def read_rope(fields: Fields, head_dim: int, max_position_embeddings: int) -> Rope:
    """The rope of a config in any spelling: `rope_theta` with `rope_scaling`, or both inside `rope_parameters`.

    Raises UnsupportedModelError for a kind of scaling that this build does not run, MalformedFileError for bad numbers.
    """
    theta = fields.number("rope_theta", 1.0, default=10000.0)
    scaling = _one_table(fields)
    parameters = Fields(scaling, f"{fields.place}: rope_scaling")
    theta = parameters.number("rope_theta", 1.0, default=theta)
    old_kind = parameters.text("type", "default")
    kind = parameters.text("rope_type", old_kind)
    if kind == "mrope" or "mrope_section" in parameters:
        raise UnsupportedModelError(f"[{parameters.place}] multimodal rope (mrope) is not run by this build")
    if kind not in _SCALINGS:
        reason = _REFUSED.get(kind, "it is not known to this build")
        known = ", ".join(sorted(_SCALINGS))
        raise UnsupportedModelError(f"[{parameters.place}: rope_type] {kind[:40]!r}: {reason}; this build runs {known}")
    base = np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    original_len = parameters.integer("original_max_position_embeddings", default=None)
    original_len = fields.integer("original_max_position_embeddings", default=original_len)
    rope = _SCALINGS[kind](parameters, theta, base, original_len or max_position_embeddings)
    _finish(parameters)
    if not np.isfinite(rope.inv_freq).all() or not 0 < rope.attention_factor < 1e6:
        raise MalformedFileError(
            f"[{parameters.place}] need numbers that give finite frequencies, got {scaling!r:.200}"
        )
    return rope


def _one_table(fields: Fields) -> dict[str, Any]:
    """`rope_parameters` or `rope_scaling`, flattened when it is given by layer type with equal entries."""
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    table = new or old or {}
    by_layer_type = {key: table[key] for key in _LAYER_TYPES if table.get(key) is not None}
    if not by_layer_type:
        return table
    tables = list(by_layer_type.values())
    if not all(isinstance(entry, dict) for entry in tables):
        raise MalformedFileError(f"[{fields.place}: rope_parameters] need an object for each layer type")
    if any(entry != tables[0] for entry in tables):
        raise UnsupportedModelError(f"[{fields.place}: rope_parameters] this build runs one rope for all layers")
    return tables[0]


def _finish(parameters: Fields) -> None:
    try:
        parameters.finish()
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} (a field of the rope scaling)") from None


def _default(parameters: Fields, theta: float, base: np.ndarray, original_len: int) -> Rope:
    parameters.number("factor", default=None)  # files exist that say "default" and keep a factor of no effect
    return Rope(_floats(1.0 / base))


def _linear(parameters: Fields, theta: float, base: np.ndarray, original_len: int) -> Rope:
    factor = parameters.number("factor", 1e-3, 1e6)
    return Rope(_floats(1.0 / base / np.float32(factor)))


def _llama3(parameters: Fields, theta: float, base: np.ndarray, original_len: int) -> Rope:
    """Llama 3.1's: long waves are stretched, short ones kept, those between interpolated."""
    factor = parameters.number("factor", 1e-3, 1e6)
    low, high = parameters.number("low_freq_factor", 1e-3), parameters.number("high_freq_factor", 1e-3)
    if low >= high:
        raise MalformedFileError(f"[{parameters.place}] need low_freq_factor < high_freq_factor, got {low} and {high}")
    inv_freq = (1.0 / base).astype(np.float32)
    wavelength = np.float32(2 * math.pi) / inv_freq
    smooth = (np.float32(original_len) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * inv_freq / np.float32(factor) + smooth * inv_freq
    result = np.where(wavelength > original_len / low, inv_freq / np.float32(factor), inv_freq)
    is_between = (wavelength >= original_len / high) & (wavelength <= original_len / low)
    return Rope(_floats(np.where(is_between, between, result)))


def _yarn(parameters: Fields, theta: float, base: np.ndarray, original_len: int) -> Rope:
    """Peng et al. 2023, "YaRN", sections 3.2 and 3.4."""
    factor = parameters.number("factor", 1e-3, 1e6)
    fast = parameters.number("beta_fast", 1e-6, 1e6, default=32.0)
    slow = parameters.number("beta_slow", 1e-6, 1e6, default=1.0)
    truncate = parameters.flag("truncate", True)
    head_dim = 2 * len(base)
    if theta <= 1.0:
        raise MalformedFileError(f"[{parameters.place}: rope_theta] need a base above 1 for yarn, got {theta}")

    def dim_of(n_rotations: float) -> float:
        return head_dim * math.log(original_len / (n_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(fast), dim_of(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    inv_freq = (1.0 / (np.float32(factor) * base)) * (1 - keep) + (1.0 / base) * keep
    scaled_len = min(int(original_len * factor), 2**26)
    return Rope(_floats(inv_freq), _yarn_attention_factor(parameters, factor), scaled_len)


def _yarn_attention_factor(parameters: Fields, factor: float) -> float:
    given = parameters.number("attention_factor", default=None)
    mscale = parameters.number("mscale", default=None)
    mscale_all_dim = parameters.number("mscale_all_dim", default=None)

    def log_scale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given is not None:
        return given
    if mscale and mscale_all_dim:
        return log_scale(mscale) / log_scale(mscale_all_dim)
    return log_scale()


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values.astype(np.float32))


_SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
