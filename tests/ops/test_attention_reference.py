"""The judge itself, on cases small enough to work out by other means."""

from __future__ import annotations

import numpy as np
import pytest
from attention_reference import paged_attention_reference
from element_codes import decode, encode

PAGE = 2
ONE = {"seq_lens": np.array([3]), "cu_seqlens_q": np.array([0, 1])}


def cache_of(rows: list[list[float]], table: list[int]) -> np.ndarray:
    """Rows of one KV head on the pages of a table; every other slot is NaN."""
    cache = np.full((max(table) + 2, PAGE, 1, len(rows[0])), np.nan)
    for i, row in enumerate(rows):
        cache[table[i // PAGE], i % PAGE, 0] = row
    return cache


TABLE = np.array([[3, 1, -7]])
K = cache_of([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [3, 1])
V = cache_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [3, 1])
Q = np.array([[[2.0, 1.0]]])


def attend(**options: object) -> tuple[np.ndarray, np.ndarray]:
    out, lse = paged_attention_reference(Q, K, V, TABLE, **ONE, scale=1.0, **options)
    return out[0, 0], lse[0, 0]


def test_one_token_weighs_values_by_the_softmax_of_its_logits() -> None:
    weights = np.exp([2.0, 1.0, 3.0])
    out, lse = attend()
    np.testing.assert_allclose(out, weights @ [[1, 2], [3, 4], [5, 6]] / weights.sum())
    assert lse == pytest.approx(np.log(weights.sum()))


def test_a_window_counts_from_the_tokens_own_position() -> None:
    np.testing.assert_allclose(attend(window=(0, -1))[0], [5, 6])
    weights = np.exp([1.0, 3.0])
    np.testing.assert_allclose(attend(window=(1, 0))[0], weights @ [[3, 4], [5, 6]] / weights.sum())


def test_a_cap_comes_before_slopes_and_a_sink_takes_part_in_the_sum_only() -> None:
    logits = 2 * np.tanh(np.array([2.0, 1.0, 3.0]) / 2) - 0.5 * np.array([2, 1, 0])
    out, lse = attend(softcap=2.0, alibi_slopes=np.array([0.5]), sinks=np.array([0.7]))
    total = np.exp(logits).sum() + np.exp(0.7)
    np.testing.assert_allclose(out, np.exp(logits) @ [[1, 2], [3, 4], [5, 6]] / total)
    assert lse == pytest.approx(np.log(total))


@pytest.mark.parametrize("shape", [(), (1,), (5, PAGE, 1)])
def test_scales_are_for_all_a_head_or_a_slot(shape: tuple[int, ...]) -> None:
    weights = np.exp([4.0, 2.0, 6.0])
    out, _ = attend(k_scale=np.full(shape, 2.0), v_scale=np.full(shape, 3.0))
    np.testing.assert_allclose(out, 3 * (weights @ [[1, 2], [3, 4], [5, 6]]) / weights.sum())


def test_a_token_sees_what_is_not_after_it_and_all_where_nothing_is_causal() -> None:
    q = np.repeat(Q, 2, axis=0)
    two = {"seq_lens": np.array([3]), "cu_seqlens_q": np.array([0, 2])}
    causal, _ = paged_attention_reference(q, K, V, TABLE, **two, scale=1.0)
    free, _ = paged_attention_reference(q, K, V, TABLE, **two, scale=1.0, causal=False)
    weights = np.exp([2.0, 1.0])
    np.testing.assert_allclose(causal[0, 0], weights @ [[1, 2], [3, 4]] / weights.sum())
    np.testing.assert_allclose(causal[1], attend()[0][None])
    np.testing.assert_allclose(free[0], free[1])


def test_a_row_without_keys_is_zero_and_its_lse_is_minus_infinity_or_the_sink() -> None:
    empty = {"seq_lens": np.array([0]), "cu_seqlens_q": np.array([0, 1])}
    out, lse = paged_attention_reference(Q, K, V, TABLE, **empty)
    assert (out.tolist(), lse.tolist()) == ([[[0.0, 0.0]]], [[-np.inf]])
    out, lse = paged_attention_reference(Q, K, V, TABLE, **empty, sinks=np.array([0.25]))
    assert (out.tolist(), lse.tolist()) == ([[[0.0, 0.0]]], [[0.25]])


def test_query_heads_of_a_group_look_at_their_kv_head() -> None:
    k = np.concatenate([K, 2 * K], axis=2)
    v = np.concatenate([V, -V], axis=2)
    out, _ = paged_attention_reference(np.repeat(Q, 4, axis=1), k, v, TABLE, **ONE, scale=1.0)
    np.testing.assert_allclose(out[0, 0], attend()[0])
    np.testing.assert_allclose(out[0, 1], attend()[0])
    np.testing.assert_allclose(out[0, 2], -attend(k_scale=2.0)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "fp8"])
def test_every_finite_code_is_the_code_of_its_value(dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8) if dtype == "fp8" else np.arange(65536, dtype=np.uint16)
    finite = codes[np.isfinite(decode(codes, dtype))]
    np.testing.assert_array_equal(encode(decode(finite, dtype), dtype), finite)


def test_a_code_is_the_nearest() -> None:
    np.testing.assert_array_equal(
        decode(encode(np.array([1.06, 1.07, 500.0, -0.001]), "fp8"), "fp8")[:3], [1, 1.125, 448]
    )
    np.testing.assert_array_equal(
        decode(encode(np.array([1.0 + 2**-9, 1 + 3 * 2**-9]), "bfloat16"), "bfloat16"), [1, 1 + 2**-7]
    )
