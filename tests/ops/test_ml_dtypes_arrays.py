"""NumPy arrays with the dtypes of ml_dtypes: they say themselves what they hold, and results are of the same kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import decode
from paged_batch import PagedBatch

from llm_decoder import ops

ml_dtypes = pytest.importorskip("ml_dtypes")
KINDS = {"bfloat16": ml_dtypes.bfloat16, "fp8": ml_dtypes.float8_e4m3fn}


def named(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.view(KINDS[dtype]) if dtype in KINDS else array


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8"])
def test_attention_needs_no_names(kv_dtype: str) -> None:
    batch = PagedBatch(kv_dtype=kv_dtype)
    arguments = batch.arguments()
    arrays = [named(x, dtype) for x, dtype in zip(arguments[:3], ("bfloat16", kv_dtype, kv_dtype), strict=True)]
    want, want_lse = ops.paged_attention(*arguments, **batch.dtypes(), return_lse=True)
    out, lse = ops.paged_attention(*arrays, *arguments[3:], return_lse=True)
    assert out.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(out.view(np.uint16), want)
    np.testing.assert_array_equal(lse, want_lse)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8"])
def test_pages_take_the_values_that_the_type_rounds_to(kv_dtype: str) -> None:
    random = np.random.default_rng(0)
    key, value = (random.normal(size=(5, 2, 16)).astype(ml_dtypes.bfloat16) for _ in "kv")
    k_cache, v_cache = (np.zeros((2, 16, 2, 16), KINDS[kv_dtype]) for _ in "kv")
    slots = np.array([31, 2, -1, 17, 0], np.int64)
    ops.reshape_and_cache(key, value, k_cache, v_cache, slots)
    for rows, pages in ((key, k_cache), (value, v_cache)):
        got = pages.reshape(32, 2, 16)[slots[slots >= 0]]
        np.testing.assert_array_equal(got, rows[slots >= 0].astype(KINDS[kv_dtype]))


@pytest.mark.usefixtures("any_machine")
def test_states_merge_in_their_own_kind() -> None:
    random = np.random.default_rng(0)
    outs = [random.normal(size=(3, 2, 16)).astype(ml_dtypes.bfloat16) for _ in range(2)]
    lses = [random.normal(size=(3, 2)).astype(np.float32) for _ in range(2)]
    merged = ops.merge_states(outs, lses)
    assert merged.dtype == ml_dtypes.bfloat16
    share = 1 / (1 + np.exp(lses[1] - lses[0]))[..., None]
    want = share * outs[0].astype(np.float64) + (1 - share) * outs[1].astype(np.float64)
    np.testing.assert_allclose(merged.astype(np.float64), want, rtol=2.0**-7, atol=2.0**-8)


@pytest.mark.usefixtures("any_machine")
def test_rows_products_and_draws_take_them_too() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 64)).astype(ml_dtypes.bfloat16)
    weight = random.normal(size=64).astype(ml_dtypes.bfloat16)
    codes: dict[str, Any] = {"dtype": "bfloat16"}
    normed = ops.rms_norm(x, weight)
    assert normed.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        normed.view(np.uint16), ops.rms_norm(x.view(np.uint16), weight.view(np.uint16), **codes)
    )
    np.testing.assert_array_equal(ops.embed(np.array([2, 0], np.int32), x), x[[2, 0]])
    tokens = ops.sample(x, temperature=0).tokens
    np.testing.assert_array_equal(tokens, decode(x.view(np.uint16), "bfloat16").argmax(axis=1))
    packed = ops.pack_weights(random.normal(size=(8, 64)).astype(ml_dtypes.bfloat16), "half")
    assert ops.small_product(x, packed).dtype == ml_dtypes.bfloat16
