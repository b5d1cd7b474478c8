"""Matrices that a HF folder stores in fp8 (e4m3) with a scale for each row, or one for all: weight = code * scale.

Read are what AutoFP8 and vLLM ("fp8"), fbgemm ("fbgemm_fp8") and compressed-tensors ("float-quantized") write. Scales
of activations, which some of them have, are left aside: rows between products are not in fp8 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ACTIVATION_SCALE", "BLOCK_SCALE", "FP8", "SCALE", "fp8_values", "has_fp8_rows", "is_scale_shape"]

FP8 = "F8_E4M3"  # in safetensors
# What stands in the place of "weight" in the names of what goes with a matrix.
SCALE = "weight_scale"
ACTIVATION_SCALE = "input_scale"
BLOCK_SCALE = "weight_scale_inv"  # of blocks, which are not read


def has_fp8_rows(quantization: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` says that matrices are so."""
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return quantization.get("format") == "float-quantized"
    return method in ("fp8", "fbgemm_fp8") and not quantization.get("weight_block_size")


def is_scale_shape(shape: tuple[int, ...], n: int) -> bool:
    """Whether a tensor of scales is of one for all of n rows, or of one for each."""
    return shape in ((), (1,), (n,), (n, 1))


def _all_values() -> npt.NDArray[np.float32]:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    values = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    values[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


_VALUES = _all_values()


def fp8_values(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the codes stand for."""
    values: npt.NDArray[np.float32] = _VALUES[codes]
    return values
