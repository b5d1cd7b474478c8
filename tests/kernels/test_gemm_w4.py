"""gemm_w4 is bit for bit gemm_w8 of the weights that it stands for; what they share is in test_gemm.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from products import Groups, random_groups, random_product, w4_product, w8_product


@pytest.mark.parametrize("m", [*range(1, 27), 48, 60])
def test_gemm_w4_has_the_bits_of_gemm_w8_on_the_expanded_weights(isa, m):
    w4 = random_product("w4", m, 16 * 13 + 5, 200)
    w8 = w8_product(w4.weights, w4.a, w4.a_scale, w4.w_scale, w4.bias)
    np.testing.assert_array_equal(w4.run(isa), w8.run(isa))


@pytest.mark.parametrize(("scale", "minimum", "q"), [(16, -127, 15), (16, -113, 15), (1, 112, 15), (16, -127, 0)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("m", [1, 3, 9, 40])
def test_gemm_w4_does_not_saturate(isa, m, sign, scale, minimum, q):
    n, k = 40, 4096
    groups = Groups(
        np.full((n, k), q, np.uint8), np.full((n, k // 32), scale, np.uint8), np.full((n, k // 32), minimum, np.int8)
    )
    a = np.full((m, k), 127 * sign, np.int8)
    got = w4_product(groups, a, np.ones(m, np.float32), np.ones(n, np.float32)).run(isa)
    np.testing.assert_array_equal(got, np.full((m, n), sign * 127 * (scale * q + minimum) * k, np.float32))


@pytest.mark.parametrize("m", [1, 5, 30])
def test_what_lies_in_the_padding_of_a_w4_matrix_never_matters(isa, m):
    n, k = 19, 70
    product, wide = random_product("w4", m, n, k), random_groups(np.random.default_rng(1), 32, 128)
    groups = Groups(
        *(np.ascontiguousarray(part) for part in (wide.q[:n, :k], wide.scale[:n, :3], wide.minimum[:n, :3]))
    )
    poisoned = replace(product, weights=groups.expanded(), packed=wide.packed())
    np.testing.assert_array_equal(poisoned.run(isa), poisoned.expected()[0])
