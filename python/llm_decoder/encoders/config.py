"""An encoder as plain numbers: the twin of include/llm_decoder/encoder_config.h."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from llm_decoder.errors import MalformedFileError

__all__ = ["ACTIVATIONS", "NORM_PLACEMENTS", "EncoderConfig", "weight_shapes"]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
NORM_PLACEMENTS = ("post", "pre")

# Far above any encoder there is, and small enough that no product of a few of these leaves 64 bits: least and most.
_LIMITS = {
    "n_layers": (1, 1 << 12),
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "n_heads": (1, 1 << 12),
    "vocab_size": (1, 1 << 24),
    "n_positions": (0, 1 << 24),
    "position_offset": (0, 1 << 24),
    "n_types": (0, 1 << 16),
    "local_window": (0, 1 << 24),
    "global_every": (1, 1 << 12),
}


@dataclass(frozen=True)
class EncoderConfig:
    """The knobs of one encoder. Sizes are counts, positions and windows are in tokens.

    The bias of a matrix is no knob: it is there when its weight is. Raises MalformedFileError on construction when the
    numbers contradict each other.
    """

    n_layers: int
    hidden_size: int
    intermediate_size: int  # what the MLP's second matrix reads
    n_heads: int
    vocab_size: int
    n_positions: int = 0  # rows of the learned position embedding; 0 = none
    position_offset: int = 0  # row of a sequence's first token (RoBERTa: the id of its padding plus 1)
    n_types: int = 0  # rows of the token type embedding; 0 = none
    norm_eps: float = 1e-12
    norm_bias: bool = True  # of all layer norms
    norm_placement: str = "post"  # "post": x = norm(x + f(x)), as BERT; "pre": x = x + f(norm(x)), as ModernBERT
    embedding_norm: bool = True
    has_first_norm: bool = True  # False: layer 0 has no ln1 (ModernBERT)
    final_norm: bool = False
    activation: str = "gelu"  # one of ACTIVATIONS; "gelu" is the one with erf
    gated: bool = False  # the MLP is activation(first half) * second half of mlp_fc1
    rope_theta: float = 0.0  # base of the rotary embedding over whole heads, halves apart; 0 = none
    local_rope_theta: float = 0.0  # of the layers with a window; 0 = rope_theta
    local_window: int = 0  # a token sees local_window // 2 tokens to either side of it; 0 = all, in every layer
    global_every: int = 1  # layer i sees everything where i % global_every == 0

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise MalformedFileError(f"[encoder config] need {name} in {least}..{most}, got {value}")
        if self.hidden_size % self.n_heads:
            raise MalformedFileError(
                "[encoder config] need hidden_size to be a multiple of n_heads, "
                f"got {self.hidden_size} and {self.n_heads}"
            )
        if self.rope_theta and self.head_dim % 2:
            raise MalformedFileError(f"[encoder config] need an even head_dim (rope turns pairs), got {self.head_dim}")
        for name, choices in (("activation", ACTIVATIONS), ("norm_placement", NORM_PLACEMENTS)):
            if getattr(self, name) not in choices:
                raise MalformedFileError(
                    f"[encoder config] need {name} to be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in ("norm_eps", "rope_theta", "local_rope_theta"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise MalformedFileError(f"[encoder config] need {name} to be 0 or a positive number, got {value}")
        if self.local_rope_theta and not self.rope_theta:
            raise MalformedFileError("[encoder config] need rope_theta where local_rope_theta is, got 0")
        if self.n_positions and self.position_offset >= self.n_positions:
            raise MalformedFileError(
                f"[encoder config] need position_offset below n_positions, got {self.position_offset} "
                f"and {self.n_positions}"
            )
        if self.local_window == 1:
            raise MalformedFileError("[encoder config] need local_window 0 (none) or 2 and more, got 1")
        if not self.has_first_norm and self.norm_placement == "post":
            raise MalformedFileError("[encoder config] need has_first_norm with norm_placement 'post', got False")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence that has learned positions; 0 where none are learned and nothing limits it."""
        return self.n_positions - self.position_offset if self.n_positions else 0

    def window_of(self, layer: int) -> int:
        """Tokens that each token of `layer` sees to either side of it; 0 = all."""
        return 0 if layer % self.global_every == 0 else self.local_window // 2

    def rope_theta_of(self, layer: int) -> float:
        return (self.window_of(layer) and self.local_rope_theta) or self.rope_theta

    def to_core(self) -> dict[str, Any]:
        """The fields of the C++ EncoderConfig."""
        return dataclasses.asdict(self)


def weight_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every weight; matrices are [n_out, n_in]. Biases of matrices may be missing."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden)}
    if config.n_positions:
        shapes["position_embedding"] = (config.n_positions, hidden)
    if config.n_types:
        shapes["type_embedding"] = (config.n_types, hidden)

    def add_norm(name: str) -> None:
        shapes[name] = (hidden,)
        if config.norm_bias:
            shapes[f"{name}.bias"] = (hidden,)

    def add_matrix(name: str, n_out: int, n_in: int) -> None:
        shapes[name] = (n_out, n_in)
        shapes[f"{name}.bias"] = (n_out,)

    if config.embedding_norm:
        add_norm("embedding_norm")
    for layer in range(config.n_layers):
        prefix = f"layer_{layer}/"
        if layer or config.has_first_norm:
            add_norm(f"{prefix}ln1")
        add_matrix(f"{prefix}attn_qkv", 3 * hidden, hidden)
        add_matrix(f"{prefix}attn_o", hidden, hidden)
        add_norm(f"{prefix}ln2")
        add_matrix(f"{prefix}mlp_fc1", 2 * inner if config.gated else inner, hidden)
        add_matrix(f"{prefix}mlp_fc2", hidden, inner)
    if config.final_norm:
        add_norm("final_norm")
    return shapes
