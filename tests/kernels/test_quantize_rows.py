import numpy as np
import pytest
from reference_attention import int8_rows

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 5, 31, 33, 127, 576, 2048)


@pytest.mark.parametrize("n_cols", SIZES)
def test_quantize_rows_matches_the_formula(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((6, n_cols)) * 10.0 ** rng.integers(-20, 20, (6, 1))).astype(np.float32)
    x[2] = 0
    q, scale, total = kernels.quantize_rows(isa, x)
    expected_q, expected_scale = int8_rows(x)
    np.testing.assert_array_equal(q[:, :n_cols], expected_q)
    np.testing.assert_array_equal(scale, expected_scale.astype(np.float32))
    np.testing.assert_array_equal(total, expected_q.sum(axis=1))
    assert q.shape[1] == -(-n_cols // 4) * 4
    assert not q[:, n_cols:].any()


def test_quantize_rows_rounds_ties_to_even(isa):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    q, scale, _ = kernels.quantize_rows(isa, x)
    assert scale[0] == 1
    assert q[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


def test_quantize_rows_is_off_by_half_a_step_at_most(isa):
    x = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    q, scale, _ = kernels.quantize_rows(isa, x)
    assert (np.abs(q * scale[:, None].astype(np.float64) - x) <= scale[:, None] * 0.5001).all()
    assert (np.abs(q).max(axis=1) == 127).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_quantize_rows_shows_a_value_that_is_not_finite_in_the_scale_of_its_row(isa, poison):
    x = np.ones((3, 33), np.float32)
    x[1, 32] = poison
    _, scale, _ = kernels.quantize_rows(isa, x)
    assert np.isnan(scale).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-37])
def test_quantize_rows_takes_a_row_of_next_to_nothing_for_zeros(isa, size):
    q, scale, total = kernels.quantize_rows(isa, np.full((1, 7), size, np.float32))
    assert (q.any(), scale[0], total[0]) == (False, 1, 0)
