"""An encoder's weights in the core's packed layouts, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from llm_decoder.backends import pack_f32, pack_w8, quantize_weight_rows
from llm_decoder.encoders.checkpoint import EncoderCheckpoint
from llm_decoder.encoders.config import weight_shapes
from llm_decoder.packed_tensor import PackedTensor

__all__ = ["pack_weights"]

# A few rows, added to every token's: they cost nothing in float32.
_TABLES = ("position_embedding", "type_embedding")


def pack_weights(checkpoint: EncoderCheckpoint, layout: Literal["f32", "w8"]) -> Iterator[tuple[str, PackedTensor]]:
    """(name, weight) of every weight of the encoder, matrices in `layout`. Raises MalformedFileError for a NaN."""
    shapes = weight_shapes(checkpoint.config)
    for name in checkpoint.names():
        shape = shapes[name]
        if len(shape) == 1:
            yield name, PackedTensor("vector", shape, checkpoint.read(name))
        elif layout == "f32" or name in _TABLES:
            yield name, PackedTensor("f32", shape, pack_f32(checkpoint.read(name)))
        else:
            yield name, _quantized(checkpoint, name, shape)


def _quantized(checkpoint: EncoderCheckpoint, name: str, shape: tuple[int, ...]) -> PackedTensor:
    """A row's weights are int8 times the row's scale (docs/quantization.md)."""
    q = np.empty(shape, np.int8)
    scales = np.empty(shape[0], np.float32)
    for begin, rows in checkpoint.blocks(name):
        end = begin + len(rows)
        q[begin:end], scales[begin:end] = quantize_weight_rows(rows)
    return PackedTensor("w8", shape, pack_w8(q), scales)
