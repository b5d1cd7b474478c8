"""Every layout's product is the sum of products, and bit for bit the same for every way of splitting the work."""

from __future__ import annotations

import numpy as np
import pytest
from products import FLOAT_LAYOUTS, FLOAT_PRODUCTS, INTEGER_LAYOUTS, SHAPES, random_product


@pytest.fixture(params=[*INTEGER_LAYOUTS, *FLOAT_LAYOUTS])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_is_expected(product, got, columns=slice(None)):
    exact, bound = product.expected()
    assert (np.abs(got - exact[:, columns]) <= np.broadcast_to(bound, exact.shape)[:, columns]).all()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_is_the_sum_of_products(isa, layout, m, n, k):
    product = random_product(layout, m, n, k)
    assert_is_expected(product, product.run(isa))


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_of_a_row_does_not_depend_on_the_other_rows(isa, layout, m, n, k):
    product = random_product(layout, m, n, k)
    together = product.run(isa)
    for i in range(0, m, 5):
        np.testing.assert_array_equal(product.row(i).run(isa), together[i : i + 1])


@pytest.mark.parametrize("m", [1, 6, 12, 16, 40])
def test_gemm_of_panel_ranges_is_the_whole(isa, layout, m):
    product = random_product(layout, m, 16 * 29 + 3, 131)
    out = np.full(product.shape, np.nan, np.float32)
    for begin, end in ((17, 30), (0, 1), (1, 17)):
        product.run(isa, out, panel_begin=begin, panel_end=end)
    np.testing.assert_array_equal(out, product.run(isa))


@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_writes_its_panels_and_nothing_else(isa, layout, m):
    product = random_product(layout, m, 35, 36)
    out = np.full((m, 50), -7, np.float32)
    product.run(isa, out, panel_begin=1, panel_end=3)
    np.testing.assert_array_equal(out[:, 16:35], product.run(isa)[:, 16:])
    assert_is_expected(product, out[:, 16:35], slice(16, 35))
    assert (out[:, :16] == -7).all()
    assert (out[:, 35:] == -7).all()


@pytest.mark.parametrize("n", [1, 15, 17, 35])
@pytest.mark.parametrize("m", [1, 4, 9, 20, 33])
def test_gemm_writes_its_columns_and_nothing_else(isa, layout, m, n):
    product = random_product(layout, m, n, 36, bias=False)
    out = np.full((m, n + 20), -7, np.float32)
    product.run(isa, out)
    np.testing.assert_array_equal(out[:, :n], product.run(isa))
    assert (out[:, n:] == -7).all()


@pytest.mark.parametrize("m", [1, 8, 16, 30])
def test_gemm_reads_rows_that_lie_further_apart(isa, layout, m):
    product = random_product(layout, m, 33, 31)
    got = product.run(isa, extra=52)
    np.testing.assert_array_equal(got, product.run(isa))
    assert_is_expected(product, got)


@pytest.mark.parametrize("extra", [0, 59])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("m", [1, 8, 33])
def test_gemm_accumulates_onto_what_out_holds(isa, layout, m, bias, extra):
    product = random_product(layout, m, 37, 101, bias=bias)
    before = np.random.default_rng(1).standard_normal(product.shape).astype(np.float32)
    out = before.copy()
    product.run(isa, out, accumulate=True, extra=extra)
    alone = product.run(isa)
    np.testing.assert_array_equal(out, before + alone)
    assert_is_expected(product, alone)


@pytest.mark.parametrize("layout", FLOAT_LAYOUTS)
def test_gemm_keeps_a_nan_in_its_own_row_and_column(isa, layout):
    product = random_product(layout, 9, 33, 64, bias=False)
    clean, weights, a = product.run(isa), product.weights.copy(), product.a.copy()
    a[4, 10] = weights[20, 7] = np.nan
    got = FLOAT_PRODUCTS[layout](weights, a).run(isa)
    assert np.isnan(got[4]).all()
    assert np.isnan(got[:, 20]).all()
    untouched = np.ones(clean.shape, bool)
    untouched[4] = untouched[:, 20] = False
    np.testing.assert_array_equal(got[untouched], clean[untouched])


@pytest.mark.parametrize("layout", INTEGER_LAYOUTS)
def test_gemm_refuses_an_activation_row_that_is_too_short(isa, layout):
    product = random_product(layout, 1, 16, 5)
    a, out = np.zeros((1, 5), np.int8), np.zeros((1, 16), np.float32)
    one, sums = np.ones(1, np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="at least 8 columns, got 5"):
        product.gemm(isa, a, one, sums, product.packed, np.ones(16, np.float32), 5, out)
