"""Qwen3: RMS norm on each q and k head before rope, a head_dim of its own, biases only when asked for."""

from __future__ import annotations

from llm_decoder.model_config import ModelConfig
from llm_decoder.models.fields import Fields
from llm_decoder.models.llama import read_common, tensor_names
from llm_decoder.models.qwen2 import read_windows

__all__ = ["ARCHITECTURE", "config_from_hf", "tensor_names"]

ARCHITECTURE = "Qwen3ForCausalLM"


def config_from_hf(fields: Fields) -> ModelConfig:
    """A Qwen3 config.json as knobs; HF's defaults stand for absent fields."""
    has_bias = fields.flag("attention_bias", False)
    return read_common(
        fields,
        windows=read_windows(fields),
        default_kv_heads=32,
        default_head_dim=128,
        default_max_len=32768,
        qk_norm=True,
        qkv_bias=has_bias,
        o_bias=has_bias,
    )
