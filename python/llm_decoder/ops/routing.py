"""Which experts a token goes to, and whose tokens an expert gets: moe_routing, moe_sort."""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_decoder.backends import moe_routing_op, moe_sort_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import host_value, read_floats
from llm_decoder.ops.machines import Addresses, compiled_code, device_index, kernels_for, n_threads, stream_of
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_floats, view_tensor

MAX_EXPERTS = 1024
MAX_TOP_K = 32
MAX_GROUPS = 32
SCORINGS = ("softmax", "sigmoid")


class Tiles(NamedTuple):
    """What moe_sort returns."""

    sorted_pairs: Any  # int32 [T * top_k]: pairs by expert; pair p is choice p % top_k of token p // top_k
    tiles: Any  # int32 [n, 4], rows (expert, first of sorted_pairs, how many, anything); n_tiles of them are there
    n_tiles: Any  # int32 [1]


def moe_routing(
    logits: Any,
    top_k: int,
    *,
    scoring: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: Any | None = None,
    n_groups: int = 1,
    top_k_groups: int = 1,
    group_best: int = 1,
    dtype: str | None = None,
    stream: int | None = None,
) -> tuple[Any, Any]:
    """(topk_weights float32 [T, top_k], topk_ids int32 [T, top_k]), the best first, as fused_moe takes them.

    logits [T, E] of a router, in float32, bfloat16 or float16; up to 1024 experts, top_k up to 32. A logit that is NaN
    counts as minus infinity. scoring: softmax over all experts, or sigmoid. renormalize: the weights of a token sum to
    1. scale: of the weights, after that.
    bias float32 [E]: added to scores for the choice alone (DeepSeek-V3's e_score_correction_bias). Equal choices go to
    the lowest expert.
    n_groups: experts lie in so many groups, up to 32, and come from the top_k_groups best of them alone; a group is as
    good as its best expert, or, group_best=2, as its best two together. dtype, stream: as in rms_norm.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "moe_routing"
    device = device_of(place, "logits", logits)
    handle = stream_of(place, logits, device, stream)
    rows = view_floats(place, "logits", logits, dtype, handle)
    checks.check_dtype(place, rows, *checks.FLOATS)
    checks.check_shape(place, rows, "[T, E]", [None, None])
    checks.check_last_axis(place, rows)
    n_tokens, n_experts = rows.shape
    if not 1 <= n_experts <= MAX_EXPERTS:
        raise checks.refuse(place, f"logits must be of 1 to {MAX_EXPERTS} experts (axis 1), got {n_experts}")
    checks.check_choice(place, "scoring", scoring, SCORINGS)
    groups = checks.check_count(place, "n_groups", n_groups, 1)
    if groups > MAX_GROUPS or n_experts % groups:
        raise checks.refuse(
            place, f"n_groups must be 1 to {MAX_GROUPS} and divide the {n_experts} experts, got {groups}"
        )
    kept = checks.check_count(place, "top_k_groups", top_k_groups, 1)
    if kept > groups:
        raise checks.refuse(place, f"top_k_groups must be at most n_groups, {groups}, got {kept}")
    judged = checks.check_count(place, "group_best", group_best, 1)
    group_size = n_experts // groups
    if judged > min(2, group_size):
        raise checks.refuse(
            place, f"group_best must be 1, or 2 where a group has two experts, got {judged} with groups of {group_size}"
        )
    count = checks.check_count(place, "top_k", top_k, 1)
    most = min(MAX_TOP_K, group_size * kept)
    if count > most:
        raise checks.refuse(
            place,
            f"top_k must be at most {MAX_TOP_K} and what {kept} groups of {group_size} experts have, {most}, got "
            f"{count}",
        )
    biases = None if bias is None else read_floats(place, "bias", bias, device, handle, [[n_experts]])
    options = (
        scoring == "sigmoid",
        checks.check_flag(place, "renormalize", renormalize),
        checks.check_number(place, "scale", scale),
        groups,
        kept,
        judged,
    )
    weights, ids = (make_like(place, rows, (n_tokens, count), kind) for kind in ("float32", "int32"))
    if n_tokens == 0:
        return weights, ids
    to = [view_tensor(place, "result", value, stream=handle) for value in (weights, ids)]
    kernels = kernels_for(place, device)
    if kernels is None:
        with compiled_code(place):
            moe_routing_op(rows.named(), host_value(biases), to[0].array(), to[1].array(), *options, n_threads())
        return weights, ids
    addresses = Addresses(kernels, device, handle)
    with compiled_code(place):
        kernels.moe_routing(
            rows.raw(),
            addresses[biases],
            to[0].address,
            to[1].address,
            count,
            *options,
            device_index(device),
            handle,
        )
        addresses.finish()
    return weights, ids


def moe_sort(
    topk_ids: Any,
    n_experts: int,
    tile_rows: int,
    *,
    expert_map: Any | None = None,
    stream: int | None = None,
) -> Tiles:
    """Pairs of token and choice by expert, those of one in their order, and tiles of at most tile_rows of them, which
    products walk (vLLM's moe_align_block_size, but nothing is padded).

    topk_ids int32 [T, top_k]: an id that is none is left out; what is behind the last pair and the last tile is
    anything. n_experts: here, up to 1024. expert_map int32 [n_ids]: which of them an id is, or -1; None: the id itself.
    stream: as in paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "moe_sort"
    device = device_of(place, "topk_ids", topk_ids)
    handle = stream_of(place, topk_ids, device, stream)
    ids = read_ints(place, "topk_ids", topk_ids, device, handle, "[T, top_k]", [None, None])
    checks.check_same_device(place, ids, device, "topk_ids")
    here = checks.check_count(place, "n_experts", n_experts, 1)
    if here > MAX_EXPERTS:
        raise checks.refuse(place, f"n_experts must be at most {MAX_EXPERTS}, got {here}")
    rows = checks.check_count(place, "tile_rows", tile_rows, 1)
    known = (
        None if expert_map is None else read_ints(place, "expert_map", expert_map, device, handle, "[n_ids]", [None])
    )
    n_pairs = ids.shape[0] * ids.shape[1]
    if n_pairs >= 1 << 31 or rows >= 1 << 31:
        raise checks.refuse(place, f"pairs and tile_rows must be below 2^31, got {n_pairs} and {rows}")
    shapes = ((n_pairs,), (n_pairs // rows + min(n_pairs, here), 4), (1,))
    values = [make_like(place, ids, shape) for shape in shapes]
    to = [view_tensor(place, "result", value, stream=handle) for value in values]
    kernels = kernels_for(place, device)
    if kernels is None:
        with compiled_code(place):
            moe_sort_op(ids.array(), host_value(known), here, rows, *(tensor.array() for tensor in to))
        return Tiles(*values)
    addresses = Addresses(kernels, device, handle)
    with compiled_code(place):
        memory = make_like(place, ids, (kernels.moe_sort_workspace(n_pairs, here),))
        workspace = view_tensor(place, "workspace", memory, stream=handle)
        kernels.moe_sort(
            ids.address,
            n_pairs,
            addresses[known],
            here if known is None else known.shape[0],
            here,
            rows,
            *(tensor.address for tensor in to),
            workspace.address,
            device_index(device),
            handle,
        )
        addresses.finish()
    return Tiles(*values)


def read_ints(
    place: str, name: str, value: Any, device: str, stream: int, axes: str, shape: list[int | None]
) -> Tensor:
    """An int32 array without gaps, on the device or in host memory."""
    tensor = view_tensor(place, name, value, stream=stream)
    checks.check_dtype(place, tensor, "int32")
    checks.check_shape(place, tensor, axes, shape)
    checks.check_contiguous(place, tensor)
    checks.check_device_or_host(place, tensor, device)
    return tensor
