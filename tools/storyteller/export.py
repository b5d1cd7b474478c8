"""Turns checkpoints of one training, averaged, into a Hugging Face model folder with bfloat16 weights."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from chat import BEGIN, END, END_OF_TEXT
from model import Config, Llama
from safetensors.torch import save
from tokenizers import Tokenizer

TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def model_config(config, begin, end):
    """Returns the contents of config.json; `begin` and `end` are token ids."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": begin,
        "eos_token_id": end,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def generation_config(begin, ends):
    """Returns the contents of generation_config.json; any id in `ends` stops the writing."""
    return {
        "bos_token_id": begin,
        "eos_token_id": ends,
        "pad_token_id": ends[0],
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_new_tokens": 600,
    }


def half_weights(checkpoints):
    """Returns the mean of the network's parameters in the files `checkpoints` as {name: bfloat16 tensor}."""
    states = [torch.load(path, map_location="cpu", weights_only=True)["model"] for path in checkpoints]
    network = Llama(Config())
    network.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return {n: p.detach().to(torch.bfloat16).contiguous() for n, p in network.named_parameters()}


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(checkpoints, tokenizer_folder, out):
    """Writes weights, configurations and tokenizer files to the folder `out`."""
    out, tokenizer_folder = Path(out), Path(tokenizer_folder)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    begin, end_of_text, end = (tokenizer.token_to_id(t) for t in (BEGIN, END_OF_TEXT, END))
    _write_json(out / "config.json", model_config(Config(), begin, end_of_text))
    _write_json(out / "generation_config.json", generation_config(begin, [end_of_text, end]))
    weights = save(half_weights(checkpoints), metadata={"format": "pt"})
    (out / "model.safetensors").write_bytes(weights)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)


def main():
    """Reads the options and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, nargs="+", help="files written by train.py")
    parser.add_argument("--tokenizer", required=True, help="folder written by tokenizer.py")
    parser.add_argument("--out", required=True, help="model folder to write")
    args = parser.parse_args()
    export(args.checkpoint, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
