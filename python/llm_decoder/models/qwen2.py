"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and windows in the upper layers when asked for."""

from __future__ import annotations

from dataclasses import replace

from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.model_config import LIMITS, ModelConfig
from llm_decoder.models.fields import Fields
from llm_decoder.models.llama import read_common, tensor_names

__all__ = ["ARCHITECTURE", "config_from_hf", "read_windows", "tensor_names"]

ARCHITECTURE = "Qwen2ForCausalLM"


def config_from_hf(fields: Fields) -> ModelConfig:
    """A Qwen2 config.json as knobs; HF's defaults stand for absent fields."""
    fields.flag("attention_bias", True)  # of no effect: the biases are always there
    windows = read_windows(fields)
    config = read_common(fields, windows=windows, default_kv_heads=32, default_max_len=32768, qkv_bias=True)
    return _up_to_one_chunk(config, fields)


def _up_to_one_chunk(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Dual chunk attention (An et al. 2024; Qwen2.5-1M) is plain attention within its first chunk: that far it is
    run."""
    table = fields.table("dual_chunk_attention_config")
    if not table:
        return config
    chunking = Fields(table, f"{fields.place}: dual_chunk_attention_config")
    chunk_size = chunking.integer("chunk_size")
    # The last local_size tokens of a chunk reach over into the next one.
    first_chunk = chunk_size - chunking.integer("local_size", 0, chunk_size - 1)
    limit = min(first_chunk, chunking.integer("original_max_position_embeddings", default=first_chunk))
    chunking.finish()
    if limit >= config.max_model_len:
        return config
    reason = "beyond it dual chunk attention renumbers positions, which this build does not do"
    return replace(config, max_model_len=limit, limit_reason=reason)


def read_windows(fields: Fields) -> tuple[int, ...]:
    """The window of each layer: `layer_types` when given, else layers from `max_window_layers` on slide."""
    n_layers = fields.integer("num_hidden_layers", 1, LIMITS["n_layers"])
    window = fields.integer("sliding_window", default=None if fields.is_null("sliding_window") else 4096)
    first = fields.integer("max_window_layers", 0, default=28)
    layer_types = fields.texts("layer_types")
    if not fields.flag("use_sliding_window", False):
        window = None
    if layer_types is None:
        return tuple(window or 0 if layer >= first else 0 for layer in range(n_layers))
    if len(layer_types) != n_layers:
        raise MalformedFileError(
            f"[{fields.place}: layer_types] need one for each of {n_layers} layers, got {len(layer_types)}"
        )
    for kind in set(layer_types) - {"full_attention", "sliding_attention"}:
        raise UnsupportedModelError(f"[{fields.place}: layer_types] this build does not run {kind[:40]!r} layers")
    if "sliding_attention" in layer_types and window is None:
        raise MalformedFileError(
            f"[{fields.place}: layer_types] sliding_attention needs use_sliding_window true and a sliding_window"
        )
    return tuple(window or 0 if kind == "sliding_attention" else 0 for kind in layer_types)
