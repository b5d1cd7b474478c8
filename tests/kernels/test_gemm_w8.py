"""gemm_w8 against int64 sums, and bit for bit against itself on every ISA and for every way of splitting the work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
# m: one row, each kind of tile, one more than a tile. n: more than a group. k: part of a step, a full chunk and more.
SHAPES = (
    (1, 1, 1),
    (1, 31, 33),
    (1, 200, 2050),
    (2, 33, 127),
    (3, 127, 31),
    (5, 16, 576),
    (7, 48, 3),
    (8, 65, 128),
    (14, 31, 1030),
    (11, 33, 1500),
    (15, 17, 64),
    (16, 576, 1536),
    (28, 210, 1100),
    (29, 215, 2100),
    (31, 1, 127),
    (127, 130, 576),
)


@dataclass
class Problem:
    """q ~ int8 in [-127, 127]; `a` is wider than k by its padding to 4 and by `a_extra` columns of garbage."""

    a: np.ndarray
    w: np.ndarray
    a_scale: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray | None = None
    a_extra: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.w)

    def run(self, isa: str, out: np.ndarray | None = None, **options) -> np.ndarray:
        m, n = self.shape
        k = self.a.shape[1]
        a = np.zeros((m, -(-k // 4) * 4 + self.a_extra), np.int8)
        a[:, :k] = self.a
        a[:, a.shape[1] - self.a_extra :] = 77
        a_sum = self.a.sum(axis=1, dtype=np.int32)
        if out is None:
            out = np.full((m, n), np.nan, np.float32)
        kernels.gemm_w8(
            isa, a, self.a_scale, a_sum, _core.pack_w8(self.w), self.w_scale, k, out, bias=self.bias, **options
        )
        return out

    def expected(self) -> np.ndarray:
        sums = (self.a.astype(np.int64) @ self.w.T.astype(np.int64)).astype(np.float32)
        y = sums * (self.a_scale[:, None] * self.w_scale)
        return y if self.bias is None else y + self.bias


def random_problem(m: int, n: int, k: int, bias: bool = True, a_extra: int = 0) -> Problem:
    rng = np.random.default_rng([m, n, k])
    return Problem(
        rng.integers(-127, 128, (m, k), np.int8),
        rng.integers(-127, 128, (n, k), np.int8),
        rng.uniform(1e-3, 1e-1, m).astype(np.float32),
        rng.uniform(1e-3, 1e-1, n).astype(np.float32),
        rng.standard_normal(n).astype(np.float32) if bias else None,
        a_extra,
    )


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_w8_is_the_exact_sum_scaled_in_one_order(isa, m, n, k):
    problem = random_problem(m, n, k)
    np.testing.assert_array_equal(problem.run(isa), problem.expected())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [4, 1024, 8192])
def test_gemm_w8_does_not_saturate(isa, sign, k):
    a = np.full((9, k), 127 * sign, np.int8)
    w = np.full((40, k), 127, np.int8)
    w[::2] = -127
    ones = np.ones(40, np.float32)
    problem = Problem(a, w, ones[:9], ones)
    exact = np.where(np.arange(40) % 2 == 0, -1, 1) * sign * 127 * 127 * k
    np.testing.assert_array_equal(problem.run(isa), np.broadcast_to(exact.astype(np.float32), (9, 40)))


def test_gemm_w8_adds_neighbours_of_opposite_extremes_exactly(isa):
    a = np.tile(np.array([127, 127, -127, 127], np.int8), (5, 16))
    w = np.tile(np.array([127, 127, 127, -127], np.int8), (33, 16))
    problem = Problem(a, w, np.ones(5, np.float32), np.ones(33, np.float32))
    np.testing.assert_array_equal(problem.run(isa), np.zeros((5, 33), np.float32))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_w8_of_a_row_does_not_depend_on_the_other_rows(isa, m, n, k):
    problem = random_problem(m, n, k)
    together = problem.run(isa)
    for row in range(0, m, 5):
        one = slice(row, row + 1)
        alone = Problem(problem.a[one], problem.w, problem.a_scale[one], problem.w_scale, problem.bias)
        np.testing.assert_array_equal(alone.run(isa), together[one])


@pytest.mark.parametrize("m", [1, 6, 16, 40])
def test_gemm_w8_of_panel_ranges_is_the_whole(isa, m):
    problem = random_problem(m, 16 * 29 + 3, 130)
    out = np.full(problem.shape, np.nan, np.float32)
    for begin, end in ((17, 30), (0, 1), (1, 17)):
        problem.run(isa, out, panel_begin=begin, panel_end=end)
    np.testing.assert_array_equal(out, problem.run(isa))


@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_w8_writes_its_panels_and_nothing_else(isa, m):
    problem = random_problem(m, 35, 36)
    out = np.full((m, 50), -7, np.float32)
    problem.run(isa, out, panel_begin=1, panel_end=3)
    np.testing.assert_array_equal(out[:, 16:35], problem.expected()[:, 16:])
    assert (out[:, :16] == -7).all()
    assert (out[:, 35:] == -7).all()


@pytest.mark.parametrize("m", [1, 8, 16, 30])
def test_gemm_w8_reads_rows_that_lie_further_apart(isa, m):
    problem = random_problem(m, 33, 31, a_extra=52)
    np.testing.assert_array_equal(problem.run(isa), problem.expected())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 8, 33])
def test_gemm_w8_accumulates_onto_what_out_holds(isa, m, bias):
    problem = random_problem(m, 37, 100, bias=bias)
    before = np.random.default_rng(1).standard_normal(problem.shape).astype(np.float32)
    out = before.copy()
    problem.run(isa, out, accumulate=True)
    np.testing.assert_array_equal(out, before + problem.expected())


def test_gemm_w8_refuses_an_activation_row_that_is_too_short(isa):
    w = _core.pack_w8(np.zeros((16, 5), np.int8))
    a, out = np.zeros((1, 5), np.int8), np.zeros((1, 16), np.float32)
    one, sums = np.ones(1, np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="at least 8 columns, got 5"):
        kernels.gemm_w8(isa, a, one, sums, w, np.ones(16, np.float32), 5, out)
