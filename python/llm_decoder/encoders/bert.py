"""BERT (Devlin et al. 2019), and the MiniLM encoders that share its shape."""

from __future__ import annotations

from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.encoders.head import HeadConfig
from llm_decoder.models.fields import Fields

__all__ = ["INERT", "PREFIX", "UNUSED", "config_from_hf", "head_from_hf", "head_names", "read_common", "tensor_names"]

# The name of the encoder inside of a model with a head.
PREFIX = "bert."
# What a checkpoint may hold that its hidden states do not come from.
UNUSED = ("pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids")
INERT: tuple[str, ...] = ()

# HF's name of an activation -> ours.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def config_from_hf(fields: Fields) -> tuple[EncoderConfig, int]:
    """A BERT config.json as knobs, and the tokens that it can read."""
    config = read_common(fields, default_n_types=2)
    return config, config.max_model_len


def read_common(fields: Fields, *, default_n_types: int, position_offset: int = 0) -> EncoderConfig:
    """What BERT and RoBERTa share; HF's defaults stand for absent fields."""
    return EncoderConfig(
        n_layers=fields.integer("num_hidden_layers", default=12),
        hidden_size=fields.integer("hidden_size", default=768),
        intermediate_size=fields.integer("intermediate_size", default=3072),
        n_heads=fields.integer("num_attention_heads", default=12),
        vocab_size=fields.integer("vocab_size"),
        n_positions=fields.integer("max_position_embeddings", default=512),
        position_offset=position_offset,
        n_types=fields.integer("type_vocab_size", default=default_n_types),
        norm_eps=fields.number("layer_norm_eps", default=1e-12),
        activation=ACTIVATIONS[fields.only("hidden_act", tuple(ACTIVATIONS), "gelu")],
    )


def head_from_hf(fields: Fields) -> HeadConfig:
    """The pooler (dense, tanh) over [CLS], then the classifier."""
    return HeadConfig(activation="tanh")


def tensor_names(config: EncoderConfig, fields: Fields) -> dict[str, tuple[str, ...]]:
    """Our name -> the checkpoint's names whose rows it is made of, one below the other, without PREFIX."""
    names: dict[str, tuple[str, ...]] = {
        "embedding": ("embeddings.word_embeddings.weight",),
        "position_embedding": ("embeddings.position_embeddings.weight",),
        "type_embedding": ("embeddings.token_type_embeddings.weight",),
        "embedding_norm": ("embeddings.LayerNorm.weight",),
        "embedding_norm.bias": ("embeddings.LayerNorm.bias",),
    }
    for layer in range(config.n_layers):
        ours, theirs = f"layer_{layer}/", f"encoder.layer.{layer}."
        for suffix, kind in (("", "weight"), (".bias", "bias")):
            names[f"{ours}attn_qkv{suffix}"] = tuple(
                f"{theirs}attention.self.{part}.{kind}" for part in ("query", "key", "value")
            )
            names[f"{ours}attn_o{suffix}"] = (f"{theirs}attention.output.dense.{kind}",)
            names[f"{ours}ln1{suffix}"] = (f"{theirs}attention.output.LayerNorm.{kind}",)
            names[f"{ours}mlp_fc1{suffix}"] = (f"{theirs}intermediate.dense.{kind}",)
            names[f"{ours}mlp_fc2{suffix}"] = (f"{theirs}output.dense.{kind}",)
            names[f"{ours}ln2{suffix}"] = (f"{theirs}output.LayerNorm.{kind}",)
    return names


def head_names(head: HeadConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of each weight of the head."""
    return {
        "head_dense": "bert.pooler.dense.weight",
        "head_dense.bias": "bert.pooler.dense.bias",
        "classifier": "classifier.weight",
        "classifier.bias": "classifier.bias",
    }
