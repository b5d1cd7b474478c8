from __future__ import annotations

import numpy as np
import pytest

from llm_decoder import _core
from llm_decoder.safetensors_file import to_float32

kernels = _core.kernels
SIZES = ((1, 1), (3, 31), (16, 33), (33, 127), (130, 576))


@pytest.mark.parametrize(("n", "hidden"), SIZES)
def test_embed_f32_is_the_row_that_was_packed(isa, n, hidden):
    w = np.random.default_rng(n).standard_normal((n, hidden)).astype(np.float32)
    packed = _core.pack_f32(w)
    for token in {0, n // 2, n - 1}:
        np.testing.assert_array_equal(kernels.embed_f32(isa, packed, n, hidden, token), w[token])


@pytest.mark.parametrize(("n", "hidden"), SIZES)
def test_embed_bf16_is_the_row_that_was_packed_rounded(isa, n, hidden):
    w = np.random.default_rng(n).standard_normal((n, hidden)).astype(np.float32)
    packed = _core.pack_bf16(w)
    rounded = to_float32(packed.reshape(-1, hidden, 16).transpose(0, 2, 1).reshape(-1, hidden))
    for token in {0, n // 2, n - 1}:
        np.testing.assert_array_equal(kernels.embed_bf16(isa, packed, n, hidden, token), rounded[token])


@pytest.mark.parametrize(("n", "hidden"), SIZES)
def test_embed_w8_is_the_row_that_was_packed_times_its_scale(isa, n, hidden):
    rng = np.random.default_rng(n)
    q = rng.integers(-127, 128, (n, hidden), np.int8)
    scale = rng.uniform(1e-3, 1, n).astype(np.float32)
    packed = _core.pack_w8(q)
    for token in {0, n // 2, n - 1}:
        expected = q[token].astype(np.float32) * scale[token]
        np.testing.assert_array_equal(kernels.embed_w8(isa, packed, scale, hidden, token), expected)


def test_embed_refuses_a_token_past_the_vocabulary(isa):
    with pytest.raises(ValueError, match=r"token must lie in \[0, 3\), got 3"):
        kernels.embed_f32(isa, _core.pack_f32(np.zeros((3, 4), np.float32)), 3, 4, 3)
