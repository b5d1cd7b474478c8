"""DistilBERT (Sanh et al. 2019): BERT without token types, a head of its own."""

from __future__ import annotations

from llm_decoder.encoders.bert import ACTIVATIONS
from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.encoders.head import HeadConfig
from llm_decoder.models.fields import Fields

__all__ = ["INERT", "PREFIX", "UNUSED", "config_from_hf", "head_from_hf", "head_names", "tensor_names"]

PREFIX = "distilbert."
UNUSED = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "embeddings.position_ids")
# With sinusoidal positions the table is stored all the same.
INERT = ("qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds", "tie_weights_")


def config_from_hf(fields: Fields) -> tuple[EncoderConfig, int]:
    """A DistilBERT config.json as knobs, and the tokens that it can read; HF's defaults stand for absent fields."""
    config = EncoderConfig(
        n_layers=fields.integer("n_layers", default=6),
        hidden_size=fields.integer("dim", default=768),
        intermediate_size=fields.integer("hidden_dim", default=3072),
        n_heads=fields.integer("n_heads", default=12),
        vocab_size=fields.integer("vocab_size"),
        n_positions=fields.integer("max_position_embeddings", default=512),
        norm_eps=1e-12,
        activation=ACTIVATIONS[fields.only("activation", tuple(ACTIVATIONS), "gelu")],
    )
    return config, config.max_model_len


def head_from_hf(fields: Fields) -> HeadConfig:
    """Dense, relu and the classifier over [CLS]."""
    return HeadConfig(activation="relu")


def tensor_names(config: EncoderConfig, fields: Fields) -> dict[str, tuple[str, ...]]:
    """Our name -> the checkpoint's names whose rows it is made of, one below the other, without PREFIX."""
    names: dict[str, tuple[str, ...]] = {
        "embedding": ("embeddings.word_embeddings.weight",),
        "position_embedding": ("embeddings.position_embeddings.weight",),
        "embedding_norm": ("embeddings.LayerNorm.weight",),
        "embedding_norm.bias": ("embeddings.LayerNorm.bias",),
    }
    for layer in range(config.n_layers):
        ours, theirs = f"layer_{layer}/", f"transformer.layer.{layer}."
        for suffix, kind in (("", "weight"), (".bias", "bias")):
            names[f"{ours}attn_qkv{suffix}"] = tuple(f"{theirs}attention.{part}_lin.{kind}" for part in "qkv")
            names[f"{ours}attn_o{suffix}"] = (f"{theirs}attention.out_lin.{kind}",)
            names[f"{ours}ln1{suffix}"] = (f"{theirs}sa_layer_norm.{kind}",)
            names[f"{ours}mlp_fc1{suffix}"] = (f"{theirs}ffn.lin1.{kind}",)
            names[f"{ours}mlp_fc2{suffix}"] = (f"{theirs}ffn.lin2.{kind}",)
            names[f"{ours}ln2{suffix}"] = (f"{theirs}output_layer_norm.{kind}",)
    return names


def head_names(head: HeadConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of each weight of the head."""
    return {
        "head_dense": "pre_classifier.weight",
        "head_dense.bias": "pre_classifier.bias",
        "classifier": "classifier.weight",
        "classifier.bias": "classifier.bias",
    }
