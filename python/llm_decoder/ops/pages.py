"""What fills pages and moves them: reshape_and_cache, copy_blocks, swap_blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import reshape_and_cache_op
from llm_decoder.ops import checks
from llm_decoder.ops.kv_scales import Scale, host_value, raw_scale, read_scale
from llm_decoder.ops.machines import (
    Addresses,
    compiled_code,
    device_index,
    host_array,
    kernels_for,
    n_threads,
    stream_of,
)
from llm_decoder.ops.tensors import Tensor, device_of, view_tensor

Longs = npt.NDArray[np.int64]
CPU_PAGE_DTYPES = ("float32", "bfloat16", "float16", "fp8", "int8")
GPU_PAGE_DTYPES = CPU_PAGE_DTYPES[1:]
DTYPES = ("float32", "bfloat16", "float16")
PAGE_ALIGN = 16  # bytes, of pages that a GPU copies


def reshape_and_cache(
    key: Any,
    value: Any,
    k_cache: Any,
    v_cache: Any,
    slot_mapping: Any,
    k_scale: Any | None = None,
    v_scale: Any | None = None,
    *,
    dtype: str | None = None,
    kv_dtype: str | None = None,
    stream: int | None = None,
) -> None:
    """Writes keys and values of T tokens into their slots.

    key, value [T, Hkv, D] in float32, bfloat16 or float16; k_cache, v_cache [P, S, Hkv, D] in any of these (on a GPU no
    float32), fp8 or int8. dtype, kv_dtype: what integers stand for.
    slot_mapping int64 [T]: page * S + slot of each token, negative: nowhere. No two tokens have the same.
    k_scale, v_scale: an element is stored as x / scale: a float, float32 [Hkv], or, of fp8 and int8, float32
    [P, S, Hkv], which receives the largest magnitude of each slot and head over 448 or 127. stream: as in
    paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used. Slots on a GPU are trusted.
    """
    place = "reshape_and_cache"
    device = device_of(place, "key", key)
    handle = stream_of(place, key, device, stream)
    rows = [view_tensor(place, name, x, dtype, handle) for name, x in (("key", key), ("value", value))]
    caches = [view_tensor(place, name, x, kv_dtype, handle) for name, x in (("k_cache", k_cache), ("v_cache", v_cache))]
    checks.check_shape(place, rows[0], "[T, Hkv, D]", [None] * 3)
    n_tokens, n_heads, head_dim = rows[0].shape
    checks.check_heads(place, n_heads, n_heads, head_dim)
    for row in rows:
        checks.check_shape(place, row, "[T, Hkv, D]", rows[0].shape)
        checks.check_dtype(place, row, *DTYPES)
        checks.check_dtype(place, row, rows[0].dtype)
    checks.check_shape(place, caches[0], "[P, S, Hkv, D]", [None, None, n_heads, head_dim])
    checks.check_page_size(place, caches[0].shape[1])
    kernels = kernels_for(place, device)
    for cache in caches:
        checks.check_shape(place, cache, "[P, S, Hkv, D]", caches[0].shape)
        checks.check_dtype(place, cache, *(CPU_PAGE_DTYPES if kernels is None else GPU_PAGE_DTYPES))
        checks.check_dtype(place, cache, caches[0].dtype)
        checks.check_writeable(place, cache)
    for tensor in (*rows, *caches):
        checks.check_same_device(place, tensor, device, "key")
        checks.check_last_axis(place, tensor)
    scales = [
        _read_divisor(place, name, scale, caches[0], device, handle)
        for name, scale in (("k_scale", k_scale), ("v_scale", v_scale))
    ]
    slots = view_tensor(place, "slot_mapping", slot_mapping, stream=handle)
    checks.check_dtype(place, slots, "int64")
    checks.check_shape(place, slots, "[T]", [n_tokens])
    checks.check_contiguous(place, slots)
    checks.check_device_or_host(place, slots, device)
    if slots.device == "cpu":
        n_slots = caches[0].shape[0] * caches[0].shape[1]
        largest = int(slots.array().max(initial=-1))
        if largest >= n_slots:
            raise checks.refuse(place, f"slot_mapping must be below {n_slots}, the slots of k_cache, got {largest}")

    if kernels is None:
        arrays = [tensor.array() for tensor in (*rows, *caches)]
        with compiled_code(place):
            reshape_and_cache_op(
                arrays[0],
                arrays[1],
                rows[0].dtype,
                arrays[2],
                arrays[3],
                caches[0].dtype,
                slots.array(),
                host_value(scales[0]),
                host_value(scales[1]),
                n_threads(),
            )
        return
    for tensor in (*rows, *caches):
        checks.check_vectors(place, tensor)
    addresses = Addresses(kernels, device, handle)
    with compiled_code(place):
        kernels.reshape_and_cache(
            *(tensor.raw() for tensor in (*rows, *caches)),
            addresses[slots],
            *(raw_scale(addresses, scale) for scale in scales),
            device_index(device),
            handle,
        )
        addresses.finish()


def copy_blocks(
    key_caches: Sequence[Any], value_caches: Sequence[Any], block_mapping: Any, *, stream: int | None = None
) -> None:
    """Copies whole pages, of all layers at once.

    key_caches, value_caches: the pages of every layer, of any shape [P, ...] and dtype, without gaps; scales of slots
    [P, S, Hkv] may be among them. block_mapping int64 [n, 2]: source and destination page of each copy, the same in
    all; no destination has a part in another copy. On a GPU pages are of a multiple of 16 bytes. Returns when all is
    done. stream: as in paged_attention.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "copy_blocks"
    lists = {"key_caches": key_caches, "value_caches": value_caches}
    values = {
        f"{name}[{i}]": cache
        for name, caches in lists.items()
        for i, cache in enumerate(checks.check_list(place, name, caches))
    }
    if not values:
        raise checks.refuse(place, "key_caches and value_caches must hold pages, got none")
    first_name, first = next(iter(values.items()))
    device = device_of(place, first_name, first)
    handle = stream_of(place, first, device, stream)
    caches = [view_tensor(place, name, value, stream=handle) for name, value in values.items()]
    for cache in caches:
        _check_pages(place, cache)
        checks.check_writeable(place, cache)
        checks.check_same_device(place, cache, device, first_name)
    n_pages = min(cache.shape[0] for cache in caches)
    pairs = _read_pairs(place, block_mapping, handle, n_pages, n_pages)
    if np.isin(pairs[:, 0], pairs[:, 1]).any():
        page = int(pairs[:, 0][np.isin(pairs[:, 0], pairs[:, 1])][0])
        raise checks.refuse(place, f"a page must not be a source and a destination, got both of page {page}")
    kernels = kernels_for(place, device)
    if kernels is None:
        for cache in caches:
            array = cache.array()
            array[pairs[:, 1]] = array[pairs[:, 0]]
        return
    pools = []
    for cache in caches:
        if cache.page_bytes % PAGE_ALIGN or cache.address % PAGE_ALIGN:
            raise checks.refuse(
                place,
                f"pages of {cache.name} must be of a multiple of {PAGE_ALIGN} bytes and begin at one, got "
                f"{cache.page_bytes} bytes at {cache.address:#x}",
            )
        pools.append((cache.address, cache.page_bytes))
    with compiled_code(place):
        kernels.copy_blocks(pools, pairs, device_index(device), handle)


