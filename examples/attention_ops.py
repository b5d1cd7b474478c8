"""Attention over pages by itself: what vLLM's and FlashInfer's calls become. On a GPU pass torch tensors instead."""

import math

import numpy as np

from llm_decoder import ops

rng = np.random.default_rng(0)
T, Hq, Hkv, D, P, S = 7, 8, 2, 64, 12, 16  # tokens, query heads, KV heads, head size, pages, slots a page
q = rng.standard_normal((T, Hq, D)).astype(np.float32)
k_cache, v_cache = np.zeros((2, P, S, Hkv, D), np.float32)

# Three sequences: a decode over 40 keys, a chunk of 5 tokens after 27 others, a prompt of 1.
seq_lens = np.array([40, 32, 1], np.int32)
cu_seqlens_q = np.array([0, 1, 6, 7], np.int32)
block_table = np.array([[4, 9, 2], [7, 0, -1], [5, -1, -1]], np.int32)
for pages, n_keys in zip(block_table, seq_lens, strict=True):
    positions = np.arange(n_keys)
    slot_mapping = (pages[positions // S] * S + positions % S).astype(np.int64)
    key, value = rng.standard_normal((2, n_keys, Hkv, D)).astype(np.float32)
    ops.reshape_and_cache(key, value, k_cache, v_cache, slot_mapping)

# Instead of vLLM's
#   flash_attn_varlen_func(q, k_cache, v_cache, max_seqlen_q=5, cu_seqlens_q=cu_seqlens_q, max_seqlen_k=40,
#                          seqused_k=seq_lens, block_table=block_table, softmax_scale=scale, causal=True)
scale = 1 / math.sqrt(D)
out, lse = ops.paged_attention(
    q, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q, scale=scale, causal=True, return_lse=True
)
print(f"out {out.shape} {out.dtype}, lse {lse.shape}")

# Instead of FlashInfer's
#   wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace)
#   wrapper.plan(cu_seqlens_q, kv_indptr, kv_indices, kv_last_page_len, Hq, Hkv, D, S, causal=True)
#   out = wrapper.run(q, (k_cache, v_cache))
kv_indptr = np.array([0, 3, 5, 6], np.int32)
kv_indices = np.array([4, 9, 2, 7, 0, 5], np.int32)
kv_last_page_len = np.array([8, 16, 1], np.int32)
table, lengths = ops.csr_to_block_table(kv_indptr, kv_indices, kv_last_page_len, S)
plan = ops.plan_attention(lengths, cu_seqlens_q, n_heads=Hq, n_kv_heads=Hkv, head_dim=D)  # once a step
for layer in range(2):
    again = ops.paged_attention(q, k_cache, v_cache, table, lengths, cu_seqlens_q, plan=plan)
    print(f"layer {layer}: the same as before: {np.array_equal(again, out)}")

# Two halves of the keys, merged (FlashInfer's merge_state, vLLM's merge_attn_states): the first sequence alone.
one = np.array([0, 1], np.int32)
parts = [
    ops.paged_attention(q[:1], k_cache, v_cache, pages[None], np.array([n], np.int32), one, return_lse=True)
    for pages, n in ((block_table[0, :1], 16), (block_table[0, 1:], 24))
]
merged = ops.merge_states(*zip(*parts, strict=True))
print(f"halves merged: largest difference {np.abs(merged - out[:1]).max():.1e}")
