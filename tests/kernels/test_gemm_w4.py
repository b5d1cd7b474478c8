"""gemm_w4 is bit for bit gemm_w8 of the weights that it stands for: on every ISA, for every split of the work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels
# m: one row, each kind of tile, one more than the rows that are multiplied as they lie. k: part of a step, of a group,
# of a block, and whole ones.
SHAPES = (
    (1, 1, 1),
    (1, 31, 33),
    (1, 200, 2050),
    (2, 33, 127),
    (3, 127, 31),
    (4, 64, 96),
    (5, 16, 576),
    (6, 80, 65),
    (7, 48, 3),
    (8, 65, 128),
    (11, 33, 100),
    (12, 70, 192),
    (24, 70, 192),
    (25, 33, 70),
    (49, 33, 70),
    (13, 31, 1030),
    (16, 576, 1536),
    (29, 40, 260),
    (31, 1, 127),
    (127, 230, 576),
)


@dataclass
class Problem:
    """Activations int8 [m, k]; weights group_scale * q + group_min. `a` is wider than k by its padding to 4 and by
    `a_extra` columns of garbage."""

    a: np.ndarray
    q: np.ndarray
    group_scale: np.ndarray
    group_min: np.ndarray
    a_scale: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray | None = None
    a_extra: int = 0

    @property
    def weights(self) -> np.ndarray:
        """The int8 matrix [n, k] that it stands for, as int64."""
        k = self.q.shape[1]
        scale, minimum = (np.repeat(x.astype(np.int64), 32, axis=1)[:, :k] for x in (self.group_scale, self.group_min))
        return scale * self.q + minimum

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.q)

    def packed(self) -> np.ndarray:
        return _core.pack_w4(self.q, self.group_scale, self.group_min)

    def run(self, isa: str, out: np.ndarray | None = None, packed: np.ndarray | None = None, **options) -> np.ndarray:
        packed = self.packed() if packed is None else packed
        return self._call(kernels.gemm_w4, isa, packed, out, **options)

    def run_as_w8(self, isa: str) -> np.ndarray:
        return self._call(kernels.gemm_w8, isa, _core.pack_w8(self.weights.astype(np.int8)), None)

    def _call(self, gemm, isa: str, w: np.ndarray, out: np.ndarray | None, **options) -> np.ndarray:
        m, n = self.shape
        k = self.a.shape[1]
        a = np.zeros((m, -(-k // 4) * 4 + self.a_extra), np.int8)
        a[:, :k] = self.a
        a[:, a.shape[1] - self.a_extra :] = 77
        out = np.full((m, n), np.nan, np.float32) if out is None else out
        a_sum = self.a.sum(axis=1, dtype=np.int32)
        gemm(isa, a, self.a_scale, a_sum, w, self.w_scale, k, out, bias=self.bias, **options)
        return out

    def expected(self) -> np.ndarray:
        sums = (self.a.astype(np.int64) @ self.weights.T).astype(np.float32)
        y = sums * (self.a_scale[:, None] * self.w_scale)
        return y if self.bias is None else y + self.bias


def random_problem(m: int, n: int, k: int, bias: bool = True, a_extra: int = 0) -> Problem:
    rng = np.random.default_rng([m, n, k])
    group_scale = rng.integers(1, 17, (n, -(-k // 32)), np.uint8)
    return Problem(
        rng.integers(-127, 128, (m, k), np.int8),
        rng.integers(0, 16, (n, k), np.uint8),
        group_scale,
        rng.integers(-127, 128 - 15 * group_scale.astype(int)).astype(np.int8),
        rng.uniform(1e-3, 1e-1, m).astype(np.float32),
        rng.uniform(1e-3, 1e-1, n).astype(np.float32),
        rng.standard_normal(n).astype(np.float32) if bias else None,
        a_extra,
    )


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_w4_is_the_exact_sum_scaled_in_one_order(isa, m, n, k):
    problem = random_problem(m, n, k)
    np.testing.assert_array_equal(problem.run(isa), problem.expected())


@pytest.mark.parametrize("m", [*range(1, 27), 48, 60])
def test_gemm_w4_has_the_bits_of_gemm_w8_on_the_expanded_weights(isa, m):
    problem = random_problem(m, 16 * 13 + 5, 200)
    np.testing.assert_array_equal(problem.run(isa), problem.run_as_w8(isa))


@pytest.mark.parametrize(("scale", "minimum", "q"), [(16, -127, 15), (16, -113, 15), (1, 112, 15), (16, -127, 0)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("m", [1, 3, 9, 40])
def test_gemm_w4_does_not_saturate(isa, m, sign, scale, minimum, q):
    n, k = 40, 4096
    groups = np.ones((n, k // 32))
    problem = Problem(
        np.full((m, k), 127 * sign, np.int8),
        np.full((n, k), q, np.uint8),
        (groups * scale).astype(np.uint8),
        (groups * minimum).astype(np.int8),
        np.ones(m, np.float32),
        np.ones(n, np.float32),
    )
    np.testing.assert_array_equal(problem.run(isa), np.full((m, n), sign * 127 * (scale * q + minimum) * k, np.float32))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_w4_of_a_row_does_not_depend_on_the_other_rows(isa, m, n, k):
    problem = random_problem(m, n, k)
    together = problem.run(isa)
    for row in range(0, m, 5):
        one = slice(row, row + 1)
        alone = Problem(
            problem.a[one],
            problem.q,
            problem.group_scale,
            problem.group_min,
            problem.a_scale[one],
            problem.w_scale,
            problem.bias,
        )
        np.testing.assert_array_equal(alone.run(isa), together[one])


@pytest.mark.parametrize("m", [1, 6, 12, 16, 40])
def test_gemm_w4_of_panel_ranges_is_the_whole(isa, m):
    problem = random_problem(m, 16 * 29 + 3, 130)
    out = np.full(problem.shape, np.nan, np.float32)
    for begin, end in ((17, 30), (0, 1), (1, 17)):
        problem.run(isa, out, panel_begin=begin, panel_end=end)
    np.testing.assert_array_equal(out, problem.run(isa))


@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_w4_writes_its_panels_and_nothing_else(isa, m):
    problem = random_problem(m, 35, 36)
    out = np.full((m, 50), -7, np.float32)
    problem.run(isa, out, panel_begin=1, panel_end=3)
    np.testing.assert_array_equal(out[:, 16:35], problem.expected()[:, 16:])
    assert (out[:, :16] == -7).all()
    assert (out[:, 35:] == -7).all()


@pytest.mark.parametrize("m", [1, 8, 16, 30])
def test_gemm_w4_reads_rows_that_lie_further_apart(isa, m):
    problem = random_problem(m, 33, 31, a_extra=52)
    np.testing.assert_array_equal(problem.run(isa), problem.expected())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 8, 33])
def test_gemm_w4_accumulates_onto_what_out_holds(isa, m, bias):
    problem = random_problem(m, 37, 100, bias=bias)
    before = np.random.default_rng(1).standard_normal(problem.shape).astype(np.float32)
    out = before.copy()
    problem.run(isa, out, accumulate=True)
    np.testing.assert_array_equal(out, before + problem.expected())


@pytest.mark.parametrize("m", [1, 5, 30])
def test_what_lies_in_the_padding_of_a_w4_matrix_never_matters(isa, m):
    n, k = 19, 70
    problem = random_problem(m, n, k)
    ones = random_problem(1, 32, 128)
    ones.q[:n, :k], ones.group_scale[:n, :3], ones.group_min[:n, :3] = problem.q, problem.group_scale, problem.group_min
    np.testing.assert_array_equal(problem.run(isa, packed=ones.packed()), problem.expected())


def test_gemm_w4_refuses_an_activation_row_that_is_too_short(isa):
    problem = random_problem(1, 16, 5)
    a, out = np.zeros((1, 5), np.int8), np.zeros((1, 16), np.float32)
    one, sums = np.ones(1, np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="at least 8 columns, got 5"):
        kernels.gemm_w4(isa, a, one, sums, problem.packed(), np.ones(16, np.float32), 5, out)
