"""The doors of _core that stand behind llm_decoder.ops on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import mmap

import numpy as np
import pytest
from attention_cases import Batch, Case, make_batch
from element_codes import ROUNDING, decode, encode, poison
from implementations import attend_on_cpu

from llm_decoder import _core

ROW_DTYPES = ("float32", "bfloat16", "float16")
PAGE_DTYPES = (*ROW_DTYPES, "fp8", "int8")
N_HEADS, HEAD_DIM, PAGE_SIZE = 2, 8, 16


def all_codes(dtype: str) -> np.ndarray:
    if dtype == "float32":
        return np.array([0.0, -0.0, 1.5, -3e38, 1e-38, 0.1, 7.0, -1e-20], np.float32)
    n_bits = 16 if dtype in ("bfloat16", "float16") else 8
    codes = np.arange(2**n_bits, dtype=f"uint{n_bits}")
    return codes.view(np.int8) if dtype == "int8" else codes


def one_key_pages(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pages of codes.size / HEAD_DIM sequences of one position each, their table)."""
    n = codes.size // HEAD_DIM
    cache = np.zeros((n, PAGE_SIZE, 1, HEAD_DIM), codes.dtype)
    cache[:, 0, 0] = codes.reshape(n, HEAD_DIM)
    return cache, np.arange(n, dtype=np.int32)[:, None]


