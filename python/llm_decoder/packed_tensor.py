"""Weights as the core keeps them, and where each comes from: which rows are fused into which packed matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm_decoder.model_config import ModelConfig

__all__ = ["DATA_ALIGN", "W8_IN_COARSER", "CoreTensor", "Layout", "MatrixLayout", "PackedTensor", "core_tensors"]

Layout = Literal["vector", "f32", "bf16", "w8", "w4", "gpu_bf16", "gpu_f16", "gpu_w8", "gpu_w4", "gpu_f8"]
MatrixLayout = Literal["f32", "bf16", "w8", "w4", "gpu_bf16", "gpu_f16", "gpu_w8", "gpu_w4", "gpu_f8"]

PANEL_WIDTH = 16  # output channels of a panel; cpu_kernels.h draws the layouts
DOT_WIDTH = 4
GROUP_WIDTH = 32  # input channels of a group of w4
BLOCK_WIDTH = 64  # input channels of a block of w4
BLOCK_ROW_BYTES = 36  # of it, an output channel: 64 values of 4 bits, a scale and a minimum for each half
BRICK_OUTPUTS = 64  # output channels of a brick, in which GPUs have their weights; attention/pack_gpu_weights.h
# Of their layouts: input channels of a brick, and its bytes an output channel.
_BRICKS = {"gpu_bf16": (64, 128), "gpu_f16": (64, 128), "gpu_w8": (128, 128), "gpu_w4": (128, 72), "gpu_f8": (128, 128)}
# Matrices that stay w8 where the others are coarser: their errors go straight into every token.
W8_IN_COARSER = ("embedding", "lm_head")
_FINER: dict[MatrixLayout, MatrixLayout] = {"w4": "w8", "gpu_w4": "gpu_w8", "gpu_f8": "gpu_w8"}
DATA_ALIGN = 64  # bytes, of a packed matrix in memory and in files


@dataclass(frozen=True)
class PackedTensor:
    """One weight for a decoder's `set_weight`.

    `shape` is [n] or [n, k] before packing. `data` is 1-D: float32 for vectors and f32 matrices, uint16 for bf16,
    uint8 for w8, w4 and all of a GPU; it may be a read-only view of a mapped file. `scales` is float32 [n] for
    quantised ones, else None.
    """

    layout: Layout
    shape: tuple[int, ...]
    data: npt.NDArray[np.float32] | npt.NDArray[np.uint16] | npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class CoreTensor:
    """One weight to be: its core name, and the names whose rows it is made of, one below the other."""

    name: str
    layout: Layout
    shape: tuple[int, ...]
    parts: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        if self.layout == "vector":
            return math.prod(self.shape) * 4
        return -(-self.shape[0] // self.panel_rows) * self.panel_rows * self.row_bytes

    @property
    def panel_rows(self) -> int:
        """Output channels that are packed together: packed runs of so many follow each other."""
        return BRICK_OUTPUTS if self.layout in _BRICKS else PANEL_WIDTH

    @property
    def row_bytes(self) -> int:
        """Packed bytes of one output channel of a matrix."""
        n_in = self.shape[1]
        if self.layout in _BRICKS:
            n_inputs, n_bytes = _BRICKS[self.layout]
            return -(-n_in // n_inputs) * n_bytes
        if self.layout == "w4":
            return -(-n_in // BLOCK_WIDTH) * BLOCK_ROW_BYTES
        if self.layout == "w8":
            return n_in // -DOT_WIDTH * -DOT_WIDTH
        return n_in * self.dtype.itemsize

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the packed data in NumPy."""
        if self.is_quantized or self.layout in _BRICKS:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16 if self.layout == "bf16" else np.float32)

    @property
    def is_quantized(self) -> bool:
        """Whether it is a matrix of eight bits or less a weight with a scale a row."""
        return self.layout in ("w8", "w4", "gpu_w8", "gpu_w4", "gpu_f8")

    @property
    def scale_bytes(self) -> int:
        return self.shape[0] * 4 if self.is_quantized else 0


def core_tensors(config: ModelConfig, layout: MatrixLayout) -> list[CoreTensor]:
    """Every weight the core wants for this model, in the order of the layers, its matrices in `layout` (of those
    coarser than w8, but for W8_IN_COARSER)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    qkv_width = config.q_width + 2 * config.kv_width
    finer = _FINER.get(layout, layout)
    tensors: list[CoreTensor] = []

    def vector(name: str, size: int, parts: tuple[str, ...]) -> None:
        tensors.append(CoreTensor(name, "vector", (size,), parts))

    def matrix(name: str, n_out: int, n_in: int, parts: tuple[str, ...]) -> None:
        tensors.append(CoreTensor(name, finer if name in W8_IN_COARSER else layout, (n_out, n_in), parts))

    matrix("embedding", config.vocab_size, hidden, ("embedding",))
    for layer in range(config.n_layers):
        at = f"layer_{layer}/"
        vector(f"{at}ln1", hidden, (f"{at}ln1",))
        matrix(f"{at}attn_qkv", qkv_width, hidden, (f"{at}attn_q", f"{at}attn_k", f"{at}attn_v"))
        if config.qkv_bias:
            biases = (f"{at}attn_q.bias", f"{at}attn_k.bias", f"{at}attn_v.bias")
            vector(f"{at}attn_qkv.bias", qkv_width, biases)
        if config.qk_norm:
            vector(f"{at}q_norm", config.head_dim, (f"{at}q_norm",))
            vector(f"{at}k_norm", config.head_dim, (f"{at}k_norm",))
        matrix(f"{at}attn_o", hidden, config.q_width, (f"{at}attn_o",))
        if config.o_bias:
            vector(f"{at}attn_o.bias", hidden, (f"{at}attn_o.bias",))
        vector(f"{at}ln2", hidden, (f"{at}ln2",))
        matrix(f"{at}mlp_gate_up", 2 * inner, hidden, (f"{at}mlp_gate", f"{at}mlp_up"))
        matrix(f"{at}mlp_down", hidden, inner, (f"{at}mlp_down",))
        if config.mlp_bias:
            vector(f"{at}mlp_gate_up.bias", 2 * inner, (f"{at}mlp_gate.bias", f"{at}mlp_up.bias"))
            vector(f"{at}mlp_down.bias", hidden, (f"{at}mlp_down.bias",))
    vector("final_norm", hidden, ("final_norm",))
    if not config.tie_word_embeddings:
        matrix("lm_head", config.vocab_size, hidden, ("lm_head",))
    return tensors
