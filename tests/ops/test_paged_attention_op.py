"""paged_attention through its door, on the CPU and on the GPU kernels of the host machine, against the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import decode, encode
from paged_batch import PagedBatch
from pairwise import some

from llm_decoder import ops

pytestmark = pytest.mark.usefixtures("any_machine")


def attend(batch: PagedBatch, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    return ops.paged_attention(*batch.arguments(), **batch.dtypes(), return_lse=True, **options)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_mixed_batch_is_what_the_formula_says(dtype: str) -> None:
    batch = PagedBatch(q_dtype=dtype, kv_dtype=dtype)
    batch.check(*attend(batch))


@pytest.mark.parametrize("kv_dtype", ["fp8", "int8"])
@pytest.mark.parametrize("shape", ["all", "head", "slot"])
def test_pages_of_bytes_have_a_scale_for_all_a_head_or_a_slot(kv_dtype: str, shape: str) -> None:
    batch = PagedBatch(kv_dtype=kv_dtype)
    random = np.random.default_rng(1)
    size = {"all": (), "head": (2,), "slot": (batch.n_pages, batch.page_size, 2)}[shape]
    scales = (0.02 + 0.01 * random.random((2, *size))).astype(np.float32)
    options = {"k_scale": scales[0], "v_scale": scales[1]}
    if shape == "all":
        options = {name: float(scale) for name, scale in options.items()}
    batch.check(*attend(batch, **options), **options)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [(-1, -1), (20, 3), (0, 0), (7, -1)])
def test_windows_softcaps_slopes_and_sinks_together(causal: bool, window: tuple[int, int]) -> None:
    batch = PagedBatch(((1, 150), (6, 80), (1, 1), (4, 2), (2, 0)))
    options = {
        "causal": causal,
        "window": window,
        "softcap": 3.0,
        "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32),
        "sinks": np.array([0.3, -1.0, 2.0, 0.0], np.float32),
        "scale": 0.2,
    }
    batch.check(*attend(batch, **options), **options)


@pytest.mark.parametrize("head_dim", some(range(8, 257, 8), 4))
def test_every_head_size_of_eights(head_dim: int) -> None:
    for kv_dtype in ("bfloat16", "fp8"):
        batch = PagedBatch(((1, 20), (9, 25)), head_dim=head_dim, page_size=48, kv_dtype=kv_dtype)
        batch.check(*attend(batch))


@pytest.mark.parametrize("ratio", some([*range(1, 17), 64, 71], 3))
def test_any_ratio_of_heads(ratio: int) -> None:
    batch = PagedBatch(((1, 20), (9, 25), (2, 70)), n_heads=2 * ratio, n_kv_heads=2, head_dim=40)
    batch.check(*attend(batch))


@pytest.mark.parametrize("page_size", some([16, 32, 48, 64, 80, 112, 128, 208, 1024], 2))
def test_pages_of_any_multiple_of_sixteen(page_size: int) -> None:
    batch = PagedBatch(((1, 20), (9, 65), (70, 130)), page_size=page_size)
    batch.check(*attend(batch))


# (tokens, keys) that the tests of FlashAttention-3 and vLLM name, each beside an edge of a tile, a page or the causal
# limit.
ODD_SHAPES = (
    ((1, 1), (1, 3), (2, 1), (511, 1), (3, 513), (113, 203), (239, 1)),
    ((799, 3), (1, 1328), (5, 18), (129, 463), (1, 523), (1, 37), (1, 2011)),
    ((1023, 1024),),
)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sequences", some(ODD_SHAPES, 1), ids=len)
def test_odd_numbers_of_tokens_and_keys(sequences: tuple[tuple[int, int], ...], causal: bool) -> None:
    batch = PagedBatch(sequences, n_heads=1, n_kv_heads=1)
    batch.check(*attend(batch, causal=causal), causal=causal)


def test_a_plan_is_made_once_and_used_by_every_layer() -> None:
    layers = [PagedBatch(seed=seed) for seed in (1, 2)]
    plan = ops.plan_attention(layers[0].seq_lens, layers[0].cu_seqlens_q, n_heads=4, n_kv_heads=2, head_dim=64)
    for layer in layers:
        layer.check(*attend(layer, plan=plan))
    longer = PagedBatch(((1, 700), (2, 90)))
    plan.update(longer.seq_lens, longer.cu_seqlens_q)
    longer.check(*attend(longer, plan=plan))


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8", "int8"])
@pytest.mark.parametrize("scale", [0.2, 30.0])
def test_a_negative_scale_is_the_positive_one_of_opposite_queries(kv_dtype: str, scale: float) -> None:
    batch = PagedBatch(kv_dtype=kv_dtype)
    options = {"k_scale": 0.02, "v_scale": 0.02} if kv_dtype == "int8" else {}
    want, want_lse = attend(batch, scale=scale, **options)
    batch.q ^= 0x8000
    out, lse = attend(batch, scale=-scale, **options)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)


def test_without_a_scale_all_keys_weigh_the_same() -> None:
    batch = PagedBatch()
    batch.check(*attend(batch, scale=0.0), scale=0.0)


def test_a_sink_may_be_as_large_as_a_float_can_be() -> None:
    batch = PagedBatch(((1, 150), (2, 0)))
    for fixed_split in (0, 64):
        out, lse = attend(batch, sinks=np.full(4, 3e38, np.float32), fixed_split=fixed_split)
        assert not decode(out, "bfloat16").any()
        assert (lse > 2e38).all()


def test_a_plan_keeps_its_lengths_when_the_arrays_that_it_was_made_from_change() -> None:
    batch = PagedBatch()
    seq_lens, cu_seqlens_q = batch.seq_lens.copy(), batch.cu_seqlens_q.copy()
    plan = ops.plan_attention(seq_lens, cu_seqlens_q, n_heads=4, n_kv_heads=2, head_dim=64)
    seq_lens[:] = cu_seqlens_q[:] = 0
    batch.check(*attend(batch, plan=plan))


@pytest.mark.parametrize("what", ["k_cache", "v_cache"])
@pytest.mark.parametrize("fixed_split", [0, 64])
def test_a_key_or_value_that_is_nan_shows_in_the_result_of_its_heads_alone(what: str, fixed_split: int) -> None:
    batch = PagedBatch(((1, 200), (1, 90)))
    want, want_lse = attend(batch, fixed_split=fixed_split)
    cache = getattr(batch, what)
    cache[batch.block_table[0, 5], 3, 1, 7] = 0x7FFF
    out, lse = attend(batch, fixed_split=fixed_split)
    nan = np.isnan(decode(out, "bfloat16"))
    assert nan[0, 2:, 7].all()
    if what == "k_cache":
        assert nan[0, 2:].all()
        assert np.isnan(lse[0, 2:]).all()
    np.testing.assert_array_equal(out[0, :2], want[0, :2])
    np.testing.assert_array_equal(out[1], want[1])
    np.testing.assert_array_equal(lse[0, :2], want_lse[0, :2])
    np.testing.assert_array_equal(lse[1], want_lse[1])


def test_long_keys_are_divided_and_merged_to_the_same() -> None:
    batch = PagedBatch(((1, 1200), (1, 90)))
    options = {"sinks": np.array([1.0, 0.0, -1.0, 0.5], np.float32)}
    batch.check(*attend(batch, **options), **options)


def test_with_a_fixed_split_a_sequence_gives_the_same_bits_alone_and_in_a_batch() -> None:
    batch = PagedBatch(((1, 200), (7, 77), (1, 333)))
    together, lses = attend(batch, fixed_split=64)
    for i in range(3):
        begin, end = batch.cu_seqlens_q[i : i + 2]
        alone, lse = ops.paged_attention(
            batch.q[begin:end],
            batch.k_cache,
            batch.v_cache,
            batch.block_table[i : i + 1],
            batch.seq_lens[i : i + 1],
            np.array([0, end - begin], np.int32),
            return_lse=True,
            fixed_split=64,
            **batch.dtypes(),
        )
        np.testing.assert_array_equal(alone, together[begin:end])
        np.testing.assert_array_equal(lse, lses[begin:end])


SLOPES = np.array([0.5, 0.25, 0.0625, 0.03125], np.float32)
SINKS = np.array([0.3, -1.0, 2.0, 0.0], np.float32)


@pytest.mark.parametrize("fixed_split", [0, 64])
@pytest.mark.parametrize(
    "options",
    [{}, {"alibi_slopes": SLOPES}, {"alibi_slopes": SLOPES, "sinks": SINKS, "softcap": 3.0}],
    ids=["plain", "alibi", "everything"],
)
def test_a_shared_prefix_gives_the_same(fixed_split: int, options: dict[str, Any]) -> None:
    batch = PagedBatch(((1, 150), (1, 400), (2, 146), (9, 210), (1, 30)))
    batch.block_table[1:4, :8] = batch.block_table[0, :8]
    plan = ops.plan_attention(
        batch.seq_lens, batch.cu_seqlens_q, n_heads=4, n_kv_heads=2, head_dim=64, fixed_split=fixed_split,
        shared_prefixes=[(0, 4, 128), (4, 1, 16)],
    )  # fmt: skip
    batch.check(*attend(batch, plan=plan, **options), **options)


def test_a_gpu_reads_a_shared_prefix_by_the_table_of_its_first_sequence(any_machine: str) -> None:
    if any_machine == "cpu":
        pytest.skip("pages are shared there without being told")
    batch = PagedBatch(((1, 70), (1, 90), (2, 66)))
    batch.block_table[1:, :4] = batch.block_table[0, :4]
    shared = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "shared_prefixes": [(0, 3, 64)]}
    plan = ops.plan_attention(batch.seq_lens, batch.cu_seqlens_q, **shared)
    want, _ = attend(batch, plan=plan)
    batch.block_table[1:, :4] = batch.block_table[0, 4]  # never followed: mostly NaN
    np.testing.assert_array_equal(attend(batch, plan=plan)[0], want)


def test_rows_past_the_last_token_are_zero() -> None:
    batch = PagedBatch(((1, 9), (2, 5)))
    sinks = np.ones(4, np.float32)
    want, want_lse = attend(batch, sinks=sinks)
    batch.q = np.concatenate([batch.q, np.full((2, 4, 64), 0x7FFF, np.uint16)])
    out, lse = attend(batch, sinks=sinks)
    np.testing.assert_array_equal(out[:3], want)
    np.testing.assert_array_equal(lse[:3], want_lse)
    assert not out[3:].any()
    assert np.isneginf(lse[3:]).all()
    options = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}
    plan = ops.plan_attention(batch.seq_lens, batch.cu_seqlens_q, n_tokens=5, **options)
    np.testing.assert_array_equal(attend(batch, plan=plan, sinks=sinks)[0], out)


def test_the_result_goes_where_it_is_told_and_only_there() -> None:
    batch = PagedBatch(((2, 9), (3, 40)))
    want, _ = attend(batch)
    wide = np.full((5, 6, 64), 0x7FFF, np.uint16)
    out = wide[:, 1:5]
    assert ops.paged_attention(*batch.arguments(), **batch.dtypes(), out=out) is out
    np.testing.assert_array_equal(out, want)
    assert (wide[:, [0, 5]] == 0x7FFF).all()


def test_q_and_pages_may_be_views_into_other_tensors() -> None:
    batch = PagedBatch(((2, 9), (3, 40)))
    want, _ = attend(batch)
    qkv = np.zeros((5, 8, 64), np.uint16)
    qkv[:, :4] = batch.q
    batch.q = qkv[:, :4]
    pool = np.stack([batch.k_cache, batch.v_cache], axis=1)
    batch.k_cache, batch.v_cache = pool[:, 0], pool[:, 1]
    np.testing.assert_array_equal(attend(batch)[0], want)


def test_a_batch_without_tokens_or_without_sequences_is_legal() -> None:
    assert attend(PagedBatch(((0, 5), (0, 0))))[0].shape == (0, 4, 64)
    batch = PagedBatch(((1, 3),))
    nobody = np.zeros(0, np.int32)
    arguments = (batch.q[:0], batch.k_cache, batch.v_cache, batch.block_table[:0], nobody, np.zeros(1, np.int32))
    assert ops.paged_attention(*arguments, **batch.dtypes()).shape == (0, 4, 64)


def test_maxima_may_be_given() -> None:
    batch = PagedBatch()
    batch.check(*attend(batch, max_seqlen_q=33, max_seqlen_k=131))


def test_the_judge_would_see_a_wrong_value() -> None:
    batch = PagedBatch()
    out, lse = attend(batch)
    wrong = encode(decode(out, "bfloat16") * 1.1, "bfloat16")
    with pytest.raises(AssertionError):
        batch.check(wrong, lse)
    with pytest.raises(AssertionError):
        batch.check(out, lse + 0.1)


@pytest.mark.parametrize("kv_dtype", ["fp8", "int8"])
def test_a_long_flat_tail_keeps_its_weight_in_halves(kv_dtype: str) -> None:
    """A key of each page has e^8 times the weight of any other, but no value: of the others, times the scale of a slot,
    float16 has few bits unless they are brought to its size."""
    n_keys = 320
    batch = PagedBatch(((1, n_keys),), n_heads=1, n_kv_heads=1, q_dtype="float16", kv_dtype=kv_dtype)
    slots = (batch.n_pages, batch.page_size, 1)
    largest = {"fp8": 448.0, "int8": 127.0}[kv_dtype]
    batch.q = encode(np.full((1, 1, 64), 1.0), "float16")
    batch.k_cache = np.zeros_like(batch.k_cache)
    batch.k_cache[:, 2] = encode(np.full((1, 64), largest), kv_dtype)
    batch.v_cache = encode(np.full((*slots, 64), largest), kv_dtype)
    batch.v_cache[:, 2] = 0
    scales = {name: np.full(slots, 1 / largest, np.float32) for name in ("k_scale", "v_scale")}
    out, _ = attend(batch, **scales)
    want, _ = batch.reference(**scales)
    np.testing.assert_allclose(decode(out, "float16"), want, rtol=2e-3)