@pytest.mark.parametrize("dtype", [*ROW_DTYPES, "fp8"])
def test_every_finite_value_of_a_page_comes_out_as_it_is(dtype):
    codes = all_codes(dtype)
    codes = codes[np.isfinite(decode(codes, dtype))]
    codes = codes[: codes.size // HEAD_DIM * HEAD_DIM]
    values, table = one_key_pages(codes)
    n = len(values)
    batch = Batch(
        "float32",
        dtype,
        np.zeros((n, 1, HEAD_DIM), np.float32),
        np.zeros_like(values),
        values,
        table,
        np.ones(n, np.int32),
        np.arange(n + 1, dtype=np.int32),
        1.0,
    )
    out, _ = attend_on_cpu(batch)
    np.testing.assert_array_equal(out.reshape(-1), decode(codes, dtype))


def nearest_codes(x: np.ndarray, dtype: str) -> np.ndarray:
    """Ties to even, what is too large to the largest."""
    if dtype != "fp8":
        return encode(x, dtype)
    values, magnitudes = decode(np.arange(127, dtype=np.uint8), "fp8"), np.abs(x.astype(np.float64))
    above = np.clip(np.searchsorted(values, magnitudes), 1, 126)
    down, up = magnitudes - values[above - 1], values[above] - magnitudes
    takes_lower = (down < up) | ((down == up) & (above % 2 == 1))
    return (np.where(takes_lower, above - 1, above) + np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


@pytest.mark.parametrize("dtype", PAGE_DTYPES[1:])
def test_reshape_and_cache_writes_the_nearest_code_of_every_value(dtype):
    """Of every value that has a code, of what lies halfway between two, and of what is beyond the largest."""
    exact = np.unique(decode(all_codes(dtype), dtype)[np.isfinite(decode(all_codes(dtype), dtype))])
    with np.errstate(over="ignore"):
        halves = ((exact[1:] + exact[:-1]) / 2).astype(np.float32)
    if dtype == "fp8":
        halves = np.append(halves, [1000.0, -1e30])
    x = np.concatenate([exact, halves]).astype(np.float32)
    x = np.append(x, np.zeros(-x.size % HEAD_DIM, np.float32)).reshape(-1, 1, HEAD_DIM)
    n_pages = -(-len(x) // PAGE_SIZE)
    k, v = (np.full((n_pages, PAGE_SIZE, 1, HEAD_DIM), poison(dtype), all_codes(dtype).dtype) for _ in "kv")
    slots = np.arange(len(x), dtype=np.int64)
    _core.append_kv_op(x, -x, "float32", k, v, dtype, slots, None, None, 2)
    np.testing.assert_array_equal(k.reshape(-1)[: x.size], nearest_codes(x, dtype).reshape(-1))
    np.testing.assert_array_equal(v.reshape(-1)[: x.size], nearest_codes(-x, dtype).reshape(-1))


def test_a_nan_stays_one_where_the_pages_have_it():
    x = np.full((1, 1, HEAD_DIM), np.nan, np.float32)
    for dtype in PAGE_DTYPES[:-1]:
        k, v = (np.zeros((1, PAGE_SIZE, 1, HEAD_DIM), all_codes(dtype).dtype) for _ in "kv")
        _core.append_kv_op(x, x, "float32", k, v, dtype, np.zeros(1, np.int64), None, None, 1)
        assert np.isnan(decode(k[0, 0], dtype)).all()
        assert (decode(v[0, 1:], dtype) == 0).all()


@pytest.mark.parametrize("row_dtype", ROW_DTYPES)
@pytest.mark.parametrize("dtype", ["fp8", "int8"])
@pytest.mark.parametrize("kind", ["all", "head", "slot"])
def test_reshape_and_cache_divides_by_scales_or_makes_them(row_dtype, dtype, kind):
    rng = np.random.default_rng(0)
    n_tokens, n_pages = 37, 4
    key, value = (encode(rng.standard_normal((n_tokens, N_HEADS, HEAD_DIM)) * 3, row_dtype) for _ in "kv")
    key[5] = 0
    slots = rng.permutation(n_pages * PAGE_SIZE)[:n_tokens]
    slots[[3, 20]] = -1
    caches = [np.full((n_pages, PAGE_SIZE, N_HEADS, HEAD_DIM), 0x55, all_codes(dtype).dtype) for _ in "kv"]
    shape = (n_pages, PAGE_SIZE, N_HEADS)
    scales = {
        "all": [0.03, 0.05],
        "head": [np.array([0.03, 0.05], np.float32), np.array([0.07, 0.02], np.float32)],
        "slot": [np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)],
    }[kind]
    _core.append_kv_op(key, value, row_dtype, *caches, dtype, slots.astype(np.int64), *scales, 3)
    live = slots >= 0
    pages, at = slots[live] // PAGE_SIZE, slots[live] % PAGE_SIZE
    for rows, cache, scale in zip((key, value), caches, scales, strict=True):
        x = decode(rows, row_dtype)[live].astype(np.float32)
        if kind == "slot":
            largest = np.abs(x).max(axis=-1)
            want = np.where(largest == 0, 1, largest / np.float32(127 if dtype == "int8" else 448))
            np.testing.assert_array_equal(scale[pages, at], want.astype(np.float32))
            assert np.isnan(scale).sum() == scale.size - want.size
            divisor = scale[pages, at][..., None]
        else:
            divisor = np.broadcast_to(np.asarray(scale, np.float32), (N_HEADS,))[:, None]
        np.testing.assert_array_equal(cache[pages, at], nearest_codes(x / divisor, dtype))
        untouched = np.ones((n_pages, PAGE_SIZE), bool)
        untouched[pages, at] = False
        assert (cache[untouched] == 0x55).all()


def test_pages_that_reshape_and_cache_wrote_are_read_by_attention():
    case = Case(kv_dtype="int8", scales="slot", batch="prompt", head_dim=64)
    batch = make_batch(case)
    rng = np.random.default_rng(1)
    n, n_kv_heads = int(batch.seq_lens[2]), batch.k_cache.shape[2]
    key, value = rng.standard_normal((2, n, n_kv_heads, 64)).astype(np.float32)
    positions = np.arange(n)
    slots = batch.block_table[2, positions // 16].astype(np.int64) * 16 + positions % 16
    _core.append_kv_op(
        key, value, "float32", batch.k_cache, batch.v_cache, "int8", slots, batch.k_scale, batch.v_scale, 2
    )
    out, _ = attend_on_cpu(batch.sequence(2))
    exact = dataclasses.replace(
        batch,
        kv_dtype="float32",
        k_cache=np.zeros(batch.k_cache.shape, np.float32),
        v_cache=np.zeros(batch.v_cache.shape, np.float32),
        k_scale=None,
        v_scale=None,
    )
    _core.append_kv_op(key, value, "float32", exact.k_cache, exact.v_cache, "float32", slots, None, None, 2)
    # Queries, keys and values each rounded to int8.
    np.testing.assert_allclose(out, attend_on_cpu(exact.sequence(2))[0], atol=0.03 * np.abs(value).max())


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_merging_what_parts_of_the_keys_give_is_what_all_of_them_give(dtype):
    rng = np.random.default_rng(3)
    n_tokens, n_keys, cuts = 5, 90, (0, 17, 17, 60, 90)
    logits = rng.standard_normal((n_tokens, N_HEADS, n_keys)) * 3
    values = rng.standard_normal((N_HEADS, n_keys, HEAD_DIM))

    def attend(keys: slice) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(logits[:, :, keys])
        total = p.sum(axis=-1)
        out = np.einsum("thk,hkd->thd", p, values[:, keys]) / np.where(total == 0, 1, total)[..., None]
        with np.errstate(divide="ignore"):
            return out, np.log(total)

    parts = [attend(slice(begin, end)) for begin, end in itertools.pairwise(cuts)]
    outs = [encode(out, dtype) for out, _ in parts]
    outs[1][:] = poison(dtype)  # of no keys
    merged = np.zeros((n_tokens, N_HEADS, HEAD_DIM), outs[0].dtype)
    lse = np.zeros((n_tokens, N_HEADS), np.float32)
    lses = [part_lse.astype(np.float32) for _, part_lse in parts]
    _core.merge_states_op(outs, lses, dtype, merged, lse, 2)
    want, want_lse = attend(slice(0, n_keys))
    # The parts are rounded and so is what they merge to.
    np.testing.assert_allclose(decode(merged, dtype), want, atol=2 * ROUNDING[dtype] * np.abs(values).max() + 1e-6)
    np.testing.assert_allclose(lse, want_lse, atol=1e-6)


def test_merging_nothing_gives_zero_and_minus_infinity():
    outs = [np.full((1, 1, HEAD_DIM), np.nan, np.float32)] * 2
    lses = [np.full((1, 1), -np.inf, np.float32)] * 2
    out, lse = np.ones((1, 1, HEAD_DIM), np.float32), np.zeros((1, 1), np.float32)
    _core.merge_states_op(outs, lses, "float32", out, lse, 1)
    assert (out == 0).all()
    assert lse[0, 0] == -np.inf


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_attention_over_prefix_and_rest_merges_to_attention_over_all(kv_dtype):
    """The prefix as a sequence of its own, on whole pages, the rest on the pages that follow."""
    batch = make_batch(Case(kv_dtype=kv_dtype, causal=False, batch="chunk", head_dim=40, softcap=5.0)).sequence(2)
    whole = attend_on_cpu(batch)
    n_prefix = 64
    parts = [
        attend_on_cpu(dataclasses.replace(batch, seq_lens=np.array([n_prefix], np.int32))),
        attend_on_cpu(
            dataclasses.replace(
                batch,
                seq_lens=batch.seq_lens - n_prefix,
                block_table=np.ascontiguousarray(batch.block_table[:, n_prefix // 16 :]),
            )
        ),
    ]
    out, lse = np.empty_like(whole[0]), np.empty(whole[0].shape[:2], np.float32)
    _core.merge_states_op([part for part, _ in parts], [lse for _, lse in parts], "float32", out, lse, 2)
    np.testing.assert_allclose(out, whole[0], atol=1e-5)
    np.testing.assert_allclose(lse, whole[1], atol=1e-5)


def test_pools_of_more_than_2_to_the_31_elements():
    """Pages a little more than 2 GiB apart in memory that is only promised."""
    page_bytes = PAGE_SIZE * HEAD_DIM
    stride, n_pages = 2**31 + 64, 3
    memory = mmap.mmap(-1, (n_pages - 1) * stride + page_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    pool = np.frombuffer(memory, np.int8)
    cache = np.lib.stride_tricks.as_strided(pool, (n_pages, PAGE_SIZE, 1, HEAD_DIM), (stride, HEAD_DIM, HEAD_DIM, 1))
    rng = np.random.default_rng(0)
    key = rng.standard_normal((2, 1, HEAD_DIM)).astype(np.float32)
    _core.append_kv_op(
        key, key, "float32", cache, cache, "int8", np.array([2 * PAGE_SIZE, PAGE_SIZE], np.int64), 0.02, 0.02, 1
    )
    np.testing.assert_array_equal(cache[2, 0, 0], encode(key[0, 0] / np.float32(0.02), "int8"))
    batch = Batch(
        "float32", "int8", key, cache, cache, np.array([[2]], np.int32), np.ones(1, np.int32),
        np.array([0, 1], np.int32), 1.0, k_scale=0.02, v_scale=0.02,
    )  # fmt: skip
    out, _ = attend_on_cpu(batch)
    np.testing.assert_allclose(out[0, 0], cache[2, 0, 0] * 0.02, rtol=5e-3)


def broken(**changes: object) -> Batch:
    return dataclasses.replace(make_batch(Case(batch="decode", sinks=True, alibi=True)), **changes)


GOOD = make_batch(Case(batch="decode"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_dtype": "int8"}, "q_dtype must be one of float32, bfloat16, float16; got int8"),
        ({"kv_dtype": "fp4"}, "kv_dtype must be one of float32, bfloat16, float16, fp8, int8; got fp4"),
        ({"q": GOOD.q.astype(np.float64)}, r"q must be float32 \(of float32\), got float64"),
        ({"q": GOOD.q[:, :, ::2]}, r"q must have shape \[any, any, 64\]"),
        ({"q": GOOD.q[:, :3]}, "the heads of q must be a multiple of the 2 of k_cache, got 3"),
        ({"k_cache": GOOD.k_cache[:, :12], "v_cache": GOOD.v_cache[:, :12]}, "a multiple of 16 slots"),
        ({"v_cache": GOOD.v_cache[:-1]}, "v_cache must have shape"),
        ({"block_table": np.full_like(GOOD.block_table, 10**6)}, r"block_table\[0, 0\] must be in \[0, "),
        ({"block_table": np.full_like(GOOD.block_table, -1)}, r"for a token sees that page; got -1"),
        ({"seq_lens": np.full_like(GOOD.seq_lens, 10**6)}, r"seq_lens\[0\] must be in \[0, "),
        ({"seq_lens": -GOOD.seq_lens}, r"seq_lens\[0\] must be in \[0, "),
        ({"cu_seqlens_q": GOOD.cu_seqlens_q[::-1].copy()}, "cu_seqlens_q must begin with 0, got 5"),
        ({"cu_seqlens_q": np.array([0, 2, 1, 3, 4, 5], np.int32)}, "must not fall .* got 1 after 2"),
        ({"cu_seqlens_q": GOOD.cu_seqlens_q * 2}, "end at most at 6"),
        ({"window": (-2, 0)}, "or -1 for no window; got -2, 0"),
        ({"softcap": -1.0}, "softcap must be finite, 0 for none; got -1"),
        ({"softcap": np.inf}, "softcap must be finite"),
        ({"k_scale": -1.0}, "k_scale must be finite and not negative, got -1"),
        ({"v_scale": np.ones(3, np.float32)}, r"v_scale must be a float or have shape \[2\] or \["),
        ({"sinks": np.ones(3, np.float32)}, r"sinks must have shape \[4\]"),
    ],
)
def test_attention_refuses_what_does_not_fit_and_says_what_would(changes, message):
    with pytest.raises(ValueError, match=rf"\[ops.paged_attention\].*{message}"):
        attend_on_cpu(broken(**changes))


def test_the_other_ops_refuse_what_does_not_fit():
    x = np.zeros((1, 1, HEAD_DIM), np.float32)
    k, v = (np.zeros((1, PAGE_SIZE, 1, HEAD_DIM), np.float32) for _ in "kv")
    slot = np.array([PAGE_SIZE], np.int64)
    with pytest.raises(ValueError, match=r"\[ops.append_kv\] slot_mapping\[0\] must be below 16"):
        _core.append_kv_op(x, x, "float32", k, v, "float32", slot, None, None, 1)
    per_slot = np.ones((1, PAGE_SIZE, 1), np.float32)
    with pytest.raises(ValueError, match=r"scales of every slot are made for int8 and fp8 pages, got float32"):
        _core.append_kv_op(x, x, "float32", k, v, "float32", slot - 1, per_slot, None, 1)
    k.flags.writeable = False
    with pytest.raises(ValueError, match=r"k_cache must be writeable"):
        _core.append_kv_op(x, x, "float32", k, v, "float32", slot - 1, None, None, 1)
    with pytest.raises(ValueError, match=r"\[ops.merge_states\] outs and lses must be as many, and one or more"):
        _core.merge_states_op([x], [], "float32", x, None, 1)
    with pytest.raises(ValueError, match=r"n_threads must be at least 1, got 0"):
        _core.merge_states_op([x], [np.zeros((1, 1), np.float32)], "float32", x, None, 0)
