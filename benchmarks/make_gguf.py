"""A Llama HF folder as a Q8_0 GGUF file, so that llama.cpp runs the same weights as we do. Needs the package gguf.

python benchmarks/make_gguf.py MODEL_DIR OUT.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model_dir / "config.json").read_text())

    writer = gguf.GGUFWriter(str(args.out), "llama")
    write_settings(writer, config)
    write_vocabulary(writer, args.model_dir, config)
    for name, values in read_bfloat16(args.model_dir / "model.safetensors"):
        write_tensor(writer, config, name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_settings(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def write_vocabulary(writer: gguf.GGUFWriter, model_dir: Path, config: dict) -> None:
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    tokens = [f"<unused{i}>" for i in range(config["vocab_size"])]
    types = [gguf.TokenType.NORMAL] * config["vocab_size"]
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.NORMAL
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def read_bfloat16(path: Path):
    """(name, float32 values) of every tensor of a bfloat16 safetensors file, one at a time."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_header))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + n_header + begin)
            bits = np.frombuffer(file.read(end - begin), np.uint16)
            yield name, (bits.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def write_tensor(writer: gguf.GGUFWriter, config: dict, name: str, values: np.ndarray) -> None:
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        target = TOP_NAMES[stem]
    else:
        _, _, layer, rest = stem.split(".", 3)
        target = f"blk.{layer}.{LAYER_NAMES[rest]}"
    if stem.endswith("q_proj"):
        values = interleave_halves(values, config["num_attention_heads"])
    if stem.endswith("k_proj"):
        values = interleave_halves(values, config["num_key_value_heads"])
    if values.ndim == 2:
        quantized = gguf.quants.quantize(np.ascontiguousarray(values), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{target}.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        writer.add_tensor(f"{target}.weight", values)


def interleave_halves(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head from (first half, second half) to pairs, the order in which llama.cpp rotates."""
    n_out, n_in = weight.shape
    return weight.reshape(n_heads, 2, n_out // n_heads // 2, n_in).swapaxes(1, 2).reshape(n_out, n_in)


if __name__ == "__main__":
    main()
