"""Products of few rows with weights in 16, 8 or 4 bits: pack_weights once, small_product at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import (
    pack_bf16,
    pack_f32,
    pack_w4,
    pack_w8,
    product_op,
    quantize_weight_groups,
    quantize_weight_rows,
)
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import host_value, read_floats
from llm_decoder.ops.machines import (
    Addresses,
    GpuKernels,
    compiled_code,
    copy_to_host,
    device_index,
    kernels_for,
    n_threads,
    stream_of,
)
from llm_decoder.ops.tensors import device_of, make_like, view_floats, view_tensor

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

PLACE = "small_product"
FORMATS = ("half", "w8", "w4", "f8")
MAX_ROWS = 64  # on a GPU
SUPPORTED = (
    "supported are, on the CPU, any number of rows in float32, bfloat16 or float16; on a GPU, up to 64 rows in "
    "bfloat16 or float16, of the dtype of the weights where their format is half, K a multiple of 8; f8 on a GPU alone"
)


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights [n, k] as the kernels of `device` read them. dtype: of half weights. Calls that use them follow each
    other on one stream."""

    n: int
    k: int
    format: str
    dtype: str | None
    device: str
    _packed: Any  # an array of the CPU, or the owner of a GPU's memory
    _scale: Any
    _layout: str  # of the CPU's
    _plan: tuple[int, int]  # of a GPU
    _counters: Any


