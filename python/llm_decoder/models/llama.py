"""Llama 2 and 3.x, and the shape that the other families vary."""

from __future__ import annotations

from llm_decoder.errors import MalformedFileError
from llm_decoder.model_config import LIMITS, ModelConfig, weight_shapes
from llm_decoder.models.fields import Fields
from llm_decoder.models.rope import read_rope

__all__ = ["ARCHITECTURE", "config_from_hf", "read_common", "tensor_names"]

ARCHITECTURE = "LlamaForCausalLM"


def config_from_hf(fields: Fields) -> ModelConfig:
    """A Llama config.json as knobs; HF's defaults stand for absent fields."""
    has_bias = fields.flag("attention_bias", False)
    mlp_bias = fields.flag("mlp_bias", False)
    return read_common(fields, windows=None, qkv_bias=has_bias, o_bias=has_bias, mlp_bias=mlp_bias)


def read_common(
    fields: Fields,
    *,
    windows: tuple[int, ...] | None,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    default_max_len: int = 2048,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
) -> ModelConfig:
    """What all Llama-like families share.

    `windows` None is full attention everywhere; `layer_types`, where a config has them, must say the same.
    `default_kv_heads` is for an absent field: null is one a query head in every family.
    """
    fields.only("hidden_act", ("silu", "swish"), "silu")
    n_layers = fields.integer("num_hidden_layers", 1, LIMITS["n_layers"])
    hidden_size = fields.integer("hidden_size", 1, LIMITS["hidden_size"])
    n_heads = fields.integer("num_attention_heads", 1, LIMITS["n_heads"])
    if fields.is_null("num_key_value_heads"):
        default_kv_heads = None
    n_kv_heads = fields.integer("num_key_value_heads", 1, LIMITS["n_kv_heads"], default=default_kv_heads or n_heads)
    share = default_head_dim or max(1, hidden_size // n_heads)
    head_dim = fields.integer("head_dim", 1, LIMITS["head_dim"], default=share)
    if head_dim > LIMITS["head_dim"]:
        raise MalformedFileError(
            f"[{fields.place}] need hidden_size / num_attention_heads at most {LIMITS['head_dim']}"
        )
    windows = windows or (0,) * n_layers
    if "layer_types" in fields:
        kinds = ["sliding_attention" if window else "full_attention" for window in windows]
        fields.only("layer_types", (kinds,), kinds)
    max_len = fields.integer("max_position_embeddings", 1, LIMITS["max_model_len"], default=default_max_len)
    rope = read_rope(fields, head_dim, max_len)
    return ModelConfig(
        model_type=fields.text("model_type", ""),
        n_layers=n_layers,
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", 1, LIMITS["intermediate_size"]),
        vocab_size=fields.integer("vocab_size", 1, LIMITS["vocab_size"]),
        max_model_len=rope.max_len,
        limit_reason=rope.limit_reason,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        attention_scale=head_dim**-0.5,
        windows=windows,
        rope_inv_freq=rope.inv_freq,
        rope_attention_factor=rope.attention_factor,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
    )


_NAMES = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_gate": "mlp.gate_proj",
    "mlp_up": "mlp.up_proj",
    "mlp_down": "mlp.down_proj",
}


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of every tensor that the model needs."""
    names = {
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    }
    for ours in weight_shapes(config):
        if "/" not in ours:
            continue
        layer, _, part = ours.partition("/")
        stem, _, kind = part.partition(".")
        names[ours] = f"model.layers.{layer.removeprefix('layer_')}.{_NAMES[stem]}.{kind or 'weight'}"
    if config.tie_word_embeddings:
        del names["lm_head"]
    return names
