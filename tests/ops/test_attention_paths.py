"""Many rows by either kernel for them: what the grid does not ask, and must not depend on who multiplies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import decode
from paged_batch import PagedBatch

from llm_decoder import ops

pytestmark = pytest.mark.usefixtures("host_machine", "path")


@pytest.fixture(params=["mma_sync", "wgmma"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_ATTENTION_PATH", request.param)


def attend(batch: PagedBatch, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    return ops.paged_attention(*batch.arguments(), return_lse=True, **batch.dtypes(), **options)


@pytest.mark.parametrize("scale", [0.2, 30.0])
def test_a_negative_scale_is_the_positive_one_of_opposite_queries(scale: float) -> None:
    batch = PagedBatch(((40, 90), (17, 300)))
    want, want_lse = attend(batch, scale=scale)
    batch.q ^= 0x8000
    out, lse = attend(batch, scale=-scale)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)


def test_a_sink_may_be_as_large_as_a_float_can_be_or_none_at_all() -> None:
    batch = PagedBatch(((20, 150), (30, 0)))
    out, lse = attend(batch, sinks=np.array([3e38, 3e38, 0.0, -np.inf], np.float32))
    assert not decode(out[:, :2], "bfloat16").any()
    assert (lse[:, :2] > 2e38).all()
    assert (lse[20:, 2] == 0).all()
    assert np.isneginf(lse[20:, 3]).all()
    assert np.isfinite(lse[:20]).all()


@pytest.mark.parametrize("what", ["k_cache", "v_cache"])
def test_a_key_or_value_that_is_nan_shows_in_the_result_of_its_heads_alone(what: str) -> None:
    batch = PagedBatch(((20, 200), (30, 90)))
    want, want_lse = attend(batch)
    cache = getattr(batch, what)
    cache[batch.block_table[0, 5], 3, 1, 7] = 0x7FFF
    out, lse = attend(batch)
    nan = np.isnan(decode(out, "bfloat16"))
    assert nan[:20, 2:, 7].all()
    if what == "k_cache":
        assert nan[:20, 2:].all()
        assert np.isnan(lse[:20, 2:]).all()
    for rows, heads in ((slice(20), slice(2)), (slice(20, None), slice(None))):
        np.testing.assert_array_equal(out[rows, heads], want[rows, heads])
        np.testing.assert_array_equal(lse[rows, heads], want_lse[rows, heads])
