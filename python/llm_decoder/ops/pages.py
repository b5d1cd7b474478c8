"""Whole pages copied and moved: copy_blocks, swap_blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.ops import checks
from llm_decoder.ops.machines import compiled_code, device_index, host_array, kernels_for, stream_of
from llm_decoder.ops.tensors import Tensor, device_of, view_tensor

Longs = npt.NDArray[np.int64]
PAGE_ALIGN = 16  # bytes, of pages that a GPU copies


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
    values = {f"key_caches[{i}]": cache for i, cache in enumerate(key_caches)}
    values |= {f"value_caches[{i}]": cache for i, cache in enumerate(value_caches)}
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
