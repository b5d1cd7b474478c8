"""gemm_w8 at the extremes of int8; what it shares with the other layouts is in test_gemm.py."""

from __future__ import annotations

import numpy as np
import pytest
from products import w8_product


def ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [4, 1024, 8192])
def test_gemm_w8_does_not_saturate(isa, sign, k):
    a = np.full((9, k), 127 * sign, np.int8)
    w = np.full((40, k), 127, np.int8)
    w[::2] = -127
    exact = np.where(np.arange(40) % 2 == 0, -1, 1) * sign * 127 * 127 * k
    got = w8_product(w, a, ones(9), ones(40)).run(isa)
    np.testing.assert_array_equal(got, np.broadcast_to(exact.astype(np.float32), (9, 40)))


def test_gemm_w8_adds_neighbours_of_opposite_extremes_exactly(isa):
    a = np.tile(np.array([127, 127, -127, 127], np.int8), (5, 16))
    w = np.tile(np.array([127, 127, 127, -127], np.int8), (33, 16))
    got = w8_product(w, a, ones(5), ones(33)).run(isa)
    np.testing.assert_array_equal(got, np.zeros((5, 33), np.float32))
