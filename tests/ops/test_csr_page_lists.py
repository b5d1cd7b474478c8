"""Page lists in CSR form give what a block table gives."""

from __future__ import annotations

import numpy as np
import pytest
from paged_batch import PagedBatch

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError

INDPTR, INDICES, LAST = (np.array(values, np.int32) for values in ([0, 2, 2, 5], [7, 3, 1, 0, 9], [4, 99, 16]))


def test_lists_become_rows_of_a_table() -> None:
    table, seq_lens = ops.csr_to_block_table(INDPTR, INDICES, LAST, 16)
    np.testing.assert_array_equal(table, [[7, 3, -1], [-1, -1, -1], [1, 0, 9]])
    np.testing.assert_array_equal(seq_lens, [20, 0, 48])
    assert (table.dtype, seq_lens.dtype) == (np.int32, np.int32)


def test_no_sequences_are_an_empty_table() -> None:
    nobody = np.zeros(0, np.int32)
    table, seq_lens = ops.csr_to_block_table(np.zeros(1, np.int32), nobody, nobody, 16)
    assert (table.shape, seq_lens.shape) == ((0, 0), (0,))


@pytest.mark.usefixtures("any_machine")
def test_attention_over_lists_is_attention_over_the_table() -> None:
    batch = PagedBatch()
    n_pages = -(-batch.seq_lens // batch.page_size)
    indptr = np.cumsum([0, *n_pages]).astype(np.int32)
    indices = np.concatenate([row[:n] for row, n in zip(batch.block_table, n_pages, strict=True)])
    last = (batch.seq_lens - (n_pages - 1) * batch.page_size).astype(np.int32)
    want, want_lse = ops.paged_attention(*batch.arguments(), **batch.dtypes(), return_lse=True, softcap=2.0)
    out, lse = ops.paged_attention_csr(
        batch.q, batch.k_cache, batch.v_cache, batch.cu_seqlens_q, indptr, indices, last,
        return_lse=True, softcap=2.0, **batch.dtypes(),
    )  # fmt: skip
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_indptr": np.array([1, 2, 2, 5], np.int32)}, r"must rise from 0 to at most the 5 .*, got \[1, 2, 2, 5\]"),
        ({"kv_indptr": np.array([0, 3, 2, 5], np.int32)}, "must rise from 0"),
        ({"kv_indptr": np.array([0, 2, 2, 6], np.int32)}, "at most the 5 entries of kv_indices"),
        ({"kv_indptr": np.array([0, 2, 5], np.int32)}, "an entry more than kv_last_page_len, 4, got"),
        ({"kv_last_page_len": np.array([4, 0, 17], np.int32)}, "must be 1 to 16, got 17 of sequence 2"),
        ({"kv_last_page_len": np.array([0, 0, 1], np.int32)}, "must be 1 to 16, got 0 of sequence 0"),
        ({"kv_indices": INDICES.astype(np.int64)}, "kv_indices must be int32, got int64"),
        ({"kv_indptr": np.zeros(0, np.int32)}, "must rise from 0"),
        ({"page_size": 0}, "page_size must be a whole number of at least 1, got 0"),
        ({"page_size": 2**30}, "the keys of a sequence must be a whole number of at most 2147483647, got"),
    ],
)
def test_lists_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    lists = {"kv_indptr": INDPTR, "kv_indices": INDICES, "kv_last_page_len": LAST, "page_size": 16}
    with pytest.raises(InvalidArgumentError, match=rf"^\[csr_to_block_table\] .*{message}"):
        ops.csr_to_block_table(**lists | changes)


def test_pages_of_the_wrong_shape_are_refused_before_lists_are_read() -> None:
    batch = PagedBatch(((1, 3),))
    with pytest.raises(
        InvalidArgumentError, match=r"^\[paged_attention_csr\] k_cache must have shape \[P, S, Hkv, D\]"
    ):
        ops.paged_attention_csr(batch.q, batch.k_cache[0], batch.v_cache, INDPTR, INDPTR, INDICES, LAST)
