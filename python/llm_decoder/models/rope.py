"""Rotary position embeddings: a config's base and scaling become frequencies, computed as the checkpoints were trained
(float32, in the order of HF transformers' modeling_rope_utils)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.model_config import LIMITS
from llm_decoder.models.fields import Fields

__all__ = ["Rope", "read_rope"]

_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Rope:
    """`inv_freq`: [head_dim / 2], radians per position. `attention_factor` multiplies cos and sin. `max_len`: tokens
    up to which these are the model's frequencies; `limit_reason` says what changes beyond, "" when nothing does."""

    inv_freq: tuple[float, ...]
    attention_factor: float
    max_len: int
    limit_reason: str


@dataclass(frozen=True)
class _Given:
    """What a scaling starts from. Lengths are in tokens."""

    fields: Fields  # of the scaling itself
    theta: float
    base: np.ndarray  # float32 [head_dim / 2], theta ** (2i / head_dim)
    max_len: int  # max_position_embeddings
    original_len: int  # what the model was trained on before its context was extended


@dataclass(frozen=True)
class _Scaled:
    """What a scaling makes of it. `max_len` None is max_position_embeddings."""

    inv_freq: np.ndarray  # float32 [head_dim / 2]
    attention_factor: float = 1.0
    max_len: int | None = None
    limit_reason: str = ""


