"""Page lists in CSR form, as FlashInfer has them, for those who come from there."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_decoder.ops import checks
from llm_decoder.ops.attention import paged_attention
from llm_decoder.ops.machines import stream_of
from llm_decoder.ops.plan import Ints, host_ints
from llm_decoder.ops.tensors import device_of, view_tensor

PLACE = "csr_to_block_table"


def csr_to_block_table(
    kv_indptr: Any, kv_indices: Any, kv_last_page_len: Any, page_size: int, *, stream: int | None = None
) -> tuple[Ints, Ints]:
    """(block_table int32 [B, M], seq_lens int32 [B]), NumPy arrays, of pages listed one sequence after the other.

    kv_indptr int32 [B + 1]: where each sequence's pages begin in kv_indices int32 [n]; kv_last_page_len int32 [B]:
    slots taken of its last page, 1 to page_size; of a sequence without pages anything. M: the most pages of a sequence.
    Lists on a device are waited for, on `stream` (None: that of their framework).

    Raises InvalidArgumentError.
    """
    checks.check_count(PLACE, "page_size", page_size, 1)
    lists = {"kv_indptr": kv_indptr, "kv_indices": kv_indices, "kv_last_page_len": kv_last_page_len}
    indptr, indices, last_page_len = (
        host_ints(PLACE, name, value, stream_of(PLACE, value, device_of(PLACE, name, value), stream))
        for name, value in lists.items()
    )
    n_pages = np.diff(indptr)
    if len(indptr) != len(last_page_len) + 1 or indptr[0] != 0 or (n_pages < 0).any() or indptr[-1] > len(indices):
        raise checks.refuse(
            PLACE,
            f"kv_indptr must rise from 0 to at most the {len(indices)} entries of kv_indices, with an entry more than "
            f"kv_last_page_len, {len(last_page_len) + 1}, got {indptr.tolist()}",
        )
    is_wrong = (n_pages > 0) & ((last_page_len < 1) | (last_page_len > page_size))
    if is_wrong.any():
        i = int(np.argmax(is_wrong))
        raise checks.refuse(PLACE, f"kv_last_page_len must be 1 to {page_size}, got {last_page_len[i]} of sequence {i}")
    seq_lens = np.where(n_pages > 0, (n_pages.astype(np.int64) - 1) * page_size + last_page_len, 0)
    checks.check_count(PLACE, "the keys of a sequence", int(seq_lens.max(initial=0)))
    columns = np.arange(n_pages.max(initial=0))
    is_page = columns < n_pages[:, None]
    block_table = np.full(is_page.shape, -1, np.int32)
    block_table[is_page] = indices[: indptr[-1]]
    return block_table, seq_lens.astype(np.int32)


def paged_attention_csr(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    qo_indptr: Any,
    kv_indptr: Any,
    kv_indices: Any,
    kv_last_page_len: Any,
    **options: Any,
) -> Any:
    """paged_attention with FlashInfer's page lists: qo_indptr int32 [B + 1] is cu_seqlens_q, the others are those of
    csr_to_block_table. options and errors: those of paged_attention. Tables are made at every call: for many layers
    make them once with csr_to_block_table, and a plan with plan_attention.
    """
    cache = view_tensor("paged_attention_csr", "k_cache", k_cache)
    checks.check_shape("paged_attention_csr", cache, "[P, S, Hkv, D]", [None] * 4)
    block_table, seq_lens = csr_to_block_table(
        kv_indptr, kv_indices, kv_last_page_len, cache.shape[1], stream=options.get("stream")
    )
    return paged_attention(q, k_cache, v_cache, block_table, seq_lens, qo_indptr, **options)
