"""gemm_f32 against float64, and bit for bit against itself for every way of splitting the work."""

from __future__ import annotations

import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
SHAPES = (
    (1, 1, 1),
    (1, 31, 33),
    (1, 200, 2050),
    (2, 33, 127),
    (3, 127, 31),
    (6, 48, 576),
    (7, 16, 3),
    (14, 31, 1030),
    (16, 576, 1536),
    (28, 33, 300),
    (29, 40, 260),
    (127, 130, 576),
)
EPS = float(np.finfo(np.float32).eps)


def random_problem(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([m, n, k])
    a, w, bias = rng.standard_normal((m, k)), rng.standard_normal((n, k)), rng.standard_normal(n)
    return a.astype(np.float32), w.astype(np.float32), bias.astype(np.float32)


def gemm(isa: str, a: np.ndarray, w: np.ndarray, out: np.ndarray | None = None, **options) -> np.ndarray:
    if out is None:
        out = np.full((len(a), len(w)), np.nan, np.float32)
    kernels.gemm_f32(isa, a, _core.pack_f32(w), len(w), out, **options)
    return out


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_f32_is_the_sum_of_products(isa, m, n, k):
    a, w, bias = random_problem(m, n, k)
    exact = a.astype(np.float64) @ w.T.astype(np.float64) + bias
    # Higham 2002, sec. 3.1: a chain of k products and sums is off by at most about k eps times the sum of magnitudes.
    bound = (k + 2) * EPS * (np.abs(a).astype(np.float64) @ np.abs(w).T + np.abs(bias))
    assert (np.abs(gemm(isa, a, w, bias=bias) - exact) <= bound).all()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_f32_of_a_row_does_not_depend_on_the_other_rows(isa, m, n, k):
    a, w, bias = random_problem(m, n, k)
    together = gemm(isa, a, w, bias=bias)
    for row in range(0, m, 5):
        np.testing.assert_array_equal(gemm(isa, a[row : row + 1], w, bias=bias), together[row : row + 1])


@pytest.mark.parametrize("m", [1, 6, 16, 40])
def test_gemm_f32_of_panel_ranges_is_the_whole(isa, m):
    a, w, _ = random_problem(m, 16 * 29 + 3, 130)
    out = np.full((m, len(w)), np.nan, np.float32)
    for begin, end in ((17, 30), (0, 1), (1, 17)):
        gemm(isa, a, w, out, panel_begin=begin, panel_end=end)
    np.testing.assert_array_equal(out, gemm(isa, a, w))


@pytest.mark.parametrize("n", [1, 15, 17, 35])
@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_f32_writes_its_columns_and_nothing_else(isa, m, n):
    a, w, _ = random_problem(m, n, 36)
    out = np.full((m, n + 20), -7, np.float32)
    gemm(isa, a, w, out)
    np.testing.assert_array_equal(out[:, :n], gemm(isa, a, w))
    assert (out[:, n:] == -7).all()


@pytest.mark.parametrize("m", [1, 8, 16, 30])
def test_gemm_f32_reads_rows_that_lie_further_apart(isa, m):
    a, w, _ = random_problem(m, 33, 31)
    wide = np.full((m, 60), np.nan, np.float32)
    wide[:, :31] = a
    np.testing.assert_array_equal(gemm(isa, wide, w), gemm(isa, a, w))


@pytest.mark.parametrize("m", [1, 8, 33])
def test_gemm_f32_accumulates_onto_what_out_holds(isa, m):
    a, w, bias = random_problem(m, 37, 100)
    before = np.random.default_rng(1).standard_normal((m, 37)).astype(np.float32)
    out = before.copy()
    gemm(isa, a, w, out, bias=bias, accumulate=True)
    np.testing.assert_array_equal(out, before + gemm(isa, a, w, bias=bias))


def test_gemm_f32_keeps_a_nan_in_its_own_row_and_column(isa):
    a, w, _ = random_problem(9, 33, 64)
    clean = gemm(isa, a, w)
    a[4, 10] = np.nan
    w[20, 7] = np.nan
    got = gemm(isa, a, w)
    assert np.isnan(got[4]).all()
    assert np.isnan(got[:, 20]).all()
    untouched = np.ones(clean.shape, bool)
    untouched[4] = untouched[:, 20] = False
    np.testing.assert_array_equal(got[untouched], clean[untouched])
