"""What stands between the products of a layer: norms, activations, rows of an embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_decoder.backends import embed_op, gated_op, layer_norm_op, rms_norm_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import host_value, read_floats
from llm_decoder.ops.machines import Addresses, compiled_code, device_index, kernels_for, n_threads, stream_of
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_floats, view_tensor

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "identity")


def rms_norm(
    x: Any,
    weight: Any,
    eps: float = 1e-6,
    *,
    bias: Any | None = None,
    residual: Any | None = None,
    quantize: bool = False,
    out: Any | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """v / sqrt(mean(v^2) + eps) * weight (+ bias) of every row (Zhang and Sennrich 2019): [T, N].

    x [T, N], rows may lie apart; weight, bias [N]. residual [T, N]: x is added to it in place first, and v is what it
    holds then; without one v is x. Each is float32 or of one dtype, bfloat16 or float16.
    quantize: the result is (int8 [T, N], scale float32 [T]), x ~ q * scale, scale = max|x| / 127 of the row, 1 of a row
    of zeros; else it is of x's dtype. out: where it goes, of x's dtype or float32, of int8 with quantize; it may be x.
    dtype: what uint16 stands for. stream: as in paged_attention. Everything is on the device of x.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    return _norm("rms_norm", x, weight, eps, bias, residual, quantize, out, dtype, stream)


