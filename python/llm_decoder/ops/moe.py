"""fused_moe: a mixture of experts in one call."""

from __future__ import annotations

from typing import Any

from llm_decoder.backends import fused_moe_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import host_value, read_floats
from llm_decoder.ops.machines import Addresses, compiled_code, device_index, kernels_for, n_threads, stream_of
from llm_decoder.ops.routing import MAX_EXPERTS, read_ints
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_tensor

PLACE = "fused_moe"
GPU_DTYPES = checks.FLOATS[1:]
TILE_ROWS = (0, 8, 32, 64, 128)
SUPPORTED = (
    "supported are hidden in bfloat16 or float16, on the CPU float32 too, with weights of the same dtype or int8, up "
    "to 1024 experts, K and N multiples of 8"
)


def fused_moe(
    hidden: Any,
    w1: Any,
    w2: Any,
    topk_weights: Any,
    topk_ids: Any,
    *,
    w1_scale: Any | None = None,
    w2_scale: Any | None = None,
    expert_map: Any | None = None,
    tile_rows: int = 0,
    out: Any | None = None,
    dtype: str | None = None,
    weight_dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """The sum over a token's experts e of weight_e * w2[e] @ (silu(gate) * up), (gate, up) = w1[e] @ hidden: [T, K].

    hidden [T, K] in bfloat16 or float16, on the CPU float32 too. w1 [E, 2 N, K], the rows of the gate first, w2
    [E, K, N], without gaps, of the same dtype or int8. dtype, weight_dtype: what integers stand for.
    topk_weights float32 [T, top_k], topk_ids int32 [T, top_k]: a token's experts, as moe_routing gives them; an id that
    is none adds nothing.
    w1_scale float32 [E, 2 N], w2_scale float32 [E, K]: of the rows of int8 weights, x ~ q * scale.
    expert_map int32 [n_ids]: which of the E experts here an id is, or -1; None: the id itself.
    tile_rows: 8, 32, 64 or 128 rows of an expert computed together whatever the batch, so that a token's result does
    not depend on it; 0: chosen for speed. On the CPU it never does. out: where the result goes; it may be hidden
    itself. stream: as in paged_attention. Everything is on the device of hidden; small arrays may be in host memory at
    the cost of a wait. On the CPU the weights of experts that are asked are laid out as float32 at every call.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    device = device_of(PLACE, "hidden", hidden)
    handle = stream_of(PLACE, hidden, device, stream)
    kernels = kernels_for(PLACE, device)
    rows = view_tensor(PLACE, "hidden", hidden, dtype, handle)
    checks.check_shape(PLACE, rows, "[T, K]", [None, None])
    if rows.dtype not in (checks.FLOATS if kernels is None else GPU_DTYPES):
        raise checks.refuse(
            PLACE, f"hidden is {rows.dtype}; {SUPPORTED} (integers stand for halves where dtype says so)"
        )
    checks.check_last_axis(PLACE, rows)
    n_tokens, k = rows.shape
    first = view_tensor(PLACE, "w1", w1, weight_dtype, handle)
    second = view_tensor(PLACE, "w2", w2, weight_dtype, handle)
    checks.check_shape(PLACE, first, "[E, 2 N, K]", [None, None, k])
    n_experts, twice_n, _ = first.shape
    checks.check_shape(PLACE, second, "[E, K, N]", [n_experts, k, twice_n // 2])
    if not 1 <= n_experts <= MAX_EXPERTS:
        raise checks.refuse(PLACE, f"w1 must have 1 to {MAX_EXPERTS} experts, got {n_experts}")
    if twice_n % 2 or k % 8 or k < 8 or twice_n % 16 or twice_n < 16:
        raise checks.refuse(PLACE, f"K and N must be multiples of 8, got K = {k} and 2 N = {twice_n}; pad with zeros")
    for weights in (first, second):
        checks.check_dtype(PLACE, weights, rows.dtype, "int8")
        checks.check_dtype(PLACE, weights, first.dtype)
        checks.check_same_device(PLACE, weights, device, "hidden")
        checks.check_contiguous(PLACE, weights)
    if first.dtype == "int8" and (w1_scale is None or w2_scale is None):
        raise checks.refuse(PLACE, "int8 weights need w1_scale and w2_scale, got None")

    def floats(name: str, value: Any, shape: list[int]) -> Tensor | None:
        return None if value is None else read_floats(PLACE, name, value, device, handle, [shape])

    scales = (floats("w1_scale", w1_scale, [n_experts, twice_n]), floats("w2_scale", w2_scale, [n_experts, k]))
    ids = read_ints(PLACE, "topk_ids", topk_ids, device, handle, "[T, top_k]", [n_tokens, None])
    top_k = ids.shape[1]
    checks.check_count(PLACE, "top_k (axis 1 of topk_ids)", top_k, 1)
    shares = read_floats(PLACE, "topk_weights", topk_weights, device, handle, [[n_tokens, top_k]])
    here = None if expert_map is None else read_ints(PLACE, "expert_map", expert_map, device, handle, "[n_ids]", [None])
    if checks.check_count(PLACE, "tile_rows", tile_rows) not in TILE_ROWS:
        raise checks.refuse(PLACE, f"tile_rows must be one of {', '.join(map(str, TILE_ROWS))}, got {tile_rows!r}")

    result = make_like(PLACE, rows, rows.shape) if out is None else out
    to = view_tensor(PLACE, "out", result, dtype, handle)
    checks.check_dtype(PLACE, to, rows.dtype)
    checks.check_shape(PLACE, to, "[T, K]", rows.shape)
    checks.check_same_device(PLACE, to, device, "hidden")
    checks.check_last_axis(PLACE, to)
    checks.check_writeable(PLACE, to)
    if kernels is not None:
        for tensor in (rows, first, second, to):
            checks.check_vectors(PLACE, tensor)
    if n_tokens == 0:
        return result
    if kernels is None:
        with compiled_code(PLACE):
            fused_moe_op(
                rows.named(),
                (first.array().reshape(-1, k), first.dtype),
                (second.array().reshape(-1, twice_n // 2), second.dtype),
                None if scales[0] is None else scales[0].array().reshape(-1),
                None if scales[1] is None else scales[1].array().reshape(-1),
                host_value(shares),
                ids.array(),
                host_value(here),
                to.named(),
                n_threads(),
            )
        return result
    addresses = Addresses(kernels, device, handle)
    with compiled_code(PLACE):
        call = (
            rows.raw(),
            first.raw(),
            second.raw(),
            addresses[scales[0]],
            addresses[scales[1]],
            addresses[shares],
            addresses[ids],
            top_k,
            addresses[here],
            n_experts if here is None else here.shape[0],
            tile_rows,
        )
        # Of the framework's own memory: what it gives again is free when the stream gets there.
        workspace = make_like(PLACE, rows, (kernels.fused_moe_workspace_bytes(call),), "uint8")
        memory = view_tensor(PLACE, "workspace", workspace, stream=handle)
        kernels.fused_moe(call, to.raw(), memory.address, device_index(device), handle)
        addresses.finish()
    return result
