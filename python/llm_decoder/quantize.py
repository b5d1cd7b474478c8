"""Float rows -> the core's packed layouts, a block of rows at a time: memory stays bounded whatever the model's size.

A packed matrix is a run of panels of output channels (16 for the CPU, 64 for a GPU), so blocks of whole panels can be
packed on their own and written one after the other. Bf16 is float32 rounded to the nearest. W8 is symmetric, one scale
a row: scale = max|w| / 127, an all-zero row has scale 1. W4 is W8 compressed: in each group of 32 inputs the int8
weight is an integer scale times 0..15 plus an integer minimum. F8 is fp8 (e4m3), one scale a row: max|w| / 448.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder import gpu_weights
from llm_decoder.checkpoint import Checkpoint, Groups
from llm_decoder.errors import MalformedFileError
from llm_decoder.packed_tensor import DATA_ALIGN, CoreTensor, MatrixLayout, PackedTensor, core_tensors
from llm_decoder.safetensors_file import to_float32

__all__ = ["Chunk", "Progress", "pack_in_memory", "packed_chunks"]

# progress(n_done_bytes, n_total_bytes, what)
Progress = Callable[[int, int, str], None]

_BLOCK_FLOATS = 1 << 20  # 4 MiB of float32 a block: a few of them stay in the last-level cache
_MAX_THREADS = 8


@dataclass(frozen=True)
class Chunk:
    """A finished piece of one tensor: bytes of its data from `data_offset` on, and its rows' scales if quantised."""

    tensor: CoreTensor
    data_offset: int
    data: npt.NDArray[Any]
    row_offset: int
    scales: npt.NDArray[np.float32] | None


def packed_chunks(checkpoint: Checkpoint, tensors: Iterable[CoreTensor], progress: Progress | None) -> Iterator[Chunk]:
    """Every tensor's chunks in order. Blocks are packed on a few threads, a few blocks ahead of the reader.

    Raises MalformedFileError naming the weight when it holds a NaN or an infinity.
    """
    from llm_decoder.cpu_topology import usable_cores

    tensors = list(tensors)
    n_total = sum(tensor.data_bytes for tensor in tensors)
    n_done = 0
    n_threads = min(_MAX_THREADS, usable_cores())
    with ThreadPoolExecutor(n_threads, thread_name_prefix="pack") as pool:
        ahead: deque[Future[Chunk]] = deque()
        try:
            for tensor, begin, end in _blocks(tensors):
                ahead.append(pool.submit(_pack_block, checkpoint, tensor, begin, end))
                if len(ahead) > 2 * n_threads:
                    chunk = ahead.popleft().result()
                    n_done = _report(progress, n_done, n_total, chunk)
                    yield chunk
            while ahead:
                chunk = ahead.popleft().result()
                n_done = _report(progress, n_done, n_total, chunk)
                yield chunk
        finally:
            for future in ahead:
                future.cancel()


def pack_in_memory(
    checkpoint: Checkpoint, layout: MatrixLayout, progress: Progress | None = None
) -> dict[str, PackedTensor]:
    """All weights packed into memory of our own. Core name -> PackedTensor."""
    tensors = core_tensors(checkpoint.config, layout)
    packed = {tensor.name: _empty(tensor) for tensor in tensors}
    for chunk in packed_chunks(checkpoint, tensors, progress):
        target = packed[chunk.tensor.name]
        begin = chunk.data_offset // target.data.itemsize
        target.data[begin : begin + chunk.data.size] = chunk.data
        if chunk.scales is not None and target.scales is not None:
            target.scales[chunk.row_offset : chunk.row_offset + chunk.scales.size] = chunk.scales
    return packed


