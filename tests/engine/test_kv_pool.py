"""How the bytes of the KV pool become pages for each group of layers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models_factory import hf_config

from llm_decoder import kv_pool
from llm_decoder._core import KvCache
from llm_decoder.errors import NotEnoughMemoryError
from llm_decoder.fit import kv_bytes_per_token
from llm_decoder.kv_pool import KvPool, divide_pool
from llm_decoder.models import parse_config

SIZES = {"page_size": 16, "max_step": 32, "n_sequences": 4, "most_bytes": 1 << 40, "least_len": 16}


def config_of(windows: list[int]):
    """A Qwen3 with these windows (at most one of them not 0)."""
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    return parse_config(
        hf_config(
            "qwen3",
            num_hidden_layers=len(windows),
            layer_types=types,
            use_sliding_window=True,
            sliding_window=max(windows) or 1,
            max_window_layers=0,
            max_position_embeddings=4096,
        )
    )


def divide(windows: list[int], wanted_len: int, pool_bytes: int | None, **other: int) -> KvPool:
    return divide_pool(config_of(windows), "int8", wanted_len=wanted_len, pool_bytes=pool_bytes, **{**SIZES, **other})


def cache_of(pool: KvPool) -> KvCache:
    config = config_of([0])
    return KvCache(pool.n_pages, 16, pool.layer_groups, config.n_kv_heads, config.head_dim, "s8", pool.windows)


def test_a_model_without_windows_has_one_group_that_takes_every_byte():
    each = kv_bytes_per_token(config_of([0, 0]), "int8")
    pool = divide([0, 0], 1024, 1000 * 16 * each)
    assert (pool.windows, pool.layer_groups, pool.n_pages) == ((0,), (0, 0), (1000,))
    assert pool.pool_bytes == cache_of(pool).stats()["pool_bytes"] == 1000 * 16 * each


def test_layers_with_a_window_get_pages_for_the_window_and_a_step():
    pool = divide([64, 0, 64, 64], 1024, None)
    assert (pool.windows, pool.layer_groups) == ((0, 64), (1, 0, 1, 1))
    assert pool.n_pages == (4 * 1024 // 16, 4 * 7)
    assert pool.pool_bytes == cache_of(pool).stats()["pool_bytes"]


def test_a_window_that_holds_the_whole_context_is_none():
    assert divide([4000, 0], 1024, None).windows == (0,)
    assert divide([4000, 4000], 4000, None).windows == (0,)


def test_windows_make_room_for_a_longer_context():
    pool_bytes = 200 * 16 * kv_bytes_per_token(config_of([0] * 4), "int8")
    assert divide([0] * 4, 4096, pool_bytes).max_len == 200 * 16
    assert divide([0, 64, 64, 64], 4096, pool_bytes).max_len == 4096


@given(
    windows=st.lists(st.sampled_from([0, 40]), min_size=1, max_size=4),
    wanted_len=st.integers(1, 2000),
    max_step=st.integers(1, 300),
    n_tokens=st.integers(16, 3000),
)
def test_the_pool_keeps_its_bytes_and_holds_the_sequence_it_promises(windows, wanted_len, max_step, n_tokens):
    pool_bytes = n_tokens * kv_bytes_per_token(config_of(windows), "int8")
    pool = divide(windows, wanted_len, pool_bytes, max_step=max_step)
    assert 1 <= pool.max_len <= wanted_len
    assert pool.pool_bytes <= pool_bytes
    cache = cache_of(pool)
    assert cache.max_tokens(max_step) >= pool.max_len
    assert cache.has_room(np.zeros(1, np.int32), np.array([pool.max_len], np.int32), max_step)


def test_a_pool_that_holds_too_little_is_refused_with_need_and_got():
    with pytest.raises(NotEnoughMemoryError, match=r"one sequence of 512 tokens needs \d+ bytes, the pool has 99999;"):
        divide([0, 0], 512, 99999, least_len=512)


def test_slots_of_the_tier_are_divided_as_pages_are():
    pool = divide([64, 0, 64, 64], 1024, None, tier_bytes=1 << 20)
    page_bytes = [kv_bytes_per_token(config_of([0]), "int8") * 16 * n for n in (1, 3)]
    assert pool.n_tier_slots == tuple(n * (1 << 20) // pool.pool_bytes for n in pool.n_pages)
    assert pool.tier_bytes == sum(n * each for n, each in zip(pool.n_tier_slots, page_bytes, strict=True)) <= 1 << 20
    assert divide([0, 0], 1024, None).n_tier_slots == (0,)


def test_a_tier_without_a_slot_for_each_group_is_refused_and_one_of_no_bytes_is_none():
    sizes = [64, 0, 64, 64], 1024, None
    with pytest.raises(
        NotEnoughMemoryError, match=r"a page of each group of layers, \d+ bytes, .* got 1; raise"
    ) as told:
        divide(*sizes, tier_bytes=1)
    least_bytes = int(re.search(r"(\d+) bytes", str(told.value))[1])
    assert min(divide(*sizes, tier_bytes=least_bytes).n_tier_slots) == 1
    with pytest.raises(NotEnoughMemoryError):
        divide(*sizes, tier_bytes=least_bytes - 1)
    assert divide(*sizes, tier_bytes=0).n_tier_slots == (0, 0)


def test_the_tier_of_a_device_is_twice_the_pool_or_what_the_host_can_spare(monkeypatch):
    pool = divide([0], 1024, None, tier_bytes=None, host_bytes=1 << 40)
    assert pool.tier_bytes == 2 * pool.pool_bytes
    scarce = divide([0], 1024, None, tier_bytes=None, host_bytes=4 * pool.pool_bytes)
    assert scarce.tier_bytes == pool.pool_bytes
    monkeypatch.setattr(kv_pool, "DEFAULT_TIER_BYTES", pool.pool_bytes // 4)
    assert divide([0], 1024, None, tier_bytes=None, host_bytes=1 << 40).tier_bytes == pool.pool_bytes // 4
