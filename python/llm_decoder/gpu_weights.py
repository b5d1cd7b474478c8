"""Weights of a model as a GPU has them: in which layout, and what of them differs from the CPU's.

Matrices lie in bricks (attention/pack_gpu_weights.h), 16 bits a weight, integers that are quantised as the
CPU's are, or fp8.
Activations are in 16 bits, those of half weights in the type of the weights.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.checkpoint import Checkpoint
from llm_decoder.errors import ConfigError, UnsupportedModelError
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.packed_tensor import MatrixLayout

__all__ = [
    "GpuDtype",
    "WeightPackers",
    "check_gpu_precision",
    "choose_gpu_dtype",
    "choose_gpu_layout",
    "half_bits",
    "half_values",
    "packers",
]

GpuDtype = Literal["bfloat16", "float16"]

_HALVES: dict[GpuDtype, MatrixLayout] = {"bfloat16": "gpu_bf16", "float16": "gpu_f16"}
_QUANTIZED: dict[str, MatrixLayout] = {"int8": "gpu_w8", "int4": "gpu_w4", "fp8": "gpu_f8"}
_INPUT_MULTIPLE = 8  # of every matrix: kernels read activations 16 bytes at a time


class WeightPackers(Protocol):
    """What an extension of GPU kernels quantises and packs weights with; what is packed is uint8."""

    def pack_gpu_half(self, w: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]: ...
    def pack_gpu_w8(self, q: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]: ...
    def pack_gpu_w4(
        self, q: npt.NDArray[np.uint8], group_scale: npt.NDArray[np.uint8], group_min: npt.NDArray[np.int8]
    ) -> npt.NDArray[np.uint8]: ...
    def pack_gpu_f8(self, q: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]: ...
    def quantize_f8_rows(self, w: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]: ...


def packers() -> WeightPackers:
    """Those of the extension; no device is needed. Raises BackendError where it is not built."""
    from llm_decoder import backends

    return backends.load_cuda()  # type: ignore[return-value]


def check_gpu_precision(quantization: str, dtype: str) -> None:
    """Raises ConfigError for a name that is not known, or is of the CPU alone."""
    if dtype not in ("auto", *_HALVES):
        remedy = "; use device='cpu'" if dtype == "float32" else ""
        raise ConfigError(f"[dtype] need auto, bfloat16 or float16 on a GPU, got {dtype!r:.60}{remedy}")
    if quantization not in ("auto", "none", *_QUANTIZED):
        raise ConfigError(f"[quantization] need auto, none, {', '.join(_QUANTIZED)}, got {quantization!r:.60}")


def choose_gpu_dtype(checkpoint: Checkpoint, dtype: str = "auto") -> GpuDtype:
    """The type of activations, and of weights that are not quantised: the one named, or for "auto" float16 where all
    matrices are stored so, else bfloat16. Raises ConfigError for another name."""
    check_gpu_precision("auto", dtype)
    for known in _HALVES:
        if dtype == known:
            return known
    matrices = [name for name, shape in weight_shapes(checkpoint.config).items() if len(shape) == 2]
    return "float16" if all(checkpoint.stored_dtype(name) == "float16" for name in matrices) else "bfloat16"


def choose_gpu_layout(config: ModelConfig, quantization: str, dtype: GpuDtype) -> MatrixLayout:
    """The layout of matrices whose activations are of `dtype`; "auto" quantises nothing.

    Raises ConfigError for a name that is not known, UnsupportedModelError for sizes that no kernel takes.
    """
    check_gpu_precision(quantization, dtype)
    for what, size in (("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)):
        _check_inputs(what, size)
    _check_inputs("head_dim", config.head_dim)
    return _QUANTIZED.get(quantization, _HALVES[dtype])


def _check_inputs(what: str, size: int) -> None:
    if size % _INPUT_MULTIPLE:
        raise UnsupportedModelError(
            f"[model config] need {what} to be a multiple of {_INPUT_MULTIPLE} on a GPU, got {size}; use device='cpu'"
        )


def half_bits(values: npt.NDArray[np.float32], layout: MatrixLayout) -> npt.NDArray[np.uint16]:
    """Finite float32 rounded to the nearest of gpu_bf16 or gpu_f16, ties to even, as bits; what is too large becomes
    infinity."""
    if layout == "gpu_f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype(np.uint16)


def half_values(bits: npt.NDArray[np.uint16], layout: MatrixLayout) -> npt.NDArray[Any]:
    """What half_bits made, as numbers that NumPy adds: float16 or float32."""
    if layout == "gpu_f16":
        return bits.view(np.float16)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
