"""A decoder-only transformer as plain numbers: the twin of include/llm_decoder/model_config.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_decoder.errors import MalformedFileError

__all__ = ["CORE_FIELDS", "ModelConfig", "weight_shapes"]

# What the core's layer loop reads; the other fields matter to loaders only.
CORE_FIELDS = (
    "n_layers",
    "hidden_size",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_model_len",
    "norm_eps",
    "attention_scale",
    "qk_norm",
    "windows",
    "rope_inv_freq",
    "rope_attention_factor",
)

# Far above any model there is, and small enough that no product of a few of these leaves 64 bits.
LIMITS = {
    "n_layers": 4096,
    "hidden_size": 1 << 20,
    "n_heads": 1 << 14,
    "n_kv_heads": 1 << 14,
    "head_dim": 1 << 12,
    "intermediate_size": 1 << 22,
    "vocab_size": 1 << 24,
    "max_model_len": 1 << 26,
}


@dataclass(frozen=True)
class ModelConfig:
    """The knobs of one model. Sizes are counts, lengths and windows are in tokens.

    Raises MalformedFileError on construction when the numbers contradict each other.
    """

    model_type: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int  # rows of the embedding; may exceed the tokenizer's size
    max_model_len: int
    norm_eps: float
    attention_scale: float  # multiplies q . k
    windows: tuple[int, ...]  # [n_layers], the query itself included; 0 = full attention
    rope_inv_freq: tuple[float, ...]  # [rotary_dim / 2], radians per position, scaling applied
    rope_attention_factor: float = 1.0  # multiplies cos and sin
    qk_norm: bool = False  # RMS norm of each q and k head before rope
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False  # lm_head is the embedding
    limit_reason: str = ""  # what changes in the model above max_model_len, "" when it is only untrained there

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise MalformedFileError(f"[model config] need {name} in 1..{limit}, got {value}")
        if self.n_heads % self.n_kv_heads:
            raise MalformedFileError(
                f"[model config] need n_heads to be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise MalformedFileError(f"[model config] need an even head_dim (rope turns pairs), got {self.head_dim}")
        if len(self.windows) != self.n_layers or min(self.windows) < 0:
            raise MalformedFileError(f"[model config] need a window >= 0 for each of {self.n_layers} layers")
        if len(self.rope_inv_freq) * 2 > self.head_dim:
            raise MalformedFileError(
                f"[model config] need at most head_dim / 2 = {self.head_dim // 2} rope frequencies, "
                f"got {len(self.rope_inv_freq)}"
            )

    def to_core(self) -> dict[str, Any]:
        """The fields of the C++ ModelConfig, sequences as lists."""
        fields = {name: getattr(self, name) for name in CORE_FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.n_kv_heads * self.head_dim


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every weight, unfused, in the order of the layers; matrices are [n_out, n_in]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden)}
    for layer in range(config.n_layers):
        prefix = f"layer_{layer}/"
        shapes[f"{prefix}ln1"] = (hidden,)
        for name, width in (("attn_q", config.q_width), ("attn_k", config.kv_width), ("attn_v", config.kv_width)):
            shapes[f"{prefix}{name}"] = (width, hidden)
            if config.qkv_bias:
                shapes[f"{prefix}{name}.bias"] = (width,)
        if config.qk_norm:
            shapes[f"{prefix}q_norm"] = shapes[f"{prefix}k_norm"] = (config.head_dim,)
        shapes[f"{prefix}attn_o"] = (hidden, config.q_width)
        if config.o_bias:
            shapes[f"{prefix}attn_o.bias"] = (hidden,)
        shapes[f"{prefix}ln2"] = (hidden,)
        for name, n_out, n_in in (("mlp_gate", inner, hidden), ("mlp_up", inner, hidden), ("mlp_down", hidden, inner)):
            shapes[f"{prefix}{name}"] = (n_out, n_in)
            if config.mlp_bias:
                shapes[f"{prefix}{name}.bias"] = (n_out,)
    shapes["final_norm"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    return shapes
