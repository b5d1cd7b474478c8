"""The packed layouts are a file format: written out here as NumPy transposes."""

from __future__ import annotations

import numpy as np
import pytest

from llm_decoder import _core
from llm_decoder.embedded import embedded_model
from llm_decoder.model_config import weight_shapes
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

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
def test_pack_bf16_lays_the_upper_halves_of_the_floats_as_pack_f32_does(n, k):
    w = np.random.default_rng(k).standard_normal((n, k)).astype(np.float32)
    w = (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    np.testing.assert_array_equal(_core.pack_bf16(w), _core.pack_f32(w).view(np.uint32) >> 16)


def test_pack_bf16_rounds_to_the_nearest_ties_to_even_and_keeps_a_nan():
    one, step = 0x3F80, 1 << 16
    bits = [one << 16, (one << 16) + step // 2 - 1, (one << 16) + step // 2, (one << 16) + step // 2 + 1]
    bits += [((one + 1) << 16) + step // 2, 0x80000000, 0x7F7FFFFF, 0xFF800000, 0x7F800001]
    packed = _core.pack_bf16(np.array([bits], np.uint32).view(np.float32)).reshape(len(bits), 16)[:, 0]
    assert packed[:-1].tolist() == [one, one, one, one + 1, one + 2, 0x8000, 0x7F80, 0xFF80]
    assert packed[-1] & 0x7FFF > 0x7F80


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
    assert _core.pack_bf16(w).ctypes.data % 64 == 0
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


def random_groups(n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q [n, k], group_scale and group_min [n, ceil(k / 32)], with all weights in +-127."""
    rng = np.random.default_rng([n, k])
    group_scale = rng.integers(1, 17, (n, -(-k // 32)), np.uint8)
    group_min = rng.integers(-127, 128 - 15 * group_scale.astype(np.int16)).astype(np.int8)
    return rng.integers(0, 16, (n, k), np.uint8), group_scale, group_min


def expanded(q: np.ndarray, group_scale: np.ndarray, group_min: np.ndarray) -> np.ndarray:
    k = q.shape[1]
    scale, minimum = (np.repeat(values.astype(np.int64), 32, axis=1)[:, :k] for values in (group_scale, group_min))
    return scale * q + minimum


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_pack_w4_lays_blocks_of_64_inputs_pairs_first_then_nibbles(n, k):
    q, group_scale, group_min = random_groups(n, k)
    n_blocks = -(-k // 64)
    pairs = np.zeros((-(-n // 16) * 16, n_blocks * 2, 2), np.uint8)
    pairs[:n, : group_scale.shape[1], 0] = group_scale
    pairs[:n, : group_scale.shape[1], 1] = group_min.astype(np.int16) + 128
    pairs = pairs.reshape(-1, 16, n_blocks, 2, 2).transpose(0, 2, 3, 1, 4)  # [panel, block, group, channel, 2]
    # [panel, channel, block, group, line, half, 4] -> [panel, block, group, line, channel, 4, half]
    nibbles = padded(q, 64).reshape(-1, 16, n_blocks, 2, 4, 2, 4).transpose(0, 2, 3, 4, 1, 6, 5)
    values = nibbles[..., 0] | nibbles[..., 1] << 4
    expected = np.concatenate([part.reshape(*part.shape[:2], -1) for part in (pairs, values)], axis=2)
    np.testing.assert_array_equal(_core.pack_w4(q, group_scale, group_min), expected.ravel())


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_expand_w4_gives_the_int8_matrix_that_pack_w4_was_given(n, k):
    groups = random_groups(n, k)
    np.testing.assert_array_equal(_core.expand_w4(_core.pack_w4(*groups), n, k), expanded(*groups))


def test_w4_takes_at_most_4_65_bits_a_weight():
    n, k = 160, 2048
    assert (_core.pack_w4(*random_groups(n, k)).nbytes + 4 * n) * 8 / (n * k) <= 4.65


def relative_error(w: np.ndarray, found: np.ndarray) -> float:
    return float(((w - found) ** 2).sum() / (w**2).sum())


def rounded_to_nearest(w: np.ndarray) -> np.ndarray:
    """4 bits as usual: groups of 32 from their minimum to their maximum, both kept as float16."""
    groups = w.reshape(-1, 32)
    low = groups.min(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    step = ((groups.max(axis=1, keepdims=True) - low) / 15).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint((groups - low) / step), 0, 15) * step + low).reshape(w.shape)


def searched(w: np.ndarray) -> np.ndarray:
    *groups, scale = _core.quantize_weight_groups(w)
    return (expanded(*groups) * scale[:, None]).astype(np.float32)


@pytest.mark.parametrize("k", [64, 576, 2048])
def test_quantize_weight_groups_beats_rounding_to_nearest_on_random_weights(k):
    w = np.random.default_rng(k).standard_normal((64, k)).astype(np.float32)
    assert relative_error(w, searched(w)) < 0.92 * relative_error(w, rounded_to_nearest(w))


def test_quantize_weight_groups_beats_rounding_to_nearest_on_every_matrix_of_the_embedded_model():
    checkpoint = SafetensorsCheckpoint(embedded_model())
    for name, shape in weight_shapes(checkpoint.config).items():
        if len(shape) == 2 and name != "embedding":
            w = checkpoint.read(name)
            assert relative_error(w, searched(w)) < 0.95 * relative_error(w, rounded_to_nearest(w)), name


@pytest.mark.parametrize("deviation", [0.3, 3.0, 12.0])
def test_quantize_weight_groups_comes_near_the_best_of_all_scales_and_minima(deviation):
    rng = np.random.default_rng(3)
    w = np.clip(rng.standard_normal((8, 64)) * deviation, -127, 127).astype(np.float32)
    w[:, 0] = 127  # the scale of every row is 1
    best = np.full((8, 2), np.inf)
    for scale in range(1, 17):
        for minimum in range(-127, 128 - 15 * scale):
            q = np.clip(np.rint((w - minimum) / scale), 0, 15)
            best = np.minimum(best, ((w - q * scale - minimum) ** 2).reshape(8, 2, 32).sum(axis=2))
    error = ((w - searched(w)) ** 2).reshape(8, 2, 32).sum(axis=2)
    assert error.sum() <= 1.05 * best.sum()


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_quantize_weight_groups_keeps_weights_in_range_and_the_scale_of_int8(n, k):
    rng = np.random.default_rng(k)
    w = (rng.standard_normal((n, k)) * 10.0 ** rng.integers(-20, 20, (n, 1))).astype(np.float32)
    q, group_scale, group_min, scale = _core.quantize_weight_groups(w)
    np.testing.assert_array_equal(scale, _core.quantize_weight_rows(w)[1])
    assert q.max(initial=0) <= 15
    assert (group_scale >= 1).all()
    assert np.abs(expanded(q, group_scale, group_min)).max(initial=0) <= 127


def test_quantize_weight_groups_of_a_row_does_not_depend_on_the_other_rows():
    w = np.random.default_rng(0).standard_normal((5, 200)).astype(np.float32)
    together = _core.quantize_weight_groups(w)
    for row in range(5):
        alone = _core.quantize_weight_groups(w[row : row + 1])
        assert all((one[0] == all_[row]).all() for one, all_ in zip(alone, together, strict=True))


def test_quantize_weight_groups_keeps_zeros_and_constant_groups_exact():
    w = np.zeros((3, 64), np.float32)
    w[1, :32] = 5
    w[2, 32:] = -0.25
    np.testing.assert_array_equal(searched(w), w)


def test_quantize_weight_groups_shows_a_value_that_is_not_finite_in_the_scale_of_its_row():
    w = np.ones((3, 70), np.float32)
    w[0, 7], w[1, 69] = np.nan, np.inf
    assert np.isfinite(_core.quantize_weight_groups(w)[3]).tolist() == [False, False, True]
