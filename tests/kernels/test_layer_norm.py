import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 31, 33, 127, 384, 2048)

# Two float32 sums in 64 parts, one square root, a product and a sum: a few roundings of 6e-8 of the largest value.
F32_TOLERANCE = 2e-6


def reference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float) -> np.ndarray:
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axis=-1, keepdims=True)
    normed = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * weight
    return normed if bias is None else normed + bias


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("n_cols", SIZES)
def test_layer_norm_matches_the_formula(isa, n_cols, has_bias):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((5, n_cols)) * 10.0 ** rng.integers(-3, 4, (5, 1)) + 1).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    bias = rng.standard_normal(n_cols).astype(np.float32) if has_bias else None
    out = kernels.layer_norm(isa, x, weight, bias, 1e-5)
    # A mean far above what is left takes that many bits of it.
    loss = np.abs(x).max(axis=1, keepdims=True) / (x.astype(np.float64).std(axis=1, keepdims=True) + np.sqrt(1e-5))
    tolerance = F32_TOLERANCE * (1 + loss) * np.abs(weight).max() * 2
    assert (np.abs(out - reference(x, weight, bias, 1e-5)) <= tolerance).all()


@pytest.mark.parametrize("n_cols", SIZES)
def test_layer_norm_may_write_over_its_input(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    x = rng.standard_normal((3, n_cols)).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    apart = kernels.layer_norm(isa, x, weight, None, 1e-6)
    kernels.layer_norm_in_place(isa, x, weight, 1e-6)
    np.testing.assert_array_equal(x, apart)


@pytest.mark.parametrize("n_cols", SIZES)
def test_layer_norm_neither_reads_nor_writes_past_its_columns(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    x = rng.standard_normal((4, n_cols)).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    poisoned = np.concatenate([x, np.full((4, 3), np.nan, np.float32)], axis=1)
    out = kernels.layer_norm(isa, poisoned, weight, weight, 1e-6)
    np.testing.assert_array_equal(out[:, :n_cols], kernels.layer_norm(isa, x, weight, weight, 1e-6))
    assert np.isnan(out[:, n_cols:]).all()


def test_layer_norm_of_equal_values_is_the_bias(isa):
    bias = np.arange(33, dtype=np.float32)
    out = kernels.layer_norm(isa, np.zeros((1, 33), np.float32), np.ones(33, np.float32), bias, 1e-6)
    np.testing.assert_array_equal(out[0], bias)


def test_layer_norm_keeps_a_nan_in_its_row(isa):
    x = np.arange(99, dtype=np.float32).reshape(3, 33)
    x[1, 32] = np.nan
    out = kernels.layer_norm(isa, x, np.ones(33, np.float32), None, 1e-6)
    assert np.isnan(out[1]).all()
    assert np.isfinite(out[[0, 2]]).all()
