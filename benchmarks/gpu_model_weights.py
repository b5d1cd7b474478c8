"""A model of a real shape with random weights for a GPU, made where it is measured: for speed, never for text.

One layer is drawn and packed, and one table of embeddings; every layer gets the same arrays, and so does the output
layer. Each is copied to memory of its own on the device, so a step reads as many bytes as of a model from disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from llm_decoder.backends import BackendOptions, create_backend
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.gpu_weights import GpuDtype, choose_gpu_layout
from llm_decoder.llm import LLM
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.models import parse_config
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor, core_tensors
from llm_decoder.quantize import pack_in_memory
from llm_decoder.speculation import SpeculationOptions
from llm_decoder.tokenizer import Tokenizer

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
DEVIATION = 0.02
_NOISE = 1 << 22  # weights that are drawn; rows begin anywhere in them


@dataclass(frozen=True)
class RandomModel:
    """What a backend needs of a model (backends.Model)."""

    config: ModelConfig
    weights: Mapping[str, PackedTensor]
    layout: MatrixLayout
    name: str
    dtype: GpuDtype = "bfloat16"
    device: str = "cuda"


class RandomCheckpoint:
    """Weights as quantize.pack_in_memory reads them: matrices of noise, norms of ones."""

    path = Path("random weights")

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self._shapes = weight_shapes(config)
        widest = max(shape[-1] for shape in self._shapes.values())
        self._noise = np.random.default_rng(seed).standard_normal(_NOISE + widest, dtype=np.float32) * DEVIATION

    def read(self, name: str) -> np.ndarray:
        return np.ones(self._shapes[name], np.float32)

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        width = self._shapes[name][1]
        starts = (np.arange(begin, end, dtype=np.int64) * 977 * width + len(name)) % _NOISE
        return self._noise[starts[:, None] + np.arange(width)]

    def quantized_rows(self, name: str, begin: int, end: int) -> None:
        """They are quantised where they are packed."""

    def grouped_rows(self, name: str, begin: int, end: int) -> None:
        """They are quantised where they are packed."""

    def fp8_rows(self, name: str, begin: int, end: int) -> None:
        """They are quantised where they are packed."""


def random_model(hf_config: Mapping[str, Any], quantization: str) -> RandomModel:
    config = parse_config(dict(hf_config))
    layout = choose_gpu_layout(config, quantization, "bfloat16")
    least = dataclasses.replace(config, n_layers=1, windows=config.windows[:1], tie_word_embeddings=True)
    packed = pack_in_memory(RandomCheckpoint(least), layout)  # type: ignore[arg-type]
    weights = {tensor.name: packed[_drawn_as(tensor.name)] for tensor in core_tensors(config, layout)}
    return RandomModel(config, weights, layout, f"random {config.model_type}")


def _drawn_as(name: str) -> str:
    _, slash, rest = name.partition("/")
    return f"layer_0/{rest}" if slash else "embedding" if name == "lm_head" else name


def step_bytes(config: ModelConfig, layout: MatrixLayout) -> int:
    """Of weights that every step reads: all but the table of embeddings, of which it reads a row a token, unless that
    is the output layer too."""
    tensors = core_tensors(config, layout)
    return sum(
        tensor.data_bytes + tensor.scale_bytes
        for tensor in tensors
        if tensor.name != "embedding" or config.tie_word_embeddings
    )


def open_llm(model: RandomModel, options: BackendOptions) -> LLM:
    """For token ids, whose answers are text all the same: making it is part of a step. Nothing is guessed ahead, for
    what random weights write repeats itself as no text does."""
    tokenizer = words(model.config.vocab_size)
    engine = Engine(
        lambda: create_backend(model, options),
        tokenizer,
        EngineOptions(max_num_seqs=64, speculation=SpeculationOptions("none")),
    )
    return LLM.over(engine, tokenizer, model.name, model.config)


def words(n: int) -> Tokenizer:
    """A byte-level tokenizer of n tokens, each a word of its own behind a space."""
    rust = RustTokenizer(models.BPE(vocab={f"\u0120{i}": i for i in range(n)}, merges=[]))
    rust.decoder = decoders.ByteLevel()
    return Tokenizer(rust)
