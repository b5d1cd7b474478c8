"""The floor of a step: the bytes that it must read and the operations that it must do, counted from the model's
numbers, and how long a machine takes for these at the least.

After Williams, Waterman and Patterson 2009, "Roofline". Counted are the weights of each product (once a step), the
embedding's rows and the keys and values that attention sees (once a step for each sequence); what stays in caches is
not, nor are norms, rope and sampling, which are a few operations a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llm_decoder.fit import kv_bytes_per_token
from llm_decoder.model_config import ModelConfig
from llm_decoder.packed_tensor import MatrixLayout, core_tensors

__all__ = ["Bound", "Chunk", "Limits", "Work", "floor_s", "step_work"]

Bound = Literal["read", "int8", "float32"]


@dataclass(frozen=True)
class Limits:
    """What a machine does at most in a second: bytes read from memory, operations (a multiply-add is two)."""

    read_bytes_per_s: float
    int8_ops_per_s: float
    f32_ops_per_s: float

    def best_of(self, other: Limits) -> Limits:
        """Of two measurements the faster of each: what else runs on a machine can only lower them."""
        return Limits(
            max(self.read_bytes_per_s, other.read_bytes_per_s),
            max(self.int8_ops_per_s, other.int8_ops_per_s),
            max(self.f32_ops_per_s, other.f32_ops_per_s),
        )


@dataclass(frozen=True)
class Work:
    """Bytes read from memory, operations on int8 and on float32."""

    read_bytes: int = 0
    int8_ops: int = 0
    f32_ops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.read_bytes + other.read_bytes, self.int8_ops + other.int8_ops, self.f32_ops + other.f32_ops)

    @property
    def ops(self) -> int:
        return self.int8_ops + self.f32_ops

    def floor_s(self, limits: Limits) -> float:
        """Seconds that it takes at the least: reading and computing go on at the same time, the longer one counts."""
        return max(self._seconds(limits).values())

    def bound(self, limits: Limits) -> Bound:
        """What of it takes longest."""
        seconds = self._seconds(limits)
        return max(seconds, key=lambda name: seconds[name])

    def _seconds(self, limits: Limits) -> dict[Bound, float]:
        int8_s, f32_s = self.int8_ops / limits.int8_ops_per_s, self.f32_ops / limits.f32_ops_per_s
        compute: Bound = "int8" if int8_s >= f32_s else "float32"
        return {"read": self.read_bytes / limits.read_bytes_per_s, compute: int8_s + f32_s}


@dataclass(frozen=True)
class Chunk:
    """A sequence's part of a step: n_tokens new ones, of `context` that it has with them; n_rows rows of logits."""

    n_tokens: int
    context: int
    n_rows: int


def floor_s(parts: Mapping[str, Work], limits: Limits) -> float:
    """Seconds of a step at the least: its parts come one after the other."""
    return sum(work.floor_s(limits) for work in parts.values())


def step_work(config: ModelConfig, layout: MatrixLayout, kv_dtype: str, chunks: Sequence[Chunk]) -> dict[str, Work]:
    """The work of a step by its parts, named as the core's profile names them; a part that is not here has none.

    layout: of the layers' matrices; w8 and w4 are computed in int8. kv_dtype: of the cache; all but int8 is computed
    in float32. In the last layer only the rows that get logits go on after the keys and values are written.
    """
    n_tokens, n_rows = sum(chunk.n_tokens for chunk in chunks), sum(chunk.n_rows for chunk in chunks)
    parts: dict[str, Work] = {}
    last = f"layer_{config.n_layers - 1}/"
    for tensor in core_tensors(config, layout):
        if tensor.layout == "vector":
            continue
        name = tensor.name.rpartition("/")[2]
        if name == "embedding":
            _add(parts, "embed", Work(read_bytes=n_tokens * tensor.row_bytes))
            if not config.tie_word_embeddings:
                continue
            name = "lm_head"
        reaches_all = name != "lm_head" and (name == "attn_qkv" or not tensor.name.startswith(last))
        rows = n_tokens if reaches_all else n_rows
        if rows:
            n_out, n_in = tensor.shape
            n_bytes = tensor.data_bytes + tensor.scale_bytes
            _add(parts, name, _computed(tensor.is_quantized, 2 * rows * n_out * n_in, n_bytes))
    _add(parts, "attention", _attention(config, kv_dtype, chunks))
    return parts


def _attention(config: ModelConfig, kv_dtype: str, chunks: Iterable[Chunk]) -> Work:
    position_bytes = kv_bytes_per_token(config, kv_dtype) // config.n_layers
    n_pairs = n_positions = 0  # (token, position that it sees), positions that any token sees; over all layers
    for chunk in chunks:
        for layer, window in enumerate(config.windows):
            n_tokens = chunk.n_rows if layer == config.n_layers - 1 else chunk.n_tokens
            n_pairs += _pairs(n_tokens, chunk.context, window)
            n_positions += min(chunk.context, window + n_tokens - 1 if window else chunk.context) if n_tokens else 0
    n_ops = 2 * 2 * n_pairs * config.n_heads * config.head_dim  # a product with the keys, one with the values
    return _computed(kv_dtype == "int8", n_ops, n_positions * position_bytes)


def _pairs(n_tokens: int, context: int, window: int) -> int:
    """Positions that the last `n_tokens` of `context` see, added up; each sees itself and what is before it."""
    sees_all = n_tokens * context - n_tokens * (n_tokens - 1) // 2
    if not window:
        return sees_all
    n_full = min(n_tokens, max(0, context - window))  # tokens that see a whole window with something before it
    return n_full * window + _pairs(n_tokens - n_full, context - n_full, 0)


def _computed(is_int8: bool, n_ops: int, n_bytes: int) -> Work:
    return Work(n_bytes, n_ops, 0) if is_int8 else Work(n_bytes, 0, n_ops)


def _add(parts: dict[str, Work], name: str, work: Work) -> None:
    parts[name] = parts.get(name, Work()) + work
