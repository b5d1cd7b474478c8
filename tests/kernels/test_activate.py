import math

import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 31, 33, 127, 1536)
FILL = -7.5  # of the column past the end

_erf = np.vectorize(math.erf, otypes=[np.float64])
FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
}
# The polynomial of gelu is off by 3e-8, and by what float32 makes of the result.
F32_TOLERANCE, ABSOLUTE = 6e-7, 4e-8


def run(isa: str, activation: str, x: np.ndarray, is_gated: bool = False) -> np.ndarray:
    out = kernels.activate(isa, activation, is_gated, x, FILL)
    assert (out[:, -1] == FILL).all(), "a value was written past the end of its row"
    return out[:, :-1]


@pytest.mark.parametrize("n_cols", SIZES)
@pytest.mark.parametrize("activation", FORMULAS)
def test_activate_matches_the_formula(isa, activation, n_cols):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((4, n_cols)) * 3).astype(np.float32)
    expected = FORMULAS[activation](x.astype(np.float64))
    np.testing.assert_allclose(run(isa, activation, x), expected, rtol=F32_TOLERANCE, atol=ABSOLUTE)


@pytest.mark.parametrize("n_cols", SIZES)
@pytest.mark.parametrize("activation", FORMULAS)
def test_the_first_half_gates_the_second(isa, activation, n_cols):
    rng = np.random.default_rng(n_cols)
    x = (rng.standard_normal((3, 2 * n_cols)) * 3).astype(np.float32)
    expected = run(isa, activation, np.ascontiguousarray(x[:, :n_cols])) * x[:, n_cols:]
    np.testing.assert_array_equal(run(isa, activation, x, is_gated=True), expected)


def test_gelu_is_close_over_all_its_pieces(isa):
    x = np.linspace(-7, 7, 200001, dtype=np.float32)[None]
    expected = FORMULAS["gelu"](x.astype(np.float64))
    error = np.abs(run(isa, "gelu", x) - expected)
    assert (error <= F32_TOLERANCE * np.abs(expected) + ABSOLUTE).all()
    small = (np.abs(x) < 1e-3) & (x != 0)
    np.testing.assert_allclose(run(isa, "gelu", x)[small], expected[small], rtol=F32_TOLERANCE)


@pytest.mark.parametrize("activation", FORMULAS)
def test_activate_neither_overflows_nor_loses_the_tails(isa, activation):
    x = np.array([[-1e30, -1e4, -88, -20, -6, -1e-30, -0.0, 0, 1e-30, 6, 20, 88, 1e4, 1e30]], np.float32)
    with np.errstate(over="ignore"):
        expected = FORMULAS[activation](x.astype(np.float64))
    np.testing.assert_allclose(run(isa, activation, x), expected, rtol=F32_TOLERANCE, atol=ABSOLUTE)


@pytest.mark.parametrize("activation", FORMULAS)
def test_activate_keeps_a_nan_in_its_place(isa, activation):
    x = np.ones((2, 66), np.float32)
    x[0, 32] = x[1, 33] = np.nan
    assert np.argwhere(np.isnan(run(isa, activation, x, is_gated=True))).tolist() == [[0, 32], [1, 0]]
