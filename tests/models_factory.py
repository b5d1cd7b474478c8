"""Small random checkpoints as HF lays them out: config.json, safetensors, a byte-level BPE tokenizer. Needs no torch.

    from models_factory import make_checkpoint
    folder = make_checkpoint(tmp_path / "model", "qwen2", seed=3, num_hidden_layers=3)

Weights are drawn wide enough that greedy tokens differ from step to step, from a generator whose stream numpy has
frozen (RandomState), so that a seed means the same checkpoint on every machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# ChatML as Qwen writes it, with tools and calls of them.
TOOLS_TEMPLATE = """\
{%- if tools %}{{ '<|system|>\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>\\n' }}
    {%- if message.content %}{{ message.content }}{% endif %}
    {%- for call in message.tool_calls %}
        {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
TOKENIZER_SIZE = 320

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 331,  # larger than the tokenizer, a multiple of nothing
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 16},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "rms_norm_eps": 1e-6},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 24,
        "attention_bias": False,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}


def make_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "F32",
    n_shards: int = 1,
    tokenizer: bool = True,
    chat_template: str | None = CHAT_TEMPLATE,
    **overrides: Any,
) -> Path:
    """Write one checkpoint and return its folder.

    `dtype` is F32, F16 or BF16; `overrides` replace fields of config.json, and a value of `...` removes the field.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(family, **overrides)
    config["torch_dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    write_json(folder / "config.json", config)
    write_shards(folder, random_weights(config, seed), dtype, n_shards)
    if tokenizer:
        make_tokenizer(folder, chat_template=chat_template)
    return folder


def hf_config(family: str = "llama", **overrides: Any) -> dict[str, Any]:
    config = {"model_type": family, **BASE, **FAMILIES[family], **overrides}
    return {key: value for key, value in config.items() if value is not ...}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint, matrices as [n_out, n_in]."""
    family, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    n_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // n_heads
    q_width, kv_width = n_heads * head_dim, (config.get("num_key_value_heads") or n_heads) * head_dim
    has_qkv_bias = family == "qwen2" or config.get("attention_bias", False)
    has_o_bias = family != "qwen2" and config.get("attention_bias", False)

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        attn, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
        for part, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            shapes[f"{attn}.{part}_proj.weight"] = (width, hidden)
            if has_qkv_bias:
                shapes[f"{attn}.{part}_proj.bias"] = (width,)
        if family == "qwen3":
            shapes[f"{attn}.q_norm.weight"] = shapes[f"{attn}.k_norm.weight"] = (head_dim,)
        shapes[f"{attn}.o_proj.weight"] = (hidden, q_width)
        if has_o_bias:
            shapes[f"{attn}.o_proj.bias"] = (hidden,)
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
        for part, n_out, n_in in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            shapes[f"{mlp}.{part}_proj.weight"] = (n_out, n_in)
            if config.get("mlp_bias", False):
                shapes[f"{mlp}.{part}_proj.bias"] = (n_out,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 tensors by checkpoint name."""
    rng = np.random.RandomState(seed)
    return {name: _draw(rng, name, shape) for name, shape in tensor_shapes(config).items()}


def _draw(rng: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if "norm" in name:
        values = 1.0 + 0.1 * values
    elif name.endswith(".bias"):
        values = 0.2 * values
    elif name == "model.embed_tokens.weight":
        values = values  # deviation 1: residual and layer outputs weigh about the same
    else:
        values = values * (1.6 / math.sqrt(shape[-1]))
    return values.astype(np.float32)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 -> the bytes of F32, F16 or BF16 (round half up), little-endian."""
    if dtype == "BF16":
        return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_shards(folder: Path, weights: Mapping[str, np.ndarray], dtype: str = "F32", n_shards: int = 1) -> None:
    encoded = {name: (dtype, values.shape, encode(values, dtype)) for name, values in weights.items()}
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", encoded)
        return
    names = list(encoded)
    weight_map = {}
    for shard in range(n_shards):
        file_name = f"model-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[shard::n_shards]
        write_safetensors(folder / file_name, {name: encoded[name] for name in part})
        weight_map |= dict.fromkeys(part, file_name)
    total = sum(len(data) for _, _, data in encoded.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Name -> (dtype, shape, bytes), written one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    write_raw_safetensors(path, json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()))


def write_raw_safetensors(path: Path, header: bytes, body: bytes, *, header_length: int | None = None) -> None:
    """Any header and body; `header_length` can lie."""
    header += b" " * (-len(header) % 8)
    length = len(header) if header_length is None else header_length
    path.write_bytes(length.to_bytes(8, "little") + header + body)


def make_tokenizer(folder: Path, *, size: int = TOKENIZER_SIZE, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """A byte-level BPE tokenizer of `size` tokens, trained on the spot; adds the begin token in front of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    begin = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": SPECIAL_TOKENS[1]}
    write_json(folder / "tokenizer_config.json", settings | ({"chat_template": chat_template} if chat_template else {}))
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


_TEXT = [
    "Once upon a time there was a little dog who had a red ball.",
    "The dog and the cat went to the park to play with the ball.",
    "She said that the sun was warm and the day was good for a story.",
    "Tell me a story about a dog and a red ball, and then another one.",
    "One day the little girl found a small bird in the garden near the house.",
    "They were happy and played together until the moon was in the sky.",
] * 20
