"""ModernBERT (Warner et al. 2024): norms first, rotary positions, windows in most layers, a gated MLP."""

from __future__ import annotations

from typing import Any

from llm_decoder.encoders.bert import ACTIVATIONS
from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.encoders.head import HeadConfig
from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.models.fields import Fields

__all__ = ["INERT", "PREFIX", "UNUSED", "config_from_hf", "head_from_hf", "head_names", "tensor_names"]

PREFIX = "model."
UNUSED = ("head.", "decoder.")
INERT = (
    *("initializer_cutoff_factor", "embedding_dropout", "mlp_dropout", "decoder_bias", "deterministic_flash_attn"),
    *("sparse_prediction", "sparse_pred_ignore_index", "reference_compile", "repad_logits_with_grad"),
    "layer_norm_eps",
)
_GLOBAL_THETA, _LOCAL_THETA = 160_000.0, 10_000.0
_KINDS = ("full_attention", "sliding_attention")


def config_from_hf(fields: Fields) -> tuple[EncoderConfig, int]:
    """A ModernBERT config.json as knobs, and the tokens that it can read; HF's defaults stand for absent fields."""
    n_layers = fields.integer("num_hidden_layers", default=22)
    theta, local_theta = _read_thetas(fields)
    config = EncoderConfig(
        n_layers=n_layers,
        hidden_size=fields.integer("hidden_size", default=768),
        intermediate_size=fields.integer("intermediate_size", default=1152),
        n_heads=fields.integer("num_attention_heads", default=12),
        vocab_size=fields.integer("vocab_size"),
        norm_eps=fields.number("norm_eps", default=1e-5),
        norm_bias=fields.flag("norm_bias", False),
        norm_placement="pre",
        has_first_norm=False,
        final_norm=True,
        activation=ACTIVATIONS[fields.only("hidden_activation", tuple(ACTIVATIONS), "gelu")],
        gated=True,
        rope_theta=theta,
        local_rope_theta=local_theta,
        local_window=fields.integer("local_attention", 2, default=128),
        global_every=_read_period(fields, n_layers),
    )
    return config, fields.integer("max_position_embeddings", default=8192)


def head_from_hf(fields: Fields) -> HeadConfig:
    """Dense, activation and norm, then the classifier; over [CLS] or the mean."""
    return HeadConfig(
        pooling="first" if fields.only("classifier_pooling", ("cls", "mean"), "cls") == "cls" else "mean",
        has_dense_bias=fields.flag("classifier_bias", False),
        activation=fields.only("classifier_activation", ("gelu", "relu", "tanh"), "gelu"),
        norm_eps=fields.number("norm_eps", 1e-30, default=1e-5),
        has_norm_bias=fields.flag("norm_bias", False),
    )


def _read_period(fields: Fields, n_layers: int) -> int:
    """How often a layer sees everything: layer_types in the new spelling, a number in the old one."""
    period = fields.integer("global_attn_every_n_layers", default=3)
    kinds = fields.texts("layer_types")
    if kinds is None:
        return period
    if len(kinds) != n_layers:
        raise MalformedFileError(f"[{fields.place}: layer_types] need one for each of {n_layers}, got {len(kinds)}")
    for guess in range(1, n_layers + 1):
        if kinds == [_KINDS[bool(layer % guess)] for layer in range(n_layers)]:
            return guess
    raise UnsupportedModelError(
        f"[{fields.place}: layer_types] this build runs full_attention in every n-th layer from the first, "
        f"sliding_attention in the others, got {', '.join(kinds)[:120]}"
    )


def _read_thetas(fields: Fields) -> tuple[float, float]:
    """(rope_theta of global layers, of the others): rope_parameters in the new spelling, two numbers in the old one."""
    old = (
        fields.number("global_rope_theta", 1.0, default=_GLOBAL_THETA),
        fields.number("local_rope_theta", 1.0, default=_LOCAL_THETA),
    )
    table: dict[str, Any] = fields.table("rope_parameters") or {}
    kinds = Fields(table, f"{fields.place}: rope_parameters")
    thetas = []
    for kind, default in zip(_KINDS, old, strict=True):
        rope = Fields(kinds.table(kind) or {}, f"{kinds.place}: {kind}")
        rope.only("rope_type", ("default",), "default")
        thetas.append(rope.number("rope_theta", 1.0, default=default))
        rope.finish()
    kinds.finish()
    return thetas[0], thetas[1]


def tensor_names(config: EncoderConfig, fields: Fields) -> dict[str, tuple[str, ...]]:
    """Our name -> the checkpoint's names whose rows it is made of, one below the other, without PREFIX."""
    has_bias = {"attn": fields.flag("attention_bias", False), "mlp": fields.flag("mlp_bias", False)}
    names: dict[str, tuple[str, ...]] = {"embedding": ("embeddings.tok_embeddings.weight",)}

    def add(ours: str, theirs: str, has_bias: bool) -> None:
        names[ours] = (f"{theirs}.weight",)
        if has_bias:
            names[f"{ours}.bias"] = (f"{theirs}.bias",)

    add("embedding_norm", "embeddings.norm", config.norm_bias)
    for layer in range(config.n_layers):
        ours, theirs = f"layer_{layer}/", f"layers.{layer}."
        if layer or config.has_first_norm:
            add(f"{ours}ln1", f"{theirs}attn_norm", config.norm_bias)
        add(f"{ours}attn_qkv", f"{theirs}attn.Wqkv", has_bias["attn"])
        add(f"{ours}attn_o", f"{theirs}attn.Wo", has_bias["attn"])
        add(f"{ours}ln2", f"{theirs}mlp_norm", config.norm_bias)
        add(f"{ours}mlp_fc1", f"{theirs}mlp.Wi", has_bias["mlp"])
        add(f"{ours}mlp_fc2", f"{theirs}mlp.Wo", has_bias["mlp"])
    add("final_norm", "final_norm", config.norm_bias)
    return names


def head_names(head: HeadConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of each weight of the head."""
    return {
        "head_dense": "head.dense.weight",
        "head_dense.bias": "head.dense.bias",
        "head_norm": "head.norm.weight",
        "head_norm.bias": "head.norm.bias",
        "classifier": "classifier.weight",
        "classifier.bias": "classifier.bias",
    }
