"""How is the KV pool divided among the layers, and its second tier?

Layers with the same window form a group; each group of the cache has pages of its own. A sequence holds pages for all
of its tokens in a group without a window, and for the window and one step in a group with one. Slots of the tier are
divided as pages are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from llm_decoder.errors import NotEnoughMemoryError
from llm_decoder.fit import kv_bytes_per_token
from llm_decoder.model_config import ModelConfig

__all__ = ["KvPool", "divide_pool"]

# The tier of a device, where nothing else is asked for: so many times the pool, but no more than a share of the free
# host memory, nor so many bytes. Memory that a device copies from is pinned, and the system takes time for that.
DEFAULT_TIER_POOLS = 2
DEFAULT_TIER_SHARE = 0.25
DEFAULT_TIER_BYTES = 16 << 30


@dataclass(frozen=True)
class KvPool:
    """windows: of each group, in tokens, 0 = everything is seen; the group that sees the most comes first.
    layer_groups: the group of each layer. n_pages: of each group. pool_bytes: of all pages. max_len: tokens that one
    sequence may have in it. n_tier_slots: of each group, in the second tier. tier_bytes: of all slots."""

    windows: tuple[int, ...]
    layer_groups: tuple[int, ...]
    n_pages: tuple[int, ...]
    pool_bytes: int
    max_len: int
    n_tier_slots: tuple[int, ...]
    tier_bytes: int


def divide_pool(
    config: ModelConfig,
    kv_dtype: str,
    *,
    page_size: int,
    wanted_len: int,
    least_len: int,
    max_step: int,
    n_sequences: int,
    pool_bytes: int | None,
    most_bytes: int,
    on_gpu: bool = False,
    tier_bytes: int | None = 0,
    host_bytes: int = 0,
) -> KvPool:
    """Every group holds equally many sequences of wanted_len tokens, or what one sequence as long as the pool allows
    needs.

    kv_dtype, on_gpu: as of kv_bytes_per_token. max_step: tokens that a step computes. pool_bytes: None = room for
    n_sequences, but no more than most_bytes. tier_bytes: None = the default of a GPU, with host_bytes of free host
    memory. Raises NotEnoughMemoryError when not one sequence of least_len tokens has room, and for a tier that is asked
    for and has no slot.
    """
    groups, layer_groups = _groups(config, wanted_len)
    layer_bytes = kv_bytes_per_token(config, kv_dtype, on_gpu=on_gpu) // config.n_layers * page_size
    page_bytes = [layer_bytes * layer_groups.count(group) for group in range(len(groups))]

    def pages_each(n_tokens: int) -> list[int]:
        return [_pages_of_sequence(n_tokens, window, page_size, max_step) for window in groups]

    def bytes_each(n_tokens: int) -> int:
        return _total(pages_each(n_tokens), page_bytes)

    full_bytes = bytes_each(wanted_len)
    if pool_bytes is None:
        pool_bytes = min(n_sequences * full_bytes, most_bytes)
    if pool_bytes < bytes_each(least_len):
        raise NotEnoughMemoryError(
            f"[KV cache] one sequence of {least_len} tokens needs {bytes_each(least_len)} bytes, the pool has "
            f"{pool_bytes}; raise kv_cache_bytes, lower max_model_len, or use kv_cache_dtype='int8'"
        )
    if pool_bytes >= full_bytes:
        max_len = wanted_len
        n_pages = [n * pool_bytes // full_bytes for n in pages_each(wanted_len)]
    else:
        lengths = range(page_size, wanted_len + page_size, page_size)
        max_len = min(wanted_len, lengths[bisect_right(lengths, pool_bytes, key=bytes_each) - 1])
        n_pages = pages_each(max_len)
    taken_bytes = _total(n_pages, page_bytes)
    if tier_bytes is None:
        tier_bytes = min(DEFAULT_TIER_POOLS * taken_bytes, int(DEFAULT_TIER_SHARE * host_bytes), DEFAULT_TIER_BYTES)
    elif 0 < tier_bytes < (least_bytes := -(-taken_bytes // min(n_pages))):
        raise NotEnoughMemoryError(
            f"[KV cache] a second tier holds a page of each group of layers, {least_bytes} bytes, or none, got "
            f"{tier_bytes}; raise kv_tier_bytes, or make it 0"
        )
    n_slots = [n * tier_bytes // taken_bytes for n in n_pages]
    return KvPool(
        groups, layer_groups, tuple(n_pages), taken_bytes, max_len, tuple(n_slots), _total(n_slots, page_bytes)
    )


def _groups(config: ModelConfig, wanted_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(window of each group, group of each layer). A window that nothing falls out of is none."""
    windows = [window if 0 < window < wanted_len else 0 for window in config.windows]
    groups = sorted(set(windows), key=lambda window: (window > 0, -window))
    return tuple(groups), tuple(groups.index(window) for window in windows)


def _pages_of_sequence(n_tokens: int, window: int, page_size: int, max_step: int) -> int:
    n_pages = -(-n_tokens // page_size)
    # What the window still needs and the step neither begin nor end at the edge of a page.
    return min(n_pages, -(-(window + max_step) // page_size) + 1) if window else n_pages


def _total(n_pages: Sequence[int], page_bytes: Sequence[int]) -> int:
    return sum(n * each for n, each in zip(n_pages, page_bytes, strict=True))
