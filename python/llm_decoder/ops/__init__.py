"""The kernels by themselves, on your own arrays: attention over pages, and what belongs to it.

Arrays are NumPy's or any tensor that speaks DLPack (torch, CuPy, ...), whose framework is never imported; results are
of the same kind as the queries, and where the queries are, there it is computed: on the CPU, or on a CUDA device where
this build has the extension. bfloat16 and fp8 (e4m3) come as tensors that have such a dtype, as NumPy arrays with those
of ml_dtypes, or as uint16 and uint8 with the dtype's name. docs/ops.md gives the shape of every argument.

>>> out = ops.paged_attention(q, k_cache, v_cache, block_table, seq_lens, cu_seqlens_q)

Whatever is wrong with an argument, or computed by no kernel, is an InvalidArgumentError that says what would do.
"""

from __future__ import annotations

from llm_decoder.ops.append import append_kv, reshape_and_cache
from llm_decoder.ops.attention import paged_attention
from llm_decoder.ops.csr import csr_to_block_table, paged_attention_csr
from llm_decoder.ops.merge import merge_states
from llm_decoder.ops.moe import fused_moe
from llm_decoder.ops.pages import copy_blocks, swap_blocks
from llm_decoder.ops.plan import AttentionPlan, plan_attention
from llm_decoder.ops.products import PackedWeights, pack_weights, small_product
from llm_decoder.ops.routing import Tiles, moe_routing, moe_sort
from llm_decoder.ops.rows import embed, gated, layer_norm, rms_norm
from llm_decoder.ops.sampling import BestOfBeams, Sampled, TokenLogProbs, best_of_beams, log_probs, sample

__all__ = [
    "AttentionPlan",
    "BestOfBeams",
    "PackedWeights",
    "Sampled",
    "Tiles",
    "TokenLogProbs",
    "append_kv",
    "best_of_beams",
    "copy_blocks",
    "csr_to_block_table",
    "embed",
    "fused_moe",
    "gated",
    "layer_norm",
    "log_probs",
    "merge_states",
    "moe_routing",
    "moe_sort",
    "pack_weights",
    "paged_attention",
    "paged_attention_csr",
    "plan_attention",
    "reshape_and_cache",
    "rms_norm",
    "sample",
    "small_product",
    "swap_blocks",
]
