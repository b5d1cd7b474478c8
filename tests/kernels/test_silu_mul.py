import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 31, 33, 127, 1536)

# exp to 1.5e-7, one sum, one quotient and two products of 6e-8 each.
F32_TOLERANCE = 6e-7
# Below -87.3 the gate's exponential, at most 1.3e-38, counts as 0.
UNDERFLOW = 1e-34


def reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        wide = gate.astype(np.float64)
        return wide / (1 + np.exp(-wide)) * up


@pytest.mark.parametrize("n_cols", SIZES)
def test_silu_mul_matches_the_formula(isa, n_cols):
    rng = np.random.default_rng(n_cols)
    gate = (rng.standard_normal((4, n_cols)) * 5).astype(np.float32)
    up = rng.standard_normal((4, n_cols)).astype(np.float32)
    out = kernels.silu_mul(isa, np.concatenate([gate, up], axis=1))
    np.testing.assert_allclose(out, reference(gate, up), rtol=F32_TOLERANCE)


def test_silu_mul_neither_overflows_nor_loses_the_tails(isa):
    gate = np.array([[-1e30, -1e4, -88, -87, -50, -1e-30, -0.0, 0, 1e-30, 50, 88, 1e4, 1e30]], np.float32)
    out = kernels.silu_mul(isa, np.concatenate([gate, np.ones_like(gate)], axis=1))
    np.testing.assert_allclose(out, reference(gate, np.ones_like(gate)), rtol=F32_TOLERANCE, atol=UNDERFLOW)


def test_silu_mul_keeps_a_nan_in_its_place(isa):
    x = np.ones((2, 66), np.float32)
    x[0, 32] = np.nan
    x[1, 33] = np.nan
    out = kernels.silu_mul(isa, x)
    assert np.argwhere(np.isnan(out)).tolist() == [[0, 32], [1, 0]]
