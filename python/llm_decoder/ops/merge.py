"""merge_states: attention over all keys, out of what it was over parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_decoder.backends import merge_states_op
from llm_decoder.ops import checks
from llm_decoder.ops.machines import GpuKernels, compiled_code, device_index, kernels_for, n_threads, stream_of
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_tensor

PLACE = "merge_states"
MAX_PARTS = 32


def merge_states(
    outs: Sequence[Any],
    lses: Sequence[Any],
    *,
    out: Any | None = None,
    return_lse: bool = False,
    dtype: str | None = None,
    stream: int | None = None,
) -> Any:
    """What attention over all keys gives, from what it gave over disjoint parts of them: out [T, Hq, D], or (out, lse
    float32 [T, Hq]).

    outs: 1 to 32 tensors [T, Hq, D] in float32, bfloat16 or float16, of one dtype and device; lses: as many, float32
    [T, Hq], base e, as paged_attention returns them (FlashInfer's are base 2: multiply them by log(2)). Where an lse is
    -inf its out may be anything. dtype: what integers in outs stand for. out, stream: as in paged_attention. Weights
    are exp(lse_i - log(sum_j exp(lse_j))), as in FlashAttention (arXiv 2205.14135, section 3.1).

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    outs, lses = checks.check_list(PLACE, "outs", outs), checks.check_list(PLACE, "lses", lses)
    if len(outs) != len(lses) or not 1 <= len(outs) <= MAX_PARTS:
        raise checks.refuse(PLACE, f"outs and lses must be as many, 1 to {MAX_PARTS}, got {len(outs)} and {len(lses)}")
    device = device_of(PLACE, "outs[0]", outs[0])
    handle = stream_of(PLACE, outs[0], device, stream)
    parts = [view_tensor(PLACE, f"outs[{i}]", value, dtype, handle) for i, value in enumerate(outs)]
    part_lses = [view_tensor(PLACE, f"lses[{i}]", value, stream=handle) for i, value in enumerate(lses)]
    first = parts[0]
    checks.check_shape(PLACE, first, "[T, Hq, D]", [None] * 3)
    checks.check_dtype(PLACE, first, *checks.FLOATS)
    checks.check_heads(PLACE, first.shape[1], 1, first.shape[2])
    for part in parts:
        _check_rows(part, first)
    for part_lse in part_lses:
        checks.check_dtype(PLACE, part_lse, "float32")
        checks.check_shape(PLACE, part_lse, "[T, Hq]", first.shape[:2])
        checks.check_contiguous(PLACE, part_lse)
        checks.check_same_device(PLACE, part_lse, device, "outs[0]")

    result = make_like(PLACE, first, first.shape) if out is None else out
    to = view_tensor(PLACE, "out", result, dtype, handle)
    _check_rows(to, first)
    checks.check_writeable(PLACE, to)
    has_lse = checks.check_flag(PLACE, "return_lse", return_lse)
    lse = make_like(PLACE, first, first.shape[:2], "float32") if has_lse else None
    lse_to = None if lse is None else view_tensor(PLACE, "lse", lse, stream=handle)
    kernels = kernels_for(PLACE, device)
    if kernels is None:
        with compiled_code(PLACE):
            merge_states_op(
                [part.array() for part in parts],
                [part_lse.array() for part_lse in part_lses],
                first.dtype,
                to.array(),
                None if lse_to is None else lse_to.array(),
                n_threads(),
            )
    else:
        _run_on_gpu(kernels, parts, part_lses, to, lse_to, handle)
    return result if lse is None else (result, lse)


def _check_rows(tensor: Tensor, first: Tensor) -> None:
    checks.check_dtype(PLACE, tensor, first.dtype)
    checks.check_shape(PLACE, tensor, "[T, Hq, D]", first.shape)
    checks.check_same_device(PLACE, tensor, first.device, "outs[0]")
    checks.check_last_axis(PLACE, tensor)


def _run_on_gpu(
    kernels: GpuKernels, parts: list[Tensor], lses: list[Tensor], out: Tensor, lse: Tensor | None, stream: int
) -> None:
    for tensor in (*parts, out):
        checks.check_vectors(PLACE, tensor)
    pairs = [(part.raw(), part_lse.address) for part, part_lse in zip(parts, lses, strict=True)]
    with compiled_code(PLACE):
        kernels.merge_states(pairs, out.raw(), 0 if lse is None else lse.address, device_index(out.device), stream)
