"""What paged_attention refuses before any kernel sees it, and how it says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exported_tensor import METAL, ExportedTensor
from paged_batch import PagedBatch

from llm_decoder import ops
from llm_decoder.errors import BackendError, InvalidArgumentError
from llm_decoder.ops.attention import SUPPORTED

BATCH = PagedBatch(((2, 20), (1, 5)))
NAMES = ("q", "k_cache", "v_cache", "block_table", "seq_lens", "cu_seqlens_q")
SHAPE = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}


def call(**changes: Any) -> Any:
    """paged_attention of a small batch that is right but for these."""
    arguments = dict(zip(NAMES, BATCH.arguments(), strict=True)) | BATCH.dtypes() | changes
    positional = [arguments.pop(name) for name in NAMES]
    return ops.paged_attention(*positional, **arguments)


def refuses(message: str, **changes: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        call(**changes)
    assert str(caught.value).startswith("[paged_attention] ")
    assert isinstance(caught.value, ValueError)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.usefixtures("host_machine")
def test_the_batch_itself_is_taken() -> None:
    assert call().shape == (3, 4, 64)


@pytest.mark.usefixtures("any_machine")
class TestShapes:
    def test_q_has_three_axes(self) -> None:
        refuses(r"q must have shape \[T, Hq, D\] = \[any, any, any\], got \[192, 4\]$", q=BATCH.q.reshape(-1, 4))

    def test_pages_have_four(self) -> None:
        refuses(r"k_cache must have shape \[P, S, Hkv, D\] = \[any, any, any, 64\], got", k_cache=BATCH.k_cache[0])
        refuses(r"k_cache must have shape .*, got .*32\]$", k_cache=BATCH.k_cache[..., :32])

    def test_k_and_v_are_alike(self) -> None:
        refuses(r"v_cache must have shape \[P, S, Hkv, D\] = \[6, 16, 2, 64\], got \[5,", v_cache=BATCH.v_cache[1:])

    def test_the_ratio_of_heads_is_whole(self) -> None:
        refuses("query heads must be a whole multiple of KV heads, got 3 and 2; any ratio", q=BATCH.q[:, :3])
        refuses("got 0 and 2", q=BATCH.q[:, :0])

    @pytest.mark.parametrize("head_dim", [60, 264, 4])
    def test_head_dim_is_a_multiple_of_8_to_256(self, head_dim: int) -> None:
        q = np.zeros((3, 4, head_dim), np.uint16)
        cache = np.zeros((6, 16, 2, head_dim), np.uint16)
        refuses(f"head_dim must be a multiple of 8 up to 256, got {head_dim}; pad", q=q, k_cache=cache, v_cache=cache)

    @pytest.mark.parametrize("page_size", [0, 8, 24])
    def test_pages_are_of_sixteens(self, page_size: int) -> None:
        cache = np.zeros((6, page_size, 2, 64), np.uint16)
        refuses(f"multiple of 16 slots .axis 1 of k_cache., got {page_size}$", k_cache=cache, v_cache=cache)

    def test_the_table_has_a_row_a_sequence_and_a_page_for_every_key(self) -> None:
        refuses(r"block_table must have shape \[B, M\]", block_table=BATCH.block_table[0])
        refuses("a row for each of the 2 sequences, got 1$", block_table=BATCH.block_table[:1].copy())
        short = BATCH.block_table[:, :1].copy()
        refuses("must have 2 pages of 16 for the 20 keys of the longest sequence, got 1$", block_table=short)

    def test_scales_slopes_and_sinks_fit_the_heads(self) -> None:
        refuses(r"alibi_slopes must have shape \[4\], got \[2\]$", alibi_slopes=floats(2))
        refuses(r"sinks must have shape \[4\], got \[4, 1\]$", sinks=floats(4, 1))
        refuses(r"k_scale must be a float or have shape \[2\] or \[6, 16, 2\], got \[4\]$", k_scale=floats(4))
        refuses(r"v_scale must be a float or .*, got \[16, 2\]$", v_scale=floats(16, 2))
        refuses(r"k_scale must be a float or .*, got \[\]; pass float.. of it$", k_scale=np.array(2.0, np.float32))

    def test_out_is_like_q(self) -> None:
        refuses(r"out must have shape \[T, Hq, D\] = \[3, 4, 64\], got \[2,", out=BATCH.q[:2].copy())


@pytest.mark.usefixtures("any_machine")
class TestLengths:
    def test_offsets_begin_with_0_and_are_one_more_than_lengths(self) -> None:
        refuses(r"an entry more than seq_lens and begin with 0, got 2 entries for 2", cu_seqlens_q=ints(0, 2))
        refuses(r"begin with 0, .* the first \[1\]$", cu_seqlens_q=ints(1, 2, 3))
        refuses(r"got 0 entries for 2 sequences, the first \[\]$", cu_seqlens_q=ints())

    def test_offsets_do_not_fall(self) -> None:
        refuses("must not fall, got 3 before 2 at 2$", cu_seqlens_q=ints(0, 3, 2))

    def test_q_has_their_tokens(self) -> None:
        refuses("q must have the 4 tokens of cu_seqlens_q, got 3$", cu_seqlens_q=ints(0, 3, 4))

    def test_lengths_are_not_negative(self) -> None:
        refuses("seq_lens must not be negative, got -1 at 1$", seq_lens=ints(20, -1))

    @pytest.mark.parametrize("name", ["seq_lens", "cu_seqlens_q", "block_table"])
    def test_they_are_int32(self, name: str) -> None:
        value = getattr(BATCH, name).astype(np.int64)
        refuses(f"{name} must be int32, got int64; pass it as int32$", **{name: value})

    def test_maxima_that_are_given_are_true(self) -> None:
        refuses("max_seqlen_q must be a whole number of at least 2, got 1$", max_seqlen_q=1)
        refuses("max_seqlen_k must be a whole number of at least 20, got 19$", max_seqlen_k=19)

    @pytest.mark.parametrize("page", [-1, 6, 2**31 - 1])
    def test_entries_that_a_token_follows_are_pages(self, page: int) -> None:
        table = BATCH.block_table.copy()
        table[0, 1] = page
        refuses(
            rf"block_table\[0, 1\] must be in \[0, 6\), for a token sees that page[,;] got {page}$", block_table=table
        )

    def test_entries_left_of_the_window_and_past_the_end_may_be_anything(self) -> None:
        table = BATCH.block_table.copy()
        table[0, 0] = 12345
        assert call(block_table=table, window=(2, -1)).shape == (3, 4, 64)
        refuses(r"block_table\[0, 0\]", block_table=table, window=(3, -1))


@pytest.mark.usefixtures("any_machine")
class TestLayout:
    @pytest.mark.parametrize("name", ["q", "k_cache", "v_cache"])
    def test_the_last_axis_is_contiguous(self, name: str) -> None:
        wide = np.repeat(getattr(BATCH, name), 2, axis=-1)[..., ::2]
        refuses(
            f"the last axis of {name} must lie beside each other, got strides .*; pass a contiguous", **{name: wide}
        )

    def test_small_arrays_may_lie_apart_but_for_the_columns_of_the_table(self) -> None:
        want = call()
        for name in ("seq_lens", "cu_seqlens_q"):
            np.testing.assert_array_equal(call(**{name: np.repeat(getattr(BATCH, name), 2)[::2]}), want)
        wide = np.full((2, 9), -7, np.int32)
        wide[:, :4] = BATCH.block_table
        np.testing.assert_array_equal(call(block_table=wide[:, :4]), want)
        apart = np.repeat(BATCH.block_table, 2, axis=-1)[..., ::2]
        refuses("the last axis of block_table must lie beside each other, got strides .8, 2.; pass", block_table=apart)

    def test_elements_are_native_aligned_and_at_whole_steps(self) -> None:
        refuses("q must be an array of native elements.* dtype >u2", q=BATCH.q.astype(">u2"))
        record = np.zeros((3, 4, 64), [("x", np.uint16), ("y", np.uint8)])
        refuses("q must be an array of native elements", q=record["x"])
        memory = np.zeros(BATCH.seq_lens.nbytes + 1, np.uint8)[1:]
        refuses(
            "seq_lens must be an array of native elements, aligned .* dtype <i4 at 0x", seq_lens=memory.view(np.int32)
        )

    def test_out_can_be_written(self) -> None:
        out = np.empty_like(BATCH.q)
        out.flags.writeable = False
        refuses("out must be writeable, got a read-only array$", out=out)


@pytest.mark.usefixtures("host_machine")
def test_rows_begin_where_a_gpu_can_read_them() -> None:
    memory = np.zeros(BATCH.q.size + 1, np.uint16)
    refuses("the rows of q must begin at multiples of 16 bytes, got address", q=memory[1:].reshape(BATCH.q.shape))
    narrow = np.zeros((3, 4, 68), np.uint16)[..., :64]
    refuses(r"the rows of q .* strides \[272, 68, 1\] of 2 bytes; pass a contiguous copy$", q=narrow)
    bytes_ = np.zeros((6, 16, 2, 68), np.uint8)[..., :64]
    refuses("the rows of k_cache must begin at multiples of 8 bytes", k_cache=bytes_, v_cache=bytes_, kv_dtype="fp8")


@pytest.mark.usefixtures("any_machine")
class TestDtypes:
    def test_integers_need_the_name_of_what_they_stand_for(self) -> None:
        refuses("computes q in uint16 with .*; supported are, .* where q_dtype and kv_dtype say so.$", q_dtype=None)

    def test_a_name_fits_the_elements(self) -> None:
        refuses("q was said to hold fp8: must be fp8 or uint8, got uint16$", q_dtype="fp8")
        refuses("k_cache was said to hold int8: must be int8, got uint16$", kv_dtype="int8")
        refuses("the dtype of q must be one of float32, .*int8.*, got 'bf16'$", q_dtype="bf16")

    def test_k_and_v_are_of_one_dtype(self) -> None:
        refuses("v_cache in float32; supported", v_cache=BATCH.v_cache.astype(np.float32), kv_dtype=None)

    def test_what_nobody_computes_is_refused_with_all_that_is_supported(self) -> None:
        with pytest.raises(InvalidArgumentError) as caught:
            call(q=BATCH.q.astype(np.float64), q_dtype=None)
        assert SUPPORTED in str(caught.value)
        assert "q in float64" in str(caught.value)

    def test_small_arrays_are_float32(self) -> None:
        refuses("sinks must be float32, got float64; pass it as float32$", sinks=np.ones(4))

    def test_out_is_of_the_dtype_of_q(self) -> None:
        refuses("out was said to hold bfloat16: must be .*, got float32$", out=floats(3, 4, 64))


@pytest.mark.usefixtures("host_machine")
def test_a_gpu_computes_halves_over_the_same_or_bytes() -> None:
    cache = floats(6, 16, 2, 64)
    refuses(
        "no kernel of a GPU computes q in float32", q=floats(3, 4, 64), k_cache=cache, v_cache=cache,
        q_dtype=None, kv_dtype=None,
    )  # fmt: skip
    refuses("no kernel of a GPU computes q in bfloat16 with k_cache in float16", kv_dtype="float16")


@pytest.mark.usefixtures("any_machine")
class TestOptions:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("scale", float("nan"), "scale must be a finite number, got nan"),
            ("scale", "1", "scale must be a finite number, got '1'"),
            ("scale", 1e300, r"scale must be a number that float32 holds, up to 3.4e\+38, got 1e\+300"),
            ("scale", 10**400, "scale must be a number that float32 holds, .*"),
            ("softcap", 1e39, r"softcap must be a number that float32 holds, up to 3.4e\+38, got 1e\+39"),
            ("softcap", -1.0, "softcap must be a finite number of at least 0, got -1.0"),
            ("causal", 1, "causal must be True or False, got 1"),
            ("window", 5, r"window must be \(left, right\), -1 for no limit, got 5"),
            ("window", (1, 2, 3), r"window must be \(left, right\), -1 for no limit, got \(1, 2, 3\)"),
            ("window", (-2, 0), r"window\[0\] must be a whole number of at least -1, got -2"),
            ("window", (0, 1.5), r"window\[1\] must be a whole number of at least -1, got 1.5"),
            ("fixed_split", 100, "fixed_split must be a multiple of 64, or 0 for none, got 100"),
            ("fixed_split", -64, "fixed_split must be a whole number of at least 0, got -64"),
            ("fixed_split", 2**31, "fixed_split must be a whole number of at most 1073741824, got 2147483648"),
            ("k_scale", -1.0, "k_scale must be a finite number of at least 0, got -1.0"),
            ("v_scale", "x", "v_scale must be a finite number of at least 0, got 'x'"),
            (
                "k_scale",
                np.array([0.5, -1.0], np.float32),
                "every k_scale must be .* of at least 0, got -1.0",
            ),
            ("v_scale", np.array([np.nan, 1.0], np.float32), "every v_scale must be a finite number .*, got nan"),
            ("q_dtype", ["bfloat16"], r"the dtype of q must be one of .*, got \[.bfloat16.\]"),
            ("plan", "x", "plan must be what plan_attention returns, got str"),
            ("stream", "s", "stream must be the handle of a CUDA stream, got 's'"),
            ("stream", 2**64, "stream must be the handle of a CUDA stream, got 18446744073709551616"),
            ("return_lse", "no", "return_lse must be True or False, got 'no'"),
            ("q", [[1.0]], "q must be a NumPy array or a tensor that speaks DLPack, got list"),
            ("sinks", 1.0, "sinks must be a NumPy array or a tensor that speaks DLPack, got float"),
        ],
    )
    def test_a_value_out_of_its_limits_is_named(self, name: str, value: Any, message: str) -> None:
        refuses(f"{message}$", **{name: value})

    def test_a_window_wider_than_any_sequence_is_no_limit(self) -> None:
        for causal in (True, False):
            want = call(causal=causal)
            np.testing.assert_array_equal(call(causal=causal, window=(2**31, 10**15)), want)

    def test_flags_and_numbers_may_be_those_of_numpy(self) -> None:
        want = call(causal=False, scale=0.25, window=(3, 1))
        got = call(causal=np.False_, scale=np.float32(0.25), window=np.array([3, 1]))
        np.testing.assert_array_equal(got, want)


@pytest.mark.usefixtures("any_machine")
class TestPlans:
    def plan(self, **changes: Any) -> ops.AttentionPlan:
        return ops.plan_attention(BATCH.seq_lens, BATCH.cu_seqlens_q, **SHAPE | changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_heads": 8}, "with n_heads 4, got 8"),
            ({"n_kv_heads": 4}, "with n_kv_heads 2, got 4"),
            ({"head_dim": 32}, "with head_dim 64, got 32"),
            ({"causal": False}, "with causal True, got False"),
            ({"window": (5, -1)}, r"with window \(-1, -1\), got \(5, -1\)"),
            ({"n_tokens": 7}, "with n_tokens 3, got 7"),
        ],
    )
    def test_a_plan_is_for_calls_of_its_kind(self, changes: dict[str, Any], message: str) -> None:
        refuses(f"plan must be for this call, {message}; plan_attention makes another", plan=self.plan(**changes))

    def test_a_plan_has_its_own_split(self) -> None:
        assert call(plan=self.plan(fixed_split=64), fixed_split=64).shape == (3, 4, 64)
        refuses(
            "fixed_split must be that of the plan, 64, or 0, got 128", plan=self.plan(fixed_split=64), fixed_split=128
        )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"n_heads": 5}, "query heads must be a whole multiple of KV heads, got 5 and 2"),
            ({"head_dim": 12}, "head_dim must be a multiple of 8"),
            ({"n_kv_heads": 0}, "n_kv_heads must be a whole number of at least 1, got 0"),
            ({"n_tokens": 2}, "n_tokens must be a whole number of at least 3, got 2"),
            ({"device": "tpu"}, "device must be cpu, cuda or cuda:N, got 'tpu'"),
            ({"device": np.zeros(2)}, r"device must be cpu, cuda or cuda:N, got array"),
            ({"shared_prefixes": 1}, "shared_prefixes must be a list, got int"),
            ({"shared_prefixes": [(0, 2, 5)]}, "1 to 4 keys, what all of sequences 0 to 1 have before .*, got 5"),
            ({"shared_prefixes": [(0, 3, 1)]}, "follow each other within the 2 sequences, got 3 from 0"),
            ({"shared_prefixes": [5]}, "each of shared_prefixes must be a list, got int"),
            ({"shared_prefixes": [(0, 1)]}, r"each of shared_prefixes must be .first, n, n_keys., got .0, 1."),
            ({"shared_prefixes": [(1, 1, 2), (0, 1, 2)]}, "follow each other within the 2 sequences, got 1 from 0"),
            ({"shared_prefixes": [(0, 1, 2)], "causal": False}, "must come with causal and no window to the left"),
            ({"shared_prefixes": [(0, 1, 2)], "window": (9, 0)}, "must come with causal and no window to the left"),
        ],
    )
    def test_a_plan_that_cannot_be_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=rf"^\[plan_attention\] .*{message}"):
            self.plan(**changes)


class TestDevices:
    def test_a_device_that_no_kernel_knows_is_refused(self) -> None:
        refuses(
            "q must be in host memory or on a CUDA device, got DLPack device type 8$",
            q=ExportedTensor(BATCH.q, device=METAL),
        )

    @pytest.mark.usefixtures("fake_device")
    def test_everything_large_is_on_the_device_of_q(self) -> None:
        q = ExportedTensor(BATCH.q, "bfloat16", device=2)
        refuses("k_cache must be on the device of q, cuda:0, got cpu; move it there$", q=q)
        refuses(
            "k_cache must be on the device of q, cpu, got cuda:0",
            k_cache=ExportedTensor(BATCH.k_cache, "bfloat16", device=2),
        )
        refuses(
            "sinks must be in host memory, got cuda:0",
            sinks=ExportedTensor(floats(4), device=2),
        )

    def test_a_device_without_its_extension_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails() -> None:
            raise BackendError("this build has no CUDA extension")

        monkeypatch.setattr("llm_decoder.ops.machines.load_cuda", fails)
        q, k, v = (ExportedTensor(array, "bfloat16", device=2) for array in BATCH.arguments()[:3])
        message = r"^\[paged_attention\] cuda:0 cannot be used: this build has no CUDA extension; pass arrays in host"
        with pytest.raises(BackendError, match=message):
            call(q=q, k_cache=k, v_cache=v)
        with pytest.raises(BackendError, match=r"^\[plan_attention\] cuda:0 cannot be used"):
            ops.plan_attention(BATCH.seq_lens, BATCH.cu_seqlens_q, device="cuda", **SHAPE)
