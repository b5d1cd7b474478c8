"""The config.json files that the supported families are published with, and the knobs that each must become.

The fields are those of the real files: the ones that matter, and the ones that only look as if they might.
"""

from __future__ import annotations

from typing import Any

_WRITTEN = {"initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1"}
_LLAMA = _WRITTEN | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
LLAMA_2_7B = _LLAMA | {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
}
LLAMA_3_8B = LLAMA_2_7B | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA_3_1_8B_INSTRUCT = LLAMA_3_8B | {
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
LLAMA_3_2_1B = LLAMA_3_1_8B_INSTRUCT | {
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": LLAMA_3_1_8B_INSTRUCT["rope_scaling"] | {"factor": 32.0},
    "tie_word_embeddings": True,
}
TINY_LLAMA = _LLAMA | {
    "attention_bias": False,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}
SMOL_LM_135M = _LLAMA | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
SMOL_LM2_135M = SMOL_LM_135M | {
    "initializer_range": 0.041666666666666664,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "rope_interleaved": False,
    "rope_theta": 100000,
}
SMOL_LM2_1_7B_INSTRUCT = SMOL_LM2_135M | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "num_key_value_heads": 32,
    "pad_token_id": 2,
    "rope_theta": 130000,
    "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
}
FALCON_3_1B = _LLAMA | {
    "activation": "swiglu",
    "attention_bias": False,
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 4,
    "rope_theta": 1000042,
    "vocab_size": 131072,
}
DEEPSEEK_CODER_1_3B = LLAMA_2_7B | {
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "max_position_embeddings": 16384,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
    "rope_theta": 100000,
    "vocab_size": 32256,
}

MISTRAL_7B_V0_1 = _WRITTEN | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
MISTRAL_7B_V0_2 = MISTRAL_7B_V0_1 | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None}
MISTRAL_7B_V0_3 = MISTRAL_7B_V0_2 | {"vocab_size": 32768}
MISTRAL_NEMO = MISTRAL_7B_V0_2 | {
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 131072,
    "num_hidden_layers": 40,
    "vocab_size": 131072,
}

QWEN_2_0_5B = _WRITTEN | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_2_5_0_5B = QWEN_2_0_5B | {"max_position_embeddings": 32768, "sliding_window": 32768, "use_mrope": False}
QWEN_2_5_7B_INSTRUCT = QWEN_2_5_0_5B | {
    "eos_token_id": 151645,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
}
QWEN_2_5_7B_LONGER = QWEN_2_5_7B_INSTRUCT | {
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
}
QWEN_2_5_7B_INSTRUCT_1M = QWEN_2_5_7B_INSTRUCT | {
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
    "max_position_embeddings": 1010000,
    "rope_theta": 10000000.0,
    "sliding_window": 32768,
}
QWEN_2_5_WRITTEN_BY_TRANSFORMERS_5 = {
    key: value for key, value in QWEN_2_5_0_5B.items() if key not in ("torch_dtype", "rope_theta")
} | {
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 24,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "sliding_window": None,
    "transformers_version": "5.0.0",
}
QWEN_3_0_6B = _WRITTEN | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def knobs(context: int, head_dim: int, n_kv_heads: int, theta: float, **others: Any) -> dict[str, Any]:
    plain = {"window": 0, "tied": False, "qkv_bias": False, "o_bias": False, "qk_norm": False}
    return {"context": context, "head_dim": head_dim, "n_kv_heads": n_kv_heads, "theta": theta, **plain, **others}


PUBLISHED = {
    "Llama 2 7B": (LLAMA_2_7B, knobs(4096, 128, 32, 1e4)),
    "Llama 3 8B": (LLAMA_3_8B, knobs(8192, 128, 8, 5e5)),
    "Llama 3.1 8B Instruct": (LLAMA_3_1_8B_INSTRUCT, knobs(131072, 128, 8, 5e5)),
    "Llama 3.2 1B": (LLAMA_3_2_1B, knobs(131072, 64, 8, 5e5, tied=True)),
    "TinyLlama 1.1B": (TINY_LLAMA, knobs(2048, 64, 4, 1e4)),
    "SmolLM 135M": (SMOL_LM_135M, knobs(2048, 64, 3, 1e4, tied=True)),
    "SmolLM2 135M": (SMOL_LM2_135M, knobs(8192, 64, 3, 1e5, tied=True)),
    "SmolLM2 1.7B Instruct": (SMOL_LM2_1_7B_INSTRUCT, knobs(8192, 64, 32, 130000.0, tied=True)),
    "Falcon3 1B": (FALCON_3_1B, knobs(4096, 256, 4, 1000042.0)),
    # linear scaling divides every frequency by 4, so the second of them looks like that of a larger theta
    "DeepSeek Coder 1.3B": (DEEPSEEK_CODER_1_3B, knobs(16384, 128, 16, 1e5 * 4.0**64)),
    "Mistral 7B v0.1": (MISTRAL_7B_V0_1, knobs(32768, 128, 8, 1e4, window=4096)),
    "Mistral 7B v0.2": (MISTRAL_7B_V0_2, knobs(32768, 128, 8, 1e6)),
    "Mistral 7B v0.3": (MISTRAL_7B_V0_3, knobs(32768, 128, 8, 1e6)),
    "Mistral Nemo": (MISTRAL_NEMO, knobs(131072, 128, 8, 1e6)),
    "Qwen2 0.5B": (QWEN_2_0_5B, knobs(131072, 64, 2, 1e6, tied=True, qkv_bias=True)),
    "Qwen2.5 0.5B": (QWEN_2_5_0_5B, knobs(32768, 64, 2, 1e6, tied=True, qkv_bias=True)),
    "Qwen2.5 0.5B, written by transformers 5": (
        QWEN_2_5_WRITTEN_BY_TRANSFORMERS_5,
        knobs(32768, 64, 2, 1e6, tied=True, qkv_bias=True),
    ),
    "Qwen2.5 7B Instruct": (QWEN_2_5_7B_INSTRUCT, knobs(32768, 128, 4, 1e6, qkv_bias=True)),
    "Qwen2.5 7B with the yarn of its card": (QWEN_2_5_7B_LONGER, knobs(131072, 128, 4, 1e6, qkv_bias=True)),
    "Qwen2.5 7B Instruct 1M": (QWEN_2_5_7B_INSTRUCT_1M, knobs(262144 - 8192, 128, 4, 1e7, qkv_bias=True)),
    "Qwen3 0.6B": (QWEN_3_0_6B, knobs(40960, 128, 8, 1e6, tied=True, qk_norm=True)),
}

# What transformers before 4.40 or so wrote into every file, whatever the model, when it was told to write all.
OLD_DEFAULTS = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "pad_token_id": -1,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict": True,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torch_dtype": "float32",
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}
# What trainers and converters add.
ADDED_BY_TOOLS = {
    "_attn_implementation_autoset": True,
    "_flash_attn_2_enabled": True,
    "attn_implementation": "flash_attention_2",
    "gradient_checkpointing": False,
    "head_dim": None,
    "is_llama_config": True,
    "max_sequence_length": 2048,
    "model_max_length": 4096,
    "name_or_path": "somebody/something",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "rope_scaling": None,
    "rope_traditional": False,
    "unsloth_fixed": True,
    "unsloth_version": "2024.11.10",
    "use_mrope": False,
}
