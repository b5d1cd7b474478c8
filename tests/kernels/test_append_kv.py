import numpy as np
import pytest
from page_pool import BF16_NAN, PagePool
from reference_attention import bf16_bits, int8_rows

HEAD_DIMS = (1, 5, 16, 31, 40, 64, 128)


def token(head_dim: int, n_kv_heads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(head_dim)
    return (
        rng.standard_normal((1, n_kv_heads, head_dim)).astype(np.float32),
        rng.standard_normal((1, n_kv_heads, head_dim)).astype(np.float32),
    )


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_append_writes_one_slot_of_a_float_page_and_nothing_else(isa, head_dim):
    pool = PagePool("f32", 3, 2, head_dim, 32)
    key, value = token(head_dim)
    pool.append(isa, np.array([2, 1], np.int32), 32 + 17, key, value)
    np.testing.assert_array_equal(pool.k[1, :, :head_dim, 17], key[0])
    np.testing.assert_array_equal(pool.v[1, :, 17, :head_dim], value[0])
    assert not pool.k[1, :, head_dim:, 17].any()
    assert not pool.v[1, :, 17, head_dim:].any()
    pool.k[1, :, :, 17] = np.nan
    pool.v[1, :, 17] = np.nan
    assert np.isnan(pool.k).all()
    assert np.isnan(pool.v).all()


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_append_rounds_to_bfloat16_and_writes_one_slot(isa, head_dim):
    pool = PagePool("bf16", 3, 2, head_dim, 32)
    key, value = token(head_dim)
    pool.append(isa, np.array([2, 1], np.int32), 32 + 17, key, value)
    np.testing.assert_array_equal(pool.k[1, :, :head_dim, 17], bf16_bits(key[0]))
    np.testing.assert_array_equal(pool.v[1, :, 17, :head_dim], bf16_bits(value[0]))
    assert not pool.k[1, :, head_dim:, 17].any()
    assert not pool.v[1, :, 17, head_dim:].any()
    pool.k[1, :, :, 17] = pool.v[1, :, 17] = BF16_NAN
    assert (pool.k == BF16_NAN).all()
    assert (pool.v == BF16_NAN).all()


def test_append_rounds_ties_to_even_and_keeps_infinities_and_nan(isa):
    given = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF])
    expected = [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF]
    pool = PagePool("bf16", 1, 1, 8, 16)
    values = given.astype(np.uint32).view(np.float32)[None, None]
    pool.append(isa, np.array([0], np.int32), 3, values, values)
    assert pool.k[0, 0, :8, 3].tolist() == expected
    assert pool.v[0, 0, 3, :8].tolist() == expected


@pytest.mark.parametrize("slot", [0, 15, 18, 31])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_append_writes_one_slot_of_an_int8_page_and_nothing_else(isa, head_dim, slot):
    pool, before = PagePool("s8", 3, 2, head_dim, 32), PagePool("s8", 3, 2, head_dim, 32)
    key, value = token(head_dim)
    table = np.array([2, 1], np.int32)
    pool.append(isa, table, 32 + slot, key, value)
    keys, key_scales, values, value_scales = _gather(pool, 1, slot)
    for stored, scales, given in ((keys, key_scales, key), (values, value_scales, value)):
        expected, expected_scales = int8_rows(given[0])
        np.testing.assert_array_equal(stored[:, :head_dim], expected)
        np.testing.assert_array_equal(scales, expected_scales.astype(np.float32))
        assert not stored[:, head_dim:].any()
    pool.k[1, :, :, slot] = before.k[1, :, :, slot]
    pool.v[1, :, slot // 4, :, slot % 4] = before.v[1, :, slot // 4, :, slot % 4]
    pool.k_scale[1, :, slot] = pool.v_scale[1, :, slot] = np.nan
    for mine, other in zip(pool.arrays(), before.arrays(), strict=True):
        np.testing.assert_array_equal(mine, other)


def _gather(pool: PagePool, page: int, slot: int) -> tuple[np.ndarray, ...]:
    keys = pool.k[page, :, :, slot].reshape(pool.n_kv_heads, -1).astype(np.int32) - 128
    return keys, pool.k_scale[page, :, slot], pool.v[page, :, slot // 4, :, slot % 4], pool.v_scale[page, :, slot]


def test_append_gives_a_zero_value_a_scale_that_takes_no_room_in_its_page(isa):
    pool = PagePool("s8", 1, 1, 16, 16)
    zeros = np.zeros((1, 1, 16), np.float32)
    pool.append(isa, np.array([0], np.int32), 0, zeros, zeros)
    assert pool.k_scale[0, 0, 0] == 1
    assert 0 < pool.v_scale[0, 0, 0] < 1e-37
    assert (pool.k[0, 0, :, 0] == 128).all()
    assert not pool.v[0, 0, 0, :, 0].any()


def test_append_shows_a_nan_in_the_scale(isa):
    pool = PagePool("s8", 1, 2, 5, 16)
    key, value = token(5)
    key[0, 0, 4] = np.nan
    value[0, 1, 0] = np.inf
    pool.append(isa, np.array([0], np.int32), 0, key, value)
    assert np.isnan(pool.k_scale[0, :, 0]).tolist() == [True, False]
    assert np.isnan(pool.v_scale[0, :, 0]).tolist() == [False, True]