def layer_norm(
    x: Any,
    weight: Any,
    bias: Any | None = None,
    eps: float = 1e-5,
    *,
    residual: Any | None = None,
    quantize: bool = False,
    out: Any | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """(v - mean(v)) / sqrt(variance(v) + eps) * weight (+ bias) of every row (Ba et al. 2016): [T, N].

    Arguments and errors are those of rms_norm.
    """
    return _norm("layer_norm", x, weight, eps, bias, residual, quantize, out, dtype, stream)


def gated(
    x: Any,
    activation: str = "silu",
    *,
    is_gated: bool = True,
    quantize: bool = False,
    out: Any | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """activation(gate) * up of rows [gate, up]: x [T, 2 N] gives [T, N] (vLLM's and FlashInfer's silu_and_mul,
    gelu_and_mul). is_gated=False: activation(x), [T, N] gives [T, N].

    activation: silu, gelu (by erf), gelu_tanh, relu, or identity. x in float32, bfloat16 or float16. quantize, out,
    dtype, stream: as in rms_norm; out is another array than x.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "gated"
    device, handle = _where(place, x, stream)
    rows = _read_rows(place, "x", x, dtype, handle, device, [None, None])
    checks.check_choice(place, "activation", activation, ACTIVATIONS)
    n_tokens, n_in = rows.shape
    if checks.check_flag(place, "is_gated", is_gated) and n_in % 2:
        raise checks.refuse(place, f"x must have an even number of columns, gate and up, got {n_in}")
    n_cols = n_in // 2 if is_gated else n_in
    result = _Result(place, rows, (n_tokens, n_cols), quantize, out, dtype, handle)
    checks.check_one_half(place, [rows] if quantize else [rows, result.tensor])
    if n_tokens == 0 or n_cols == 0:
        return result.value
    kernels = kernels_for(place, device)
    with compiled_code(place):
        if kernels is None:
            gated_op(rows.named(), activation, is_gated, result.named(), n_threads())
        else:
            kernels.gated(rows.raw(), activation, is_gated, result.raw(), device_index(device), handle)
    return result.value


def embed(
    ids: Any,
    table: Any,
    scale: Any | None = None,
    *,
    out: Any | None = None,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """Rows of an embedding table: [T, N] of table's dtype, float32 of one of int8.

    ids int32 [T]; table [V, N] in float32, bfloat16, float16, or int8 with scale float32 [V], x ~ q * scale. out: where
    it goes, of table's dtype or float32. dtype, stream: as in rms_norm. Everything is on the device of table; ids in
    host memory are checked, on a GPU one that is not in [0, V) gives zeros.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "embed"
    device, handle = _where(place, table, stream, "table")
    rows = view_floats(place, "table", table, dtype, handle)
    checks.check_shape(place, rows, "[V, N]", [None, None])
    checks.check_dtype(place, rows, *checks.FLOATS, "int8")
    checks.check_last_axis(place, rows)
    n_vocab, n_cols = rows.shape
    if (rows.dtype == "int8") != (scale is not None):
        raise checks.refuse(place, f"scale must come with a table of int8 and with no other, got {rows.dtype}")
    scales = None if scale is None else read_floats(place, "scale", scale, device, handle, [[n_vocab]])
    tokens = view_tensor(place, "ids", ids, stream=handle)
    checks.check_dtype(place, tokens, "int32")
    checks.check_shape(place, tokens, "[T]", [None])
    checks.check_contiguous(place, tokens)
    checks.check_device_or_host(place, tokens, device)
    if tokens.device == "cpu":
        checks.check_ids(place, "ids", tokens.array(), n_vocab)
    shape = (tokens.shape[0], n_cols)
    result = make_like(place, rows, shape, "float32" if scale is not None else None) if out is None else out
    to = _read_out(place, result, dtype, handle, device, shape, "table")
    checks.check_one_half(place, [to] if scale is not None else [rows, to])
    if 0 in shape:
        return result
    kernels = kernels_for(place, device)
    if kernels is None:
        with compiled_code(place):
            embed_op(tokens.array(), rows.named(), host_value(scales), to.named(), n_threads())
        return result
    addresses = Addresses(kernels, device, handle)
    with compiled_code(place):
        kernels.embed(addresses[tokens], rows.raw(), addresses[scales], to.raw(), device_index(device), handle)
        addresses.finish()
    return result


class _Result:
    """Where rows go: `value` is what the caller gets, `tensor` the rows."""

    def __init__(
        self,
        place: str,
        like: Tensor,
        shape: tuple[int, int],
        quantize: bool,
        out: Any,
        dtype: str | None,
        stream: int,
    ) -> None:
        name = "int8" if checks.check_flag(place, "quantize", quantize) else None
        rows = make_like(place, like, shape, name) if out is None else out
        self.scale: Tensor | None = None
        self.value = rows
        if quantize:
            self.tensor = view_tensor(place, "out", rows, stream=stream)
            checks.check_dtype(place, self.tensor, "int8")
            scale = make_like(place, like, shape[:1], "float32")
            self.scale = view_tensor(place, "scale", scale, stream=stream)
            self.value = (rows, scale)
            _check_place(place, self.tensor, shape, like.device, like.name)
        else:
            self.tensor = _read_out(place, rows, dtype, stream, like.device, shape, like.name)

    def named(self) -> Any:
        """As the CPU core takes it."""
        if self.scale is None:
            return self.tensor.named(), None
        return None, (self.tensor.array(), self.scale.array())

    def raw(self) -> Any:
        """As the GPU extensions take it."""
        return (self.tensor.raw(), None) if self.scale is None else (None, (self.tensor.raw(), self.scale.address))


def _norm(
    place: str,
    x: Any,
    weight: Any,
    eps: float,
    bias: Any,
    residual: Any,
    quantize: bool,
    out: Any,
    dtype: str | None,
    stream: int | None,
) -> Any:
    device, handle = _where(place, x, stream)
    rows = _read_rows(place, "x", x, dtype, handle, device, [None, None])
    n_tokens, n_cols = rows.shape
    checks.check_number(place, "eps", eps, 0.0)

    def vector(name: str, value: Any) -> Tensor:
        tensor = view_floats(place, name, value, dtype, handle)
        checks.check_dtype(place, tensor, *checks.FLOATS)
        checks.check_shape(place, tensor, "[N]", [n_cols])
        checks.check_contiguous(place, tensor)
        checks.check_same_device(place, tensor, device, "x")
        return tensor

    weights = vector("weight", weight)
    biases = None if bias is None else vector("bias", bias)
    added = None
    if residual is not None:
        added = _read_rows(place, "residual", residual, dtype, handle, device, [n_tokens, n_cols])
        checks.check_writeable(place, added)
    result = _Result(place, rows, (n_tokens, n_cols), quantize, out, dtype, handle)
    tensors = [rows, weights, biases, added, None if quantize else result.tensor]
    checks.check_one_half(place, [tensor for tensor in tensors if tensor is not None])
    if n_tokens == 0 or n_cols == 0:
        return result.value
    kernels = kernels_for(place, device)
    with compiled_code(place):
        if kernels is None:
            run = rms_norm_op if place == "rms_norm" else layer_norm_op
            run(
                rows.named(),
                _as_row(weights),
                None if biases is None else _as_row(biases),
                None if added is None else added.named(),
                result.named(),
                eps,
                n_threads(),
            )
        else:
            launch = kernels.rms_norm if place == "rms_norm" else kernels.layer_norm
            launch(
                rows.raw(),
                weights.raw(),
                None if biases is None else biases.raw(),
                None if added is None else added.raw(),
                result.raw(),
                eps,
                device_index(device),
                handle,
            )
    return result.value


def _where(place: str, value: Any, stream: int | None, name: str = "x") -> tuple[str, int]:
    device = device_of(place, name, value)
    return device, stream_of(place, value, device, stream)


def _as_row(vector: Tensor) -> tuple[Any, str]:
    array, dtype = vector.named()
    return np.reshape(array, (1, -1)), dtype


def _read_rows(
    place: str, name: str, value: Any, dtype: str | None, stream: int, device: str, shape: list[int | None]
) -> Tensor:
    tensor = view_floats(place, name, value, dtype, stream)
    checks.check_shape(place, tensor, "[T, N]", shape)
    checks.check_dtype(place, tensor, *checks.FLOATS)
    checks.check_same_device(place, tensor, device, "x")
    checks.check_last_axis(place, tensor)
    return tensor


def _read_out(
    place: str, value: Any, dtype: str | None, stream: int, device: str, shape: tuple[int, int], of: str
) -> Tensor:
    tensor = view_floats(place, "out", value, dtype, stream)
    checks.check_dtype(place, tensor, *checks.FLOATS)
    _check_place(place, tensor, shape, device, of)
    return tensor


def _check_place(place: str, tensor: Tensor, shape: tuple[int, int], device: str, of: str) -> None:
    checks.check_shape(place, tensor, "[T, N]", shape)
    checks.check_same_device(place, tensor, device, of)
    checks.check_last_axis(place, tensor)
    checks.check_writeable(place, tensor)
