"""A product of each layout of weights, with what it must be: the formula in NumPy, and how far a kernel may be off.

Both kinds have `shape` (m, n); `run`, the kernel's result, in `out` or in an array of NaNs, from rows of activations
that lie `extra` columns of poison further apart; `expected`, the result by the formula and the most that a kernel's may
differ from it; and `row`, the product of one row of activations alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from llm_decoder import _core

kernels = _core.kernels
EPS = float(np.finfo(np.float32).eps)
# m: one row, each kind of tile, one more than a tile, more than w4 multiplies as they lie. n: more than a group of
# panels. k: part of a step, of a group of weights, of a block; a full chunk and more.
SHAPES = (
    (1, 1, 1),
    (1, 31, 33),
    (1, 200, 2050),
    (2, 33, 127),
    (3, 127, 31),
    (4, 64, 96),
    (5, 16, 576),
    (6, 48, 576),
    (6, 80, 65),
    (7, 16, 3),
    (7, 48, 3),
    (8, 65, 128),
    (8, 70, 1537),
    (11, 33, 100),
    (11, 33, 1500),
    (12, 70, 192),
    (13, 31, 1030),
    (14, 31, 1030),
    (15, 17, 64),
    (16, 576, 1536),
    (24, 70, 192),
    (25, 33, 70),
    (28, 33, 300),
    (28, 210, 1100),
    (29, 40, 260),
    (29, 215, 2100),
    (31, 1, 127),
    (49, 33, 70),
    (127, 130, 577),
    (127, 230, 576),
)


@dataclass
class IntegerProduct:
    """a int8 [m, k], with scales, times weights int8 [n, k], which `gemm` reads as `packed`."""

    gemm: Callable[..., None]
    weights: np.ndarray
    packed: np.ndarray
    a: np.ndarray
    a_scale: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.weights)

    def run(self, isa: str, out: np.ndarray | None = None, *, extra: int = 0, **options) -> np.ndarray:
        (m, k), n = self.a.shape, len(self.weights)
        a = np.zeros((m, -(-k // 4) * 4 + extra), np.int8)
        a[:, :k] = self.a
        a[:, a.shape[1] - extra :] = 77
        a_sum = self.a.sum(axis=1, dtype=np.int32)
        out = np.full((m, n), np.nan, np.float32) if out is None else out
        self.gemm(isa, a, self.a_scale, a_sum, self.packed, self.w_scale, k, out, bias=self.bias, **options)
        return out

    def expected(self) -> tuple[np.ndarray, float]:
        """Exact sums, scaled in one order: to the bit."""
        sums = (self.a.astype(np.int64) @ self.weights.astype(np.int64).T).astype(np.float32)
        y = sums * (self.a_scale[:, None] * self.w_scale)
        return (y if self.bias is None else y + self.bias), 0.0

    def row(self, i: int) -> Self:
        return replace(self, a=self.a[i : i + 1], a_scale=self.a_scale[i : i + 1])


@dataclass
class FloatProduct:
    """a float32 [m, k] times weights float32 [n, k], which `gemm` reads as `packed`."""

    gemm: Callable[..., None]
    weights: np.ndarray
    packed: np.ndarray
    a: np.ndarray
    bias: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.a), len(self.weights)

    def run(self, isa: str, out: np.ndarray | None = None, *, extra: int = 0, **options) -> np.ndarray:
        a = self.a
        if extra:
            a = np.full((len(self.a), self.a.shape[1] + extra), np.nan, np.float32)
            a[:, : self.a.shape[1]] = self.a
        out = np.full(self.shape, np.nan, np.float32) if out is None else out
        self.gemm(isa, a, self.packed, len(self.weights), out, bias=self.bias, **options)
        return out

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        bias = np.zeros(len(self.weights)) if self.bias is None else self.bias
        a, w = self.a.astype(np.float64), self.weights.astype(np.float64)
        # Higham 2002, sec. 3.1: a chain of k products and sums is off by at most about k eps times the magnitudes' sum.
        bound = (a.shape[1] + 2) * EPS * (np.abs(a) @ np.abs(w).T + np.abs(bias))
        return a @ w.T + bias, bound

    def row(self, i: int) -> Self:
        return replace(self, a=self.a[i : i + 1])


@dataclass
class Groups:
    """What W4 stands for: group_scale * q + group_min, with q uint8 [n, k], the others [n, k / 32]."""

    q: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray

    def expanded(self) -> np.ndarray:
        """The int8 matrix [n, k]."""
        k = self.q.shape[1]
        scale, minimum = (np.repeat(x.astype(np.int16), 32, axis=1)[:, :k] for x in (self.scale, self.minimum))
        return (scale * self.q + minimum).astype(np.int8)

    def packed(self) -> np.ndarray:
        return _core.pack_w4(self.q, self.scale, self.minimum)


def random_groups(rng: np.random.Generator, n: int, k: int) -> Groups:
    scale = rng.integers(1, 17, (n, -(-k // 32)), np.uint8)
    minimum = rng.integers(-127, 128 - 15 * scale.astype(int)).astype(np.int8)
    return Groups(rng.integers(0, 16, (n, k), np.uint8), scale, minimum)


def w8_product(
    weights: np.ndarray, a: np.ndarray, a_scale: np.ndarray, w_scale: np.ndarray, bias=None
) -> IntegerProduct:
    return IntegerProduct(kernels.gemm_w8, weights, _core.pack_w8(weights), a, a_scale, w_scale, bias)


def w4_product(groups: Groups, a: np.ndarray, a_scale: np.ndarray, w_scale: np.ndarray, bias=None) -> IntegerProduct:
    return IntegerProduct(kernels.gemm_w4, groups.expanded(), groups.packed(), a, a_scale, w_scale, bias)


def f32_product(weights: np.ndarray, a: np.ndarray, bias=None) -> FloatProduct:
    return FloatProduct(kernels.gemm_f32, weights, _core.pack_f32(weights), a, bias)


def bf16_product(weights: np.ndarray, a: np.ndarray, bias=None) -> FloatProduct:
    """Of each weight the upper half of its bits."""
    kept = (weights.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return FloatProduct(kernels.gemm_bf16, kept, _core.pack_bf16(kept), a, bias)


FLOAT_PRODUCTS = {"f32": f32_product, "bf16": bf16_product}
INTEGER_LAYOUTS, FLOAT_LAYOUTS = ("w8", "w4"), tuple(FLOAT_PRODUCTS)


def random_product(layout: str, m: int, n: int, k: int, *, bias: bool = True) -> IntegerProduct | FloatProduct:
    rng = np.random.default_rng([m, n, k])
    b = rng.standard_normal(n).astype(np.float32) if bias else None
    if layout in FLOAT_PRODUCTS:
        a, weights = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (m, n))
        return FLOAT_PRODUCTS[layout](weights, a, b)
    a = rng.integers(-127, 128, (m, k), np.int8)
    a_scale, w_scale = (rng.uniform(1e-3, 1e-1, size).astype(np.float32) for size in (m, n))
    if layout == "w8":
        return w8_product(rng.integers(-127, 128, (n, k), np.int8), a, a_scale, w_scale, b)
    return w4_product(random_groups(rng, n, k), a, a_scale, w_scale, b)
