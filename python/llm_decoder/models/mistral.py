"""Mistral: Llama with one sliding window in every layer, or none."""

from __future__ import annotations

from llm_decoder.model_config import LIMITS, ModelConfig
from llm_decoder.models.fields import Fields
from llm_decoder.models.llama import read_common, tensor_names

__all__ = ["ARCHITECTURE", "config_from_hf", "tensor_names"]

ARCHITECTURE = "MistralForCausalLM"


def config_from_hf(fields: Fields) -> ModelConfig:
    """A Mistral config.json as knobs. `sliding_window` null is full attention; absent it is 4096, as in HF."""
    default = None if fields.is_null("sliding_window") else 4096
    window = fields.integer("sliding_window", default=default)
    n_layers = fields.integer("num_hidden_layers", 1, LIMITS["n_layers"])
    fields.only("use_sliding_window", (window is not None,), window is not None)
    return read_common(
        fields,
        windows=(window or 0,) * n_layers,
        default_kv_heads=8,
        default_max_len=4096 * 32,
    )
