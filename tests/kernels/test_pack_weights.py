"""The packed layouts are a file format: written out here as NumPy transposes."""

from __future__ import annotations

import numpy as np
import pytest

from llm_decoder import _core

SIZES = ((1, 1), (3, 31), (16, 33), (31, 3), (33, 127), (127, 64), (130, 576))


def padded(w: np.ndarray, k_multiple: int) -> np.ndarray:
    """Zero rows up to a multiple of 16, zero columns up to a multiple of `k_multiple`."""
    n, k = w.shape
    return np.pad(w, ((0, -n % 16), (0, -k % k_multiple)))


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_pack_f32_lays_panels_of_16_channels_k_by_k(n, k):
    w = np.random.default_rng(k).standard_normal((n, k)).astype(np.float32)
    expected = padded(w, 1).reshape(-1, 16, k).transpose(0, 2, 1)
    np.testing.assert_array_equal(_core.pack_f32(w), expected.ravel())


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_pack_w8_lays_panels_of_16_channels_four_k_by_four_k_biased_by_128(n, k):
    q = np.random.default_rng(k).integers(-127, 128, (n, k), np.int8)
    quads = padded(q, 4).reshape(-1, 16, -(-k // 4), 4).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(_core.pack_w8(q), (quads.astype(np.int16) + 128).astype(np.uint8).ravel())


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_unpack_w8_undoes_pack_w8(n, k):
    q = np.random.default_rng(k).integers(-127, 128, (n, k), np.int8)
    np.testing.assert_array_equal(_core.unpack_w8(_core.pack_w8(q), n, k), q)


def test_packed_matrices_are_aligned_for_the_decoder():
    w = np.ones((5, 7), np.float32)
    assert _core.pack_f32(w).ctypes.data % 64 == 0
    assert _core.pack_w8(w.astype(np.int8)).ctypes.data % 64 == 0


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_quantize_weight_rows_matches_the_formula(n, k):
    rng = np.random.default_rng(k)
    w = (rng.standard_normal((n, k)) * 10.0 ** rng.integers(-20, 20, (n, 1))).astype(np.float32)
    q, scale = _core.quantize_weight_rows(w)
    expected_scale = np.abs(w).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(q, np.rint(w / expected_scale[:, None]).astype(np.int8))


def test_quantize_weight_rows_rounds_ties_to_even():
    w = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    q, scale = _core.quantize_weight_rows(w)
    assert scale[0] == 1
    assert q[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


def test_quantize_weight_rows_gives_a_row_of_zeros_scale_1():
    q, scale = _core.quantize_weight_rows(np.zeros((2, 9), np.float32))
    assert scale.tolist() == [1, 1]
    assert not q.any()


def test_quantize_weight_rows_keeps_the_smallest_floats_in_range():
    tiny = np.float32(1e-45)
    q, scale = _core.quantize_weight_rows(np.array([[tiny, 0], [190 * tiny, -190 * tiny]], np.float32))
    assert (scale > 0).all()
    assert np.abs(q.astype(np.int32)).max() <= 127


def test_quantize_weight_rows_shows_a_value_that_is_not_finite_in_the_scale_of_its_row():
    w = np.ones((3, 20), np.float32)
    w[0, 7], w[1, 7] = np.nan, np.inf
    _, scale = _core.quantize_weight_rows(w)
    assert np.isfinite(scale).tolist() == [False, False, True]
