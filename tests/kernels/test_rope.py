import numpy as np
import pytest

from llm_decoder import _core

kernels = _core.kernels

# Two products and a sum.
F32_TOLERANCE = 3e-7


def angles(half: int, position: int) -> tuple[np.ndarray, np.ndarray]:
    angle = position * 10000.0 ** (-np.arange(half) / max(half, 1))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


SHAPES = [(2, 1), (6, 3), (40, 20), (62, 31), (66, 33), (64, 32), (128, 64), (128, 16)]


@pytest.mark.parametrize(("head_dim", "half"), SHAPES)
def test_rope_turns_each_pair_by_its_angle(isa, head_dim, half):
    x = np.random.default_rng(head_dim).standard_normal((3, head_dim)).astype(np.float32)
    cos, sin = angles(half, position=917)
    pairs = x[:, :half].astype(np.float64) + 1j * x[:, half : 2 * half]
    turned = pairs * (cos.astype(np.float64) + 1j * sin)
    expected = np.concatenate([turned.real, turned.imag, x[:, 2 * half :]], axis=1)
    kernels.rope(isa, x, cos, sin)
    np.testing.assert_allclose(x, expected, atol=F32_TOLERANCE * 4)


def test_rope_leaves_the_channels_past_its_pairs_alone(isa):
    x = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    x[:, 42:] = np.nan
    before = x.copy()
    kernels.rope(isa, x, *angles(21, position=5))
    np.testing.assert_array_equal(x[:, 42:], before[:, 42:])
    assert np.isfinite(x[:, :42]).all()


def test_rope_at_position_zero_changes_nothing(isa):
    x = np.random.default_rng(0).standard_normal((2, 66)).astype(np.float32)
    before = x.copy()
    kernels.rope(isa, x, *angles(33, position=0))
    np.testing.assert_array_equal(x, before)
