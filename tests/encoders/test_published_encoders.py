"""config.json of encoders that people use, field for field, and the knobs that they must become."""

from __future__ import annotations

from typing import Any

import pytest

from llm_decoder.encoders.families import parse_encoder

MS_MARCO_MINILM: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"},
    "torch_dtype": "float32",
    "transformers_version": "4.52.0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
BGE_RERANKER_V2_M3: dict[str, Any] = {
    "_name_or_path": "BAAI/bge-m3",
    "architectures": ["XLMRobertaForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 0,
    "classifier_dropout": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 8194,
    "model_type": "xlm-roberta",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
    "type_vocab_size": 1,
    "use_cache": True,
    "vocab_size": 250002,
}
DISTILBERT: dict[str, Any] = {
    "activation": "gelu",
    "architectures": ["DistilBertForMaskedLM"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "hidden_dim": 3072,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 30522,
}
MODERNBERT: dict[str, Any] = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "reference_compile": None,
    "repad_logits_with_grad": False,
    "sep_token_id": 50282,
    "sparse_pred_ignore_index": -100,
    "sparse_prediction": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}

# name -> (config.json, tokens, position_offset, n_types, pooling, activation of the head, whether it has one)
PUBLISHED: dict[str, tuple[dict[str, Any], int, int, int, str, str, bool]] = {
    "ms-marco-MiniLM-L6-v2": (MS_MARCO_MINILM, 512, 0, 2, "first", "tanh", True),
    "bge-reranker-v2-m3": (BGE_RERANKER_V2_M3, 8192, 2, 1, "first", "tanh", True),
    "distilbert-base-uncased": (DISTILBERT, 512, 0, 0, "first", "relu", False),
    "ModernBERT-base": (MODERNBERT, 8192, 0, 0, "mean", "gelu", False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_becomes_its_knobs(name: str) -> None:
    values, n_tokens, position_offset, n_types, pooling, activation, is_classifier = PUBLISHED[name]
    shape = parse_encoder(values, name)
    assert shape.n_tokens == n_tokens
    assert (shape.config.position_offset, shape.config.n_types) == (position_offset, n_types)
    assert (shape.head.pooling, shape.head.activation) == (pooling, activation)
    assert shape.is_classifier is is_classifier


def test_modernbert_has_windows_in_two_of_three_layers() -> None:
    config = parse_encoder(MODERNBERT).config
    assert [config.window_of(layer) for layer in range(4)] == [0, 64, 64, 0]
    assert [config.rope_theta_of(layer) for layer in range(4)] == [160000.0, 10000.0, 10000.0, 160000.0]
    assert config.gated
    assert not config.has_first_norm
