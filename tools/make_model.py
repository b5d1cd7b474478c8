"""Make a random-weight model folder of a real shape: for speed, never for text.

    python tools/make_model.py llama-135m /tmp/llama-135m
    python tools/make_model.py llama-1b /tmp/llama-1b --seed 1

Writes config.json, model.safetensors (bfloat16, normal with deviation 0.02) and a byte-level BPE tokenizer with as many
entries as the vocabulary has rows. Needs numpy and tokenizers, no torch; one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SHAPES: dict[str, dict[str, int]] = {
    "llama-tiny": dict(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=512,
    ),
    "llama-135m": dict(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=49152,
    ),
    "llama-1b": dict(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=32000,
    ),
}
DEVIATION = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-position-embeddings", type=int, default=16384)
    args = parser.parse_args()

    args.folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(SHAPES[args.shape], args.max_position_embeddings)
    (args.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(args.folder / "model.safetensors", config, np.random.default_rng(args.seed))
    write_tokenizer(args.folder, config["vocab_size"])
    n_bytes = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {args.shape}, {n_bytes / 1e6:.0f} MB")


def llama_config(shape: dict[str, int], max_position_embeddings: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        **shape,
    }


def tensor_shapes(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the checkpoint, matrices as [n_out, n_in]."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q_width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (q_width, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_width, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_width, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, q_width)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)


def write_weights(path: Path, config: dict, rng: np.random.Generator) -> None:
    header: dict[str, dict] = {}
    offset = 0
    for name, shape in tensor_shapes(config):
        n_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, shape in tensor_shapes(config):
            values = np.ones(shape, np.float32)
            if len(shape) == 2:
                rng.standard_normal(out=values, dtype=np.float32)
                values *= DEVIATION
            file.write(bfloat16_bits(values).tobytes())


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded half up; the values here are finite."""
    return ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    rng = random.Random(0)
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(20000)]
    text = (" ".join(rng.choices(words, k=40)) for _ in range(3000))

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    # Text this simple runs out of merges early; fill up to the declared size, so that every id is a token.
    tokenizer.add_tokens([f"~x{i}~" for i in range(tokenizer.get_vocab_size(), vocab_size)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
