import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SIZES = (1, 3, 31, 33, 127, 4096, 128257)

# exp to 1.5e-7 and a sum of up to 1024 terms and then of up to 256 sums, in 16 parts: below 1e-6 of the sum.
F32_TOLERANCE = 2e-6


@pytest.mark.parametrize("n", SIZES)
def test_log_sum_exp_matches_the_formula(isa, n):
    x = (np.random.default_rng(n).standard_normal(n) * 8).astype(np.float32)
    value, largest, is_finite = kernels.log_sum_exp(isa, x)
    wide = x.astype(np.float64)
    expected = wide.max() + np.log(np.exp(wide - wide.max()).sum())
    assert value == pytest.approx(expected, abs=F32_TOLERANCE + abs(expected) * 1e-7)
    assert largest == x.max()
    assert is_finite


def test_log_sum_exp_of_equal_values_counts_them(isa):
    value, largest, _ = kernels.log_sum_exp(isa, np.full(100_000, -3000, np.float32))
    assert value == pytest.approx(-3000 + np.log(100_000), abs=3e-4)  # half a unit in the last place of 3000
    assert largest == -3000


def test_log_sum_exp_lets_minus_infinity_weigh_nothing(isa):
    x = np.full(33, -np.inf, np.float32)
    x[32] = 5
    assert kernels.log_sum_exp(isa, x) == (5, 5, True)


def test_log_sum_exp_of_nothing_but_minus_infinity_is_minus_infinity(isa):
    assert kernels.log_sum_exp(isa, np.full(17, -np.inf, np.float32)) == (-np.inf, -np.inf, True)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 32])
def test_log_sum_exp_says_when_a_value_is_not_finite(isa, poison, place):
    x = np.ones(33, np.float32)
    x[place] = poison
    value, _, is_finite = kernels.log_sum_exp(isa, x)
    assert not is_finite
    assert np.isnan(value)


@pytest.mark.parametrize("n", SIZES)
def test_index_of_max_is_the_first_of_the_largest(isa, n):
    x = np.random.default_rng(n).integers(-5, 5, n).astype(np.float32)
    assert kernels.index_of_max(isa, x, x.max()) == int(x.argmax())


def test_index_of_max_is_the_lowest_of_ties_across_lanes(isa):
    x = np.zeros(100, np.float32)
    x[[40, 23, 99]] = 7
    assert kernels.index_of_max(isa, x, 7) == 23


@pytest.mark.parametrize("place", [0, 16, 99])
def test_index_of_max_is_found_among_minus_infinities(isa, place):
    x = np.full(100, -np.inf, np.float32)
    x[place] = -3e38
    assert kernels.index_of_max(isa, x, x[place]) == place


@pytest.mark.parametrize("place", [0, 32])
def test_log_sum_exp_tells_a_nan_among_minus_infinities(isa, place):
    x = np.full(33, -np.inf, np.float32)
    x[place] = np.nan
    value, _, is_finite = kernels.log_sum_exp(isa, x)
    assert not is_finite
    assert np.isnan(value)
