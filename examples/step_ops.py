"""A step of a small decoder out of llm_decoder.ops alone: norms, products with packed weights, keys and values into
their pages, attention, a mixture of experts, sampling. On a GPU pass torch tensors instead."""

import numpy as np

from llm_decoder import ops

rng = np.random.default_rng(0)
T, N, V = 4, 128, 1000  # tokens of the step (a sequence each), width, vocabulary
Hq, Hkv, D, P, S = 4, 2, 32, 8, 16  # query heads, KV heads, head size, pages, slots a page
E, INNER, TOP_K = 8, 64, 2  # experts, their width, how many a token goes to


def weights(*shape):
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


# Once, at load.
embedding, norm_weight, head_norm = weights(V, N), np.ones(N, np.float32), np.ones(D, np.float32)
qkv = ops.pack_weights(weights((Hq + 2 * Hkv) * D, N), "w8")
back = ops.pack_weights(weights(N, Hq * D), "w4")
logits_of = ops.pack_weights(embedding, "w8")
router, w1, w2 = weights(E, N), weights(E, 2 * INNER, N), weights(E, N, INNER)
k_cache, v_cache = np.zeros((2, P, S, Hkv, D), np.int8)
k_scale, v_scale = np.ones((2, P, S, Hkv), np.float32)  # one a slot and head, made as they are filled
angles = np.arange(P * S)[:, None] / 10000 ** (np.arange(D // 2) / (D // 2))  # of every position
cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

# Each sequence has a page of its own.
tokens = np.array([5, 17, 400, 999], np.int32)
block_table, cu_seqlens_q = np.arange(T, dtype=np.int32)[:, None], np.arange(T + 1, dtype=np.int32)
seeds = np.array([1, 2, 3, 3], np.uint64)
for position in range(3):
    residual = ops.embed(tokens, embedding)
    rows = ops.rms_norm(residual, norm_weight)
    q, key, value = np.split(ops.small_product(rows, qkv).reshape(T, -1, D), [Hq, Hq + Hkv], axis=1)
    # Instead of vLLM's fused_qk_norm_rope, rotary_embedding and reshape_and_cache_flash, or FlashInfer's
    # apply_rope_pos_ids_inplace and append_paged_kv_cache: one pass, q in place.
    ops.append_kv(
        q, key, value, k_cache, v_cache, block_table[:, 0].astype(np.int64) * S + position, k_scale, v_scale,
        rotary_cos=np.repeat(cos[position : position + 1], T, axis=0),
        rotary_sin=np.repeat(sin[position : position + 1], T, axis=0),
        q_norm=head_norm, k_norm=head_norm,
    )  # fmt: skip
    seq_lens = np.full(T, position + 1, np.int32)
    attended = ops.paged_attention(
        q, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q, k_scale=k_scale, v_scale=v_scale
    )
    # Adds to the residual on the way (vLLM's fused_add_rms_norm).
    rows = ops.rms_norm(ops.small_product(attended.reshape(T, -1), back), norm_weight, residual=residual)
    # Instead of vLLM's fused_topk and fused_moe.
    topk_weights, topk_ids = ops.moe_routing(rows @ router.T, TOP_K, renormalize=True)
    mixed = ops.fused_moe(rows, w1, w2, topk_weights, topk_ids)
    rows = ops.rms_norm(mixed, norm_weight, residual=residual)
    # Instead of FlashInfer's top_k_top_p_sampling_from_logits; equal seeds and positions draw alike.
    drawn = ops.sample(
        ops.small_product(rows, logits_of), temperature=0.8, top_k=50, top_p=0.9, seed=seeds, position=position
    )
    tokens = drawn.tokens
    print(f"position {position}: tokens {tokens.tolist()}, log probabilities {np.round(drawn.logprobs, 2).tolist()}")

# Four beams of one sequence: which eight continuations of all beams are best.
best = ops.best_of_beams(ops.small_product(rows, logits_of), np.zeros(T, np.float32), n_beams=T)
print(f"beams {best.beams[0].tolist()} go on with tokens {best.tokens[0].tolist()}")