def read_rope(fields: Fields, head_dim: int, max_position_embeddings: int) -> Rope:
    """The rope of a config in any spelling: `rope_theta` with `rope_scaling`, or both inside `rope_parameters`.

    Two kinds change their frequencies with the length of the text, which keys that are in the cache already cannot
    follow. They are run up to the length where they change, with exactly the frequencies they have there: `dynamic` to
    max_position_embeddings, `longrope` to original_max_position_embeddings.

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
        known = ", ".join(sorted(_SCALINGS))
        raise UnsupportedModelError(
            f"[{parameters.place}: rope_type] {kind[:40]!r} is not known to this build; it runs {known}"
        )
    # The power in float64, then rounded: a float32 power differs in its last bit between CPUs and between libms.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    base = (float(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    original_len = parameters.integer("original_max_position_embeddings", default=max_position_embeddings)
    original_len = fields.integer("original_max_position_embeddings", default=original_len)
    scaled = _SCALINGS[kind](_Given(parameters, theta, base, max_position_embeddings, original_len))
    _finish(parameters)
    inv_freq = scaled.inv_freq.astype(np.float32)
    if not np.isfinite(inv_freq).all() or not 0 < scaled.attention_factor < 1e6:
        raise MalformedFileError(
            f"[{parameters.place}] need numbers that give finite frequencies, got {scaling!r:.200}"
        )
    return Rope(
        inv_freq=tuple(float(value) for value in inv_freq),
        attention_factor=scaled.attention_factor,
        max_len=scaled.max_len or max_position_embeddings,
        limit_reason=scaled.limit_reason,
    )


def _one_table(fields: Fields) -> dict[str, Any]:
    """`rope_scaling`, else `rope_parameters`, flattened when it is given by layer type with equal entries."""
    old, new = fields.table("rope_scaling"), fields.table("rope_parameters")
    table = old or new or {}
    by_layer_type = {key: table[key] for key in _LAYER_TYPES if table.get(key) is not None}
    if not by_layer_type:
        return table
    tables = list(by_layer_type.values())
    if not all(isinstance(entry, dict) for entry in tables) or not table.keys() <= set(_LAYER_TYPES):
        raise MalformedFileError(f"[{fields.place}: rope_parameters] need an object for each layer type, nothing else")
    if any(entry != tables[0] for entry in tables):
        raise UnsupportedModelError(f"[{fields.place}: rope_parameters] this build runs one rope for all layers")
    return tables[0]


def _finish(parameters: Fields) -> None:
    try:
        parameters.finish()
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} (a field of the rope scaling)") from None


def _default(given: _Given) -> _Scaled:
    given.fields.number("factor", default=None)  # files exist that say "default" and keep a factor of no effect
    return _Scaled(1.0 / given.base)


def _linear(given: _Given) -> _Scaled:
    factor = given.fields.number("factor", 1e-3, 1e6)
    return _Scaled(1.0 / given.base / np.float32(factor))


def _dynamic(given: _Given) -> _Scaled:
    """NTK scaling: beyond max_position_embeddings theta grows with the length of the text, up to there it stays."""
    given.fields.number("factor", 1e-3, 1e6)
    reason = "beyond it dynamic rope takes other frequencies for each length, which keys in the cache do not have"
    return _Scaled(1.0 / given.base, limit_reason=reason)


def _longrope(given: _Given) -> _Scaled:
    """Ding et al. 2024, "LongRoPE": a factor for each frequency, of one set for short texts and of another for long."""
    n_frequencies = len(given.base)
    short = given.fields.numbers("short_factor", n_frequencies, 1e-6, 1e6)
    given.fields.numbers("long_factor", n_frequencies, 1e-6, 1e6)
    # The ratio goes by the whole context, also for short texts: the model was trained with that attention factor.
    factor = given.fields.number("factor", 1e-3, 1e6, default=given.max_len / given.original_len)
    attention_factor = given.fields.number("attention_factor", default=None)
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(given.original_len))
    inv_freq = np.float32(1) / (np.array(short, np.float32) * given.base)
    max_len = min(given.original_len, given.max_len)
    reason = "beyond it longrope takes its other set of frequencies, which keys in the cache do not have"
    return _Scaled(inv_freq, attention_factor, max_len, reason)


def _llama3(given: _Given) -> _Scaled:
    """Llama 3.1's: long waves are stretched, short ones kept, those between interpolated."""
    fields, original_len = given.fields, given.original_len
    factor = fields.number("factor", 1e-3, 1e6)
    low, high = fields.number("low_freq_factor", 1e-3), fields.number("high_freq_factor", 1e-3)
    if low >= high:
        raise MalformedFileError(f"[{fields.place}] need low_freq_factor < high_freq_factor, got {low} and {high}")
    inv_freq = (1.0 / given.base).astype(np.float32)
    wavelength = np.float32(2 * math.pi) / inv_freq
    smooth = (np.float32(original_len) / wavelength - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * inv_freq / np.float32(factor) + smooth * inv_freq
    result = np.where(wavelength > original_len / low, inv_freq / np.float32(factor), inv_freq)
    is_between = (wavelength >= original_len / high) & (wavelength <= original_len / low)
    return _Scaled(np.where(is_between, between, result))


def _yarn(given: _Given) -> _Scaled:
    """Peng et al. 2023, "YaRN", sections 3.2 and 3.4."""
    fields, base, original_len = given.fields, given.base, given.original_len
    factor = fields.number("factor", 1e-3, 1e6)
    fast = fields.number("beta_fast", 0.0, 1e6, default=None) or 32.0
    slow = fields.number("beta_slow", 0.0, 1e6, default=None) or 1.0
    truncate = fields.flag("truncate", True)
    fields.flag("finetuned", True)  # of the dynamic variant alone
    head_dim = 2 * len(base)
    if given.theta <= 1.0:
        raise MalformedFileError(f"[{fields.place}: rope_theta] need a base above 1 for yarn, got {given.theta}")

    def dim_of(n_rotations: float) -> float:
        return head_dim * math.log(original_len / (n_rotations * 2 * math.pi)) / (2 * math.log(given.theta))

    low, high = dim_of(fast), dim_of(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = np.float32(1) - ramp
    inv_freq = (1.0 / (np.float32(factor) * base)) * (1 - keep) + (1.0 / base) * keep
    max_len = max(given.max_len, min(int(original_len * factor), LIMITS["max_model_len"]))
    return _Scaled(inv_freq, _yarn_attention_factor(fields, factor), max_len)


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


_SCALINGS = {
    "default": _default,
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}