def _blocks(tensors: Iterable[CoreTensor]) -> Iterator[tuple[CoreTensor, int, int]]:
    for tensor in tensors:
        n_rows = tensor.shape[0]
        step = n_rows
        if tensor.layout != "vector":
            step = max(1, _BLOCK_FLOATS // tensor.shape[1] // tensor.panel_rows) * tensor.panel_rows
        for begin in range(0, n_rows, step):
            yield tensor, begin, min(begin + step, n_rows)


def _pack_block(checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int) -> Chunk:
    from llm_decoder.backends import pack_bf16, pack_f32, pack_w4, pack_w8  # the one door to the core

    if tensor.layout == "vector":
        values = np.concatenate([checkpoint.read(part) for part in tensor.parts])
        _check_finite(checkpoint, tensor, values)
        return Chunk(tensor, 0, values, 0, None)
    offset = begin * tensor.row_bytes
    if tensor.layout == "f32":
        values = _fused_rows(checkpoint, tensor, begin, end)
        _check_finite(checkpoint, tensor, values)
        return Chunk(tensor, offset, pack_f32(values), begin, None)
    if tensor.layout == "bf16":
        packed = pack_bf16(_fused_rows(checkpoint, tensor, begin, end))
        _check_finite(checkpoint, tensor, to_float32(packed))  # what rounds past the largest bfloat16 is infinite
        return Chunk(tensor, offset, packed, begin, None)
    if tensor.layout in ("gpu_bf16", "gpu_f16"):
        values = _fused_rows(checkpoint, tensor, begin, end)
        _check_finite(checkpoint, tensor, values)
        halves = gpu_weights.half_bits(values, tensor.layout)
        _check_finite(checkpoint, tensor, gpu_weights.half_values(halves, tensor.layout))
        return Chunk(tensor, offset, gpu_weights.packers().pack_gpu_half(halves), begin, None)
    if tensor.layout in ("w4", "gpu_w4"):
        groups = _fused_groups(checkpoint, tensor, begin, end)
        pack = pack_w4 if tensor.layout == "w4" else gpu_weights.packers().pack_gpu_w4
        return Chunk(tensor, offset, pack(groups.q, groups.group_scale, groups.group_min), begin, groups.scale)
    if tensor.layout == "gpu_f8":
        q8, scales = _fused_fp8_rows(checkpoint, tensor, begin, end)
        _check_finite(checkpoint, tensor, scales)
        return Chunk(tensor, offset, gpu_weights.packers().pack_gpu_f8(q8), begin, scales)
    q, scales = _fused_quantized_rows(checkpoint, tensor, begin, end)
    _check_finite(checkpoint, tensor, scales)
    pack_rows = pack_w8 if tensor.layout == "w8" else gpu_weights.packers().pack_gpu_w8
    return Chunk(tensor, offset, pack_rows(q), begin, scales)


def _fused_rows(checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int) -> npt.NDArray[np.float32]:
    pieces = [checkpoint.rows(part, first, last) for part, first, last in _pieces(checkpoint, tensor, begin, end)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _fused_quantized_rows(
    checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    from llm_decoder.backends import quantize_weight_rows

    quantized = []
    for part, first, last in _pieces(checkpoint, tensor, begin, end):
        stored = checkpoint.quantized_rows(part, first, last)
        if stored is None:
            values = checkpoint.rows(part, first, last)
            _check_finite(checkpoint, tensor, values)
            stored = quantize_weight_rows(values)
        quantized.append(stored)
    if len(quantized) == 1:
        return quantized[0]
    return np.concatenate([q for q, _ in quantized]), np.concatenate([scale for _, scale in quantized])


def _fused_fp8_rows(
    checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    pieces = []
    for part, first, last in _pieces(checkpoint, tensor, begin, end):
        stored = checkpoint.fp8_rows(part, first, last)
        if stored is None:
            stored = gpu_weights.packers().quantize_f8_rows(checkpoint.rows(part, first, last))
        pieces.append(stored)
    return np.concatenate([q for q, _ in pieces]), np.concatenate([scale for _, scale in pieces])


def _fused_groups(checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int) -> Groups:
    from llm_decoder.backends import quantize_weight_groups

    pieces = []
    for part, first, last in _pieces(checkpoint, tensor, begin, end):
        stored = checkpoint.grouped_rows(part, first, last)
        if stored is None:
            values = checkpoint.rows(part, first, last)
            _check_finite(checkpoint, tensor, values)
            stored = Groups(*quantize_weight_groups(values))
        pieces.append(stored)
    if len(pieces) == 1:
        return pieces[0]
    return Groups(
        np.concatenate([piece.q for piece in pieces]),
        np.concatenate([piece.group_scale for piece in pieces]),
        np.concatenate([piece.group_min for piece in pieces]),
        np.concatenate([piece.scale for piece in pieces]),
    )


def _pieces(checkpoint: Checkpoint, tensor: CoreTensor, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Rows [begin, end) of the fused matrix as (part, first row, last row) of its parts."""
    top = 0
    for part, n_rows in zip(tensor.parts, part_rows(checkpoint, tensor), strict=True):
        first, last = max(begin - top, 0), min(end - top, n_rows)
        if first < last:
            yield part, first, last
        top += n_rows


def part_rows(checkpoint: Checkpoint, tensor: CoreTensor) -> list[int]:
    """How many rows each part of a fused matrix gives."""
    config = checkpoint.config
    if len(tensor.parts) == 3:
        return [config.q_width, config.kv_width, config.kv_width]
    return [tensor.shape[0] // len(tensor.parts)] * len(tensor.parts)


def _check_finite(checkpoint: Checkpoint, tensor: CoreTensor, values: npt.NDArray[np.float32]) -> None:
    # One pass without a mask as large as the weights: a sum is finite when all terms are and it does not overflow.
    with np.errstate(all="ignore"):
        total = np.sum(values, dtype=np.float32)
    if np.isfinite(total) or np.isfinite(values).all():
        return
    parts = ", ".join(tensor.parts)
    raise MalformedFileError(
        f"[{checkpoint.path}: {parts}] need finite weights, got NaN or infinity; download it again or use another dtype"
    )


def _empty(tensor: CoreTensor) -> PackedTensor:
    scales = np.empty(tensor.shape[0], np.float32) if tensor.is_quantized else None
    raw = np.empty(tensor.data_bytes + DATA_ALIGN, np.uint8)
    skip = -raw.ctypes.data % DATA_ALIGN
    data = raw[skip : skip + tensor.data_bytes]
    return PackedTensor(tensor.layout, tensor.shape, data.view(tensor.dtype), scales)


def _report(progress: Progress | None, n_done: int, n_total: int, chunk: Chunk) -> int:
    n_done += chunk.data.nbytes
    if progress is not None:
        verb = "quantising" if chunk.tensor.is_quantized else "packing"
        progress(n_done, n_total, f"{verb} {chunk.tensor.name}")
    return n_done
