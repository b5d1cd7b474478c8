import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 31, 33, 127, 576, 2048)

# A float32 sum of n squares in 64 parts, one square root and two products: a few roundings of 6e-8 each.
F32_TOLERANCE = 1e-6


def reference(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight


@pytest.mark.parametrize("n_cols", SIZES)
def test_rms_norm_matches_the_formula(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((5, n_cols)) * 10.0 ** rng.integers(-3, 4, (5, 1))).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    np.testing.assert_allclose(kernels.rms_norm(isa, x, weight, 1e-5), reference(x, weight, 1e-5), rtol=F32_TOLERANCE)


@pytest.mark.parametrize("n_cols", SIZES)
def test_rms_norm_may_write_over_its_input(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    x = rng.standard_normal((3, n_cols)).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    apart = kernels.rms_norm(isa, x, weight, 1e-6)
    kernels.rms_norm_in_place(isa, x, weight, 1e-6)
    np.testing.assert_array_equal(x, apart)


def test_rms_norm_of_a_row_is_the_same_alone_and_among_others(isa):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 127)).astype(np.float32)
    weight = rng.standard_normal(127).astype(np.float32)
    together = kernels.rms_norm(isa, x, weight, 1e-6)
    for row in range(7):
        np.testing.assert_array_equal(kernels.rms_norm(isa, x[row : row + 1], weight, 1e-6)[0], together[row])


def test_rms_norm_of_zeros_is_zero(isa):
    out = kernels.rms_norm(isa, np.zeros((1, 33), np.float32), np.ones(33, np.float32), 1e-6)
    np.testing.assert_array_equal(out, np.zeros((1, 33)))


def test_rms_norm_keeps_a_nan_in_its_row(isa):
    x = np.ones((3, 33), np.float32)
    x[1, 32] = np.nan
    out = kernels.rms_norm(isa, x, np.ones(33, np.float32), 1e-6)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