def swap_blocks(src: Any, dst: Any, block_mapping: Any, *, stream: int | None = None) -> None:
    """Copies whole pages from one tensor to another, on a GPU or in host memory, either way.

    src [P, ...], dst [Q, ...]: pages of one shape and dtype, without gaps. block_mapping int64 [n, 2], best in host
    memory: page of src and page of dst of each copy; no page of dst twice. Where host memory is pinned the call returns
    before the copies are done: what comes after on `stream` (None: that of the framework of the tensor on the GPU) sees
    them.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    place = "swap_blocks"
    ends = {"src": (src, device_of(place, "src", src)), "dst": (dst, device_of(place, "dst", dst))}
    owner, device = next((end for end in ends.values() if end[1] != "cpu"), ends["src"])
    handle = stream_of(place, owner, device, stream)
    sides = [view_tensor(place, name, value, stream=handle) for name, (value, _) in ends.items()]
    for side in sides:
        _check_pages(place, side)
        if side.device not in ("cpu", device):
            raise checks.refuse(
                place, f"src and dst must be on one device or in host memory, got {device} and {side.device}"
            )
    from_pages, to_pages = sides
    checks.check_dtype(place, to_pages, from_pages.dtype)
    checks.check_shape(place, to_pages, "[Q, ...]", [None, *from_pages.shape[1:]])
    checks.check_writeable(place, to_pages)
    pairs = _read_pairs(place, block_mapping, handle, from_pages.shape[0], to_pages.shape[0])
    kernels = kernels_for(place, device)
    if kernels is None:
        to_pages.array()[pairs[:, 1]] = from_pages.array()[pairs[:, 0]]
    elif len(pairs) and from_pages.page_bytes:
        with compiled_code(place):
            kernels.swap_blocks(
                (from_pages.address, from_pages.shape[0]),
                (to_pages.address, to_pages.shape[0]),
                from_pages.page_bytes,
                pairs,
                device_index(device),
                handle,
            )


def _read_divisor(place: str, name: str, value: Any, pages: Tensor, device: str, stream: int) -> Scale:
    scale = read_scale(place, name, value, pages, device, stream)
    if isinstance(scale, Tensor):
        has_zero = scale.n_axes == 1 and scale.device == "cpu" and not scale.array().all()
    else:
        has_zero = scale == 0.0
    if has_zero:
        raise checks.refuse(place, f"{name} must be above 0, for elements are divided by it, got 0")
    if isinstance(scale, Tensor) and scale.n_axes == 3:
        if pages.dtype not in ("fp8", "int8"):
            raise checks.refuse(
                place, f"{name} of every slot is for pages of fp8 and int8, got {pages.dtype}; pass None"
            )
        checks.check_writeable(place, scale)
        checks.check_same_device(place, scale, device, "key")
    return scale


def _check_pages(place: str, cache: Tensor) -> None:
    if cache.n_axes < 1:
        raise checks.refuse(place, f"{cache.name} must have shape [P, ...], got []")
    checks.check_contiguous(place, cache)


def _read_pairs(place: str, block_mapping: Any, stream: int, n_from: int, n_to: int) -> Longs:
    pairs = host_array(place, "block_mapping", block_mapping, stream, "int64", "[n, 2]", [None, 2])
    for column, n_pages, what in ((pairs[:, 0], n_from, "source"), (pairs[:, 1], n_to, "destination")):
        is_wrong = (column < 0) | (column >= n_pages)
        if is_wrong.any():
            page = int(column[is_wrong][0])
            raise checks.refuse(place, f"{what} pages of block_mapping must be in [0, {n_pages}), got {page}")
    destinations, counts = np.unique(pairs[:, 1], return_counts=True)
    if (counts > 1).any():
        page = int(destinations[counts > 1][0])
        raise checks.refuse(place, f"a page must be the destination of one copy, got {counts.max()} to page {page}")
    return pairs
