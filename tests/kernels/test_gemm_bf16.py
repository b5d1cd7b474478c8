"""gemm_bf16 against gemm_f32 of the weights that it stands for: bit for bit, on every ISA."""

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
    (8, 70, 1537),
    (14, 31, 1030),
    (16, 576, 1536),
    (28, 33, 300),
    (29, 40, 260),
    (127, 130, 577),
)


def random_problem(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, w, bias; a bfloat16 has the upper half of the bits of each weight."""
    rng = np.random.default_rng([m, n, k])
    a, w, bias = rng.standard_normal((m, k)), rng.standard_normal((n, k)), rng.standard_normal(n)
    return a.astype(np.float32), as_bfloat16(w.astype(np.float32)), bias.astype(np.float32)


def as_bfloat16(w: np.ndarray) -> np.ndarray:
    return (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def empty(m: int, n: int) -> np.ndarray:
    return np.full((m, n), np.nan, np.float32)


def gemm(isa: str, a: np.ndarray, w: np.ndarray, out: np.ndarray | None = None, **options) -> np.ndarray:
    out = empty(len(a), len(w)) if out is None else out
    kernels.gemm_bf16(isa, a, _core.pack_bf16(w), len(w), out, **options)
    return out


def gemm_f32(isa: str, a: np.ndarray, w: np.ndarray, out: np.ndarray | None = None, **options) -> np.ndarray:
    out = empty(len(a), len(w)) if out is None else out
    kernels.gemm_f32(isa, a, _core.pack_f32(w), len(w), out, **options)
    return out


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_bf16_has_the_bits_of_gemm_f32_on_the_widened_weights(isa, m, n, k):
    a, w, bias = random_problem(m, n, k)
    np.testing.assert_array_equal(gemm(isa, a, w, bias=bias), gemm_f32(isa, a, w, bias=bias))


@pytest.mark.parametrize("m", range(1, 34))
def test_gemm_bf16_has_the_bits_of_gemm_f32_for_every_number_of_rows(isa, m):
    a, w, _ = random_problem(m, 16 * 13 + 5, 67)
    np.testing.assert_array_equal(gemm(isa, a, w), gemm_f32(isa, a, w))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_bf16_of_a_row_does_not_depend_on_the_other_rows(isa, m, n, k):
    a, w, bias = random_problem(m, n, k)
    together = gemm(isa, a, w, bias=bias)
    for row in range(0, m, 5):
        np.testing.assert_array_equal(gemm(isa, a[row : row + 1], w, bias=bias), together[row : row + 1])


@pytest.mark.parametrize("m", [1, 6, 16, 40])
def test_gemm_bf16_of_panel_ranges_is_the_whole(isa, m):
    a, w, _ = random_problem(m, 16 * 29 + 3, 131)
    out = empty(m, len(w))
    for begin, end in ((17, 30), (0, 1), (1, 17)):
        gemm(isa, a, w, out, panel_begin=begin, panel_end=end)
    np.testing.assert_array_equal(out, gemm(isa, a, w))


@pytest.mark.parametrize("n", [1, 15, 17, 35])
@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_bf16_writes_its_columns_and_nothing_else(isa, m, n):
    a, w, _ = random_problem(m, n, 36)
    out = np.full((m, n + 20), -7, np.float32)
    gemm(isa, a, w, out)
    np.testing.assert_array_equal(out[:, :n], gemm(isa, a, w))
    assert (out[:, n:] == -7).all()


@pytest.mark.parametrize("m", [1, 8, 33])
def test_gemm_bf16_reads_rows_that_lie_further_apart_and_adds_to_what_out_holds(isa, m):
    a, w, bias = random_problem(m, 37, 101)
    wide = np.full((m, 160), np.nan, np.float32)
    wide[:, :101] = a
    before = np.random.default_rng(1).standard_normal((m, 37)).astype(np.float32)
    out = before.copy()
    gemm(isa, wide, w, out, bias=bias, accumulate=True)
    np.testing.assert_array_equal(out, before + gemm(isa, a, w, bias=bias))


def test_gemm_bf16_keeps_a_nan_in_its_own_row_and_column(isa):
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