def pack_weights(
    weights: Any,
    format: str,
    *,
    scale: Any | None = None,
    device: str | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> PackedWeights:
    """Weights for small_product, laid out once, at load. They are worked on in host memory.

    weights [N, K], the rows of a linear layer, in float32, bfloat16 or float16, or, with format w8, int8 within +-127
    with scale float32 [N], x ~ q * scale. format: half (16 bits as they are; on the CPU float32 too), w8 (int8 with a
    scale a row), w4 (4 bits in groups of 32 along K with scale and minimum, and a scale a row; searched for the least
    squared error), f8 (fp8, e4m3, with a scale a row; for GPUs). device: "cpu", "cuda", "cuda:1"; None: that of
    weights. dtype: what uint16 stands for. stream: as in paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "pack_weights"
    checks.check_choice(place, "format", format, FORMATS)
    where = device_of(place, "weights", weights)
    to = where if device is None else checks.check_device(place, device)
    handle = stream_of(place, weights, where, stream)
    tensor = view_floats(place, "weights", weights, dtype, handle)
    checks.check_shape(place, tensor, "[N, K]", [None, None])
    n, k = tensor.shape
    if n < 1 or k < 1:
        raise checks.refuse(place, f"weights must have at least one row and one column, got {[n, k]}")
    is_int8 = tensor.dtype == "int8"
    checks.check_dtype(place, tensor, *checks.FLOATS, *(("int8",) if format == "w8" else ()))
    if is_int8 != (scale is not None):
        raise checks.refuse(place, f"scale must come with weights of int8 and with no others, got {tensor.dtype}")
    kernels = kernels_for(place, to)
    if kernels is not None and (k % 8 or (format == "half" and tensor.dtype == "float32")):
        raise checks.refuse(
            place, f"no kernel of a GPU multiplies {format} weights in {tensor.dtype} with K = {k}; {SUPPORTED}"
        )
    if kernels is None and format == "f8":
        raise checks.refuse(place, f"no kernel of the CPU multiplies weights of f8; {SUPPORTED}")
    values = copy_to_host(place, tensor, handle)
    scales = None if scale is None else _host_floats(place, scale, n, where, handle)
    half = tensor.dtype if format == "half" else None
    if kernels is None:
        with compiled_code(place):
            layout, packed, scales = _pack_for_cpu(place, values, tensor.dtype, format, scales)
        return PackedWeights(n, k, format, half, to, packed, scales, layout, (0, 0), None)
    with compiled_code(place):
        packed, scales = _pack_for_gpu(place, kernels, values, tensor.dtype, format, scales)
        index = device_index(to)
        counters = np.zeros(kernels.small_product_counters(n), np.int32)
        packed_there, scales_there, counters_there = (
            None if array is None else kernels.DeviceCopy(array, index, handle) for array in (packed, scales, counters)
        )
        plan = kernels.plan_small_product(format, n, k, index)
        kernels.synchronize(index, handle)  # the arrays here go now
    return PackedWeights(n, k, format, half, to, packed_there, scales_there, "gpu", plan, counters_there)


def small_product(
    a: Any,
    weights: PackedWeights,
    *,
    bias: Any | None = None,
    out: Any | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """a [M, K] . weights [N, K]^T + bias: [M, N], for the few rows of a decode: up to 64 on a GPU.

    a: bfloat16 or float16, on the CPU float32 too; of half weights in their dtype on a GPU. weights: of pack_weights,
    on the device of a. bias float32 [N]. out: where it goes, of a's dtype or float32. dtype: what uint16 stands for.
    stream: as in paged_attention. A row's result does not depend on the others. On the CPU w8 and w4 weights meet rows
    that are quantised to int8, as in INT8Decoder; on a GPU they and f8 become 16-bit floats and rows stay as they are.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    device = device_of(PLACE, "a", a)
    handle = stream_of(PLACE, a, device, stream)
    if not isinstance(weights, PackedWeights):
        raise checks.refuse(PLACE, f"weights must be what pack_weights returns, got {type(weights).__name__}")
    rows = view_floats(PLACE, "a", a, dtype, handle)
    checks.check_shape(PLACE, rows, "[M, K]", [None, weights.k])
    checks.check_dtype(PLACE, rows, *checks.FLOATS)
    checks.check_last_axis(PLACE, rows)
    kernels = kernels_for(PLACE, device)
    if weights.device != device:
        raise checks.refuse(
            PLACE, f"weights must be on the device of a, {device}, got {weights.device}; pack them for it"
        )
    m = rows.shape[0]
    if kernels is not None and (m > MAX_ROWS or rows.dtype == "float32" or weights.dtype not in (None, rows.dtype)):
        of = "" if weights.dtype is None else f" in {weights.dtype}"
        raise checks.refuse(
            PLACE,
            f"no kernel of a GPU multiplies {m} rows in {rows.dtype} with {weights.format} weights{of}; {SUPPORTED}",
        )
    biases = None if bias is None else read_floats(PLACE, "bias", bias, device, handle, [[weights.n]])
    result = make_like(PLACE, rows, (m, weights.n)) if out is None else out
    to = view_floats(PLACE, "out", result, dtype, handle)
    checks.check_dtype(PLACE, to, *dict.fromkeys((rows.dtype, "float32")))
    checks.check_shape(PLACE, to, "[M, N]", [m, weights.n])
    checks.check_same_device(PLACE, to, device, "a")
    checks.check_last_axis(PLACE, to)
    checks.check_writeable(PLACE, to)
    if m == 0:
        return result
    if kernels is None:
        with compiled_code(PLACE):
            product_op(
                rows.named(),
                weights._packed,
                weights._layout,
                weights.n,
                weights._scale,
                host_value(biases),
                to.named(),
                n_threads(),
            )
        return result
    checks.check_vectors(PLACE, rows)
    addresses = Addresses(kernels, device, handle)
    with compiled_code(PLACE):
        n_partials = kernels.small_product_partials(weights._plan, m, weights.n)
        partials = view_tensor(
            PLACE, "partials", make_like(PLACE, rows, (max(n_partials, 1),), "float32"), stream=handle
        )
        kernels.small_product(
            rows.raw(),
            weights.format,
            weights._packed.address,
            0 if weights._scale is None else weights._scale.address,
            addresses[biases],
            to.raw(),
            weights._plan,
            partials.address,
            weights._counters.address,
            device_index(device),
            handle,
        )
        addresses.finish()
    return result


def _host_floats(place: str, scale: Any, n: int, device: str, stream: int) -> Floats:
    values: Floats = copy_to_host(place, read_floats(place, "scale", scale, device, stream, [[n]]), stream)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise checks.refuse(place, "scale must be finite and not negative")
    return values


def _widen(values: Array, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.view(np.float16).astype(np.float32) if dtype == "float16" else values


def _to_quantise(place: str, values: Array, dtype: str) -> Floats:
    floats = _widen(values, dtype)
    if not np.isfinite(floats).all():
        raise checks.refuse(place, "weights that are to be quantised must be finite")
    return floats


def _quantised_rows(place: str, values: Array, dtype: str, scale: Floats | None) -> tuple[Array, Floats]:
    if scale is None:
        return quantize_weight_rows(_to_quantise(place, values, dtype))
    if (values == -128).any():
        raise checks.refuse(place, "weights of int8 must be within +-127, got -128")
    return values, scale


def _pack_for_cpu(
    place: str, values: Array, dtype: str, format: str, scale: Floats | None
) -> tuple[str, Array, Floats | None]:
    """(layout, packed, scales)"""
    if format == "w8":
        q, scales = _quantised_rows(place, values, dtype, scale)
        return "w8", pack_w8(q), scales
    if format == "w4":
        q4, group_scale, group_min, scales = quantize_weight_groups(_to_quantise(place, values, dtype))
        return "w4", pack_w4(q4, group_scale, group_min), scales
    floats = _widen(values, dtype)
    return ("bfloat16", pack_bf16(floats), None) if dtype == "bfloat16" else ("float32", pack_f32(floats), None)


def _pack_for_gpu(
    place: str, kernels: GpuKernels, values: Array, dtype: str, format: str, scale: Floats | None
) -> tuple[Array, Floats | None]:
    if format == "w8":
        q, scales = _quantised_rows(place, values, dtype, scale)
        return kernels.pack_gpu_w8(q), scales
    if format == "w4":
        *groups, scales = quantize_weight_groups(_to_quantise(place, values, dtype))
        return kernels.pack_gpu_w4(*groups), scales
    if format == "f8":
        codes, scales = kernels.quantize_f8_rows(_to_quantise(place, values, dtype))
        return kernels.pack_gpu_f8(codes), scales
    return kernels.pack_gpu_half(values.view(np.uint16)), None
