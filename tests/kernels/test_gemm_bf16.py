"""gemm_bf16 is bit for bit gemm_f32 of the weights that it stands for; what they share is in test_gemm.py."""

from __future__ import annotations

import numpy as np
import pytest
from products import SHAPES, f32_product, random_product


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_bf16_has_the_bits_of_gemm_f32_on_the_widened_weights(isa, m, n, k):
    bf16 = random_product("bf16", m, n, k)
    f32 = f32_product(bf16.weights, bf16.a, bf16.bias)
    np.testing.assert_array_equal(bf16.run(isa), f32.run(isa))


@pytest.mark.parametrize("m", range(1, 34))
def test_gemm_bf16_has_the_bits_of_gemm_f32_for_every_number_of_rows(isa, m):
    bf16 = random_product("bf16", m, 16 * 13 + 5, 67, bias=False)
    np.testing.assert_array_equal(bf16.run(isa), f32_product(bf16.weights, bf16.a).run(isa))
