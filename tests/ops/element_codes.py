"""Floats as the codes that arrays without a NumPy type hold: uint16 of bfloat16 and float16, uint8 of fp8 (e4m3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The largest relative distance of a value from its code's.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "fp8": 2.0**-4}


def encode(values: Array, dtype: str) -> Array:
    """The codes of finite float values that are nearest: uint16, uint8, or the dtype itself where NumPy has it."""
    floats = np.asarray(values, np.float32)
    if dtype == "float32":
        return floats
    if dtype == "int8":
        return np.clip(np.rint(floats), -127, 127).astype(np.int8)
    if dtype == "float16":
        return floats.astype(np.float16).view(np.uint16)
    if dtype == "bfloat16":
        bits = floats.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    finite = _FP8_VALUES[:127]
    above = np.clip(np.searchsorted(finite, np.abs(floats)), 1, 126)
    to_lower, to_upper = np.abs(floats) - finite[above - 1], finite[above] - np.abs(floats)
    is_lower = np.where(to_lower == to_upper, above % 2 == 1, to_lower < to_upper)  # ties to even
    return (np.where(is_lower, above - 1, above) | np.where(np.signbit(floats), 0x80, 0)).astype(np.uint8)


def decode(codes: Array, dtype: str) -> npt.NDArray[np.float64]:
    """What the codes stand for."""
    if dtype == "float16":
        return codes.view(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        with np.errstate(invalid="ignore"):  # NaN that signal
            return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype == "fp8":
        return np.where(codes & 0x80, -1.0, 1.0) * _FP8_VALUES[codes & 0x7F]
    return codes.astype(np.float64)


def poison(dtype: str) -> int | float:
    """A code that must never reach a result: NaN where the type has one."""
    return {"float32": np.nan, "float16": 0x7FFF, "bfloat16": 0x7FFF, "fp8": 0x7F, "int8": -128}[dtype]


def _fp8_values() -> npt.NDArray[np.float64]:
    codes = np.arange(128)
    exponent, mantissa = codes >> 3, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[127] = np.nan
    return values


_FP8_VALUES = _fp8_values()
