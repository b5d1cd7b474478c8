"""Which fields of a config.json never change logits, and which may stand there at one value only."""

from __future__ import annotations

from typing import Any

__all__ = ["FIXED_FIELDS", "INERT_FIELDS", "INERT_PREFIXES"]

# Code is never imported from a checkpoint: auto_map, trust_remote_code and the implementation names are read by nobody.
INERT_PREFIXES = ("_", "unsloth_", "attn_implementation")

INERT_FIELDS = frozenset(
    [
        # about the file
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path", "auto_map"),
        *("trust_remote_code", "finetuning_task", "task_specific_params", "problem_type", "id2label", "label2id"),
        *("num_labels", "tokenizer_class", "prefix", "license", "model_max_length", "max_sequence_length", "revision"),
        *("is_llama_config", "transformers.js_config"),
        # training
        *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *("dropout", "classifier_dropout", "gradient_checkpointing", "pretraining_tp", "use_bfloat16"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "neftune_noise_alpha"),
        # how a program runs it
        *("use_cache", "return_dict", "return_dict_in_generate", "torchscript", "chunk_size_feed_forward"),
        *("is_decoder", "tf_legacy_loss", "use_flash_attn", "use_flash_attention", "fused_rms_norm"),
        *("experts_implementation", "tie_encoder_decoder", "tokenizer_config", "generation_config"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "output_past"),
        # where windows begin; the families that have such windows read it
        "max_window_layers",
        # tokens: read by the loader of the generation defaults
        *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "decoder_start_token_id"),
        # sampling defaults that old files kept here
        *("do_sample", "temperature", "top_k", "top_p", "typical_p", "min_length", "max_length", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "repetition_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "suppress_tokens"),
        *("begin_suppress_tokens", "exponential_decay_length_penalty"),
    ]
)

# Fields that would change logits at any other value. A family that runs other values too reads the field itself.
FIXED_FIELDS: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "is_causal": True,
    "use_bidirectional_attention": False,
    "activation": "swiglu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_mrope": False,
    "use_qk_norm": False,
    "qk_layernorm": False,
    "rope_interleaved": False,
    "rope_traditional": False,
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
    "logit_scale": 1.0,
    "residual_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
}
