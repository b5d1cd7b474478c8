"""merge_states through its door: parts of the keys give the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import ROUNDING, decode, encode
from paged_batch import PagedBatch

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops.merge import MAX_PARTS

T, H, D = 5, 3, 40


def parts_of(n: int, dtype: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    random = np.random.default_rng(n)
    outs = [encode(random.normal(size=(T, H, D)), dtype) for _ in range(n)]
    lses = [(3 * random.normal(size=(T, H))).astype(np.float32) for _ in range(n)]
    return outs, lses


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("n_parts", [1, 2, MAX_PARTS])
def test_parts_weigh_by_their_share_of_the_sum(dtype: str, n_parts: int) -> None:
    outs, lses = parts_of(n_parts, dtype)
    out, lse = ops.merge_states(outs, lses, return_lse=True, dtype=dtype)
    total = np.log(np.exp(np.float64(lses)).sum(axis=0))
    want = sum(
        np.exp(part_lse - total)[..., None] * decode(part, dtype) for part, part_lse in zip(outs, lses, strict=True)
    )
    np.testing.assert_allclose(decode(out, dtype), want, rtol=2 * ROUNDING[dtype], atol=1e-6 + ROUNDING[dtype])
    np.testing.assert_allclose(lse, total, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("any_machine")
def test_a_part_that_saw_nothing_may_hold_anything() -> None:
    outs, lses = parts_of(2, "float32")
    outs[0][1], lses[0][1] = np.nan, -np.inf
    outs[1][2], lses[1][2] = np.nan, -np.inf
    outs[0][2], lses[0][2] = np.nan, -np.inf
    out, lse = ops.merge_states(outs, lses, return_lse=True)
    np.testing.assert_allclose(out[1], outs[1][1], rtol=1e-6)
    assert not out[2].any()
    assert np.isneginf(lse[2]).all()


@pytest.mark.usefixtures("any_machine")
def test_attention_over_two_halves_of_the_keys_merges_to_attention_over_all() -> None:
    batch = PagedBatch(((1, 90), (1, 64)), head_dim=40)
    first = np.array([48, 32], np.int32)
    options = {"causal": False, "return_lse": True} | batch.dtypes()
    arguments = batch.arguments()
    halves = [
        ops.paged_attention(*arguments[:3], batch.block_table, first, batch.cu_seqlens_q, **options),
        ops.paged_attention(
            *arguments[:3], np.stack([batch.block_table[0, 3:7], batch.block_table[1, 2:6]]), batch.seq_lens - first,
            batch.cu_seqlens_q, **options,
        ),
    ]  # fmt: skip
    out, lse = ops.merge_states(*zip(*halves, strict=True), return_lse=True, dtype="bfloat16")
    batch.check(out, lse, causal=False)


@pytest.mark.usefixtures("any_machine")
def test_the_result_goes_where_it_is_told() -> None:
    outs, lses = parts_of(3, "float32")
    want = ops.merge_states(outs, lses)
    wide = np.full((T, H + 1, D), np.nan, np.float32)
    out = wide[:, :H]
    assert ops.merge_states([np.stack([part, part], axis=1)[:, 0] for part in outs], lses, out=out) is out
    np.testing.assert_array_equal(out, want)
    assert np.isnan(wide[:, H]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outs": []}, "outs and lses must be as many, 1 to 32, got 0 and 2"),
        ({"outs": None}, "outs must be a list, got NoneType"),
        ({"lses": [np.zeros((T, H), np.float32)]}, "must be as many, 1 to 32, got 2 and 1"),
        (
            {"outs": [np.zeros((T, H, D), np.float32)] * 33, "lses": [np.zeros((T, H), np.float32)] * 33},
            "got 33 and 33",
        ),
        (
            {"outs": [np.zeros((T, H, D), np.float64)] * 2},
            r"outs\[0\] must be float32 or bfloat16 or float16, got float64",
        ),
        ({"outs": [np.zeros((T, H), np.float32)] * 2}, r"outs\[0\] must have shape \[T, Hq, D\]"),
        (
            {"outs": [np.zeros((n, H, D), np.float32) for n in (T, 4)]},
            r"outs\[1\] must have shape .*, got \[4, 3, 40\]",
        ),
        ({"lses": [np.zeros((T, H))] * 2}, r"lses\[0\] must be float32, got float64"),
        ({"lses": [np.zeros((H, T), np.float32)] * 2}, r"lses\[0\] must have shape \[T, Hq\] = \[5, 3\], got \[3, 5\]"),
        ({"lses": [np.zeros((H, T), np.float32).T] * 2}, r"lses\[0\] must be contiguous"),
        ({"out": np.zeros((T, H, D), np.float16)}, "out must be float32, got float16"),
        ({"outs": [np.zeros((T, H, 12), np.float32)] * 2}, "head_dim must be a multiple of 8 up to 256, got 12"),
        ({"return_lse": 1}, "return_lse must be True or False, got 1"),
        ({"dtype": "bfloat16"}, r"outs\[0\] was said to hold bfloat16: must be bfloat16 or uint16, got float32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    outs, lses = parts_of(2, "float32")
    with pytest.raises(InvalidArgumentError, match=rf"^\[merge_states\] .*{message}"):
        ops.merge_states(**{"outs": outs, "lses": lses} | changes)


def test_the_door_takes_as_many_parts_as_the_kernel(host_machine: None) -> None:
    from llm_decoder.ops.machines import kernels_for

    assert kernels_for("here", "cpu").MAX_PARTS == MAX_PARTS
