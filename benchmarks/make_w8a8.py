"""A bfloat16 HF folder as a compressed-tensors W8A8 folder, the int8 format that vLLM computes in int8 on a CPU.

    python benchmarks/make_w8a8.py MODEL_DIR OUT_DIR          # in the interpreter of vLLM: needs torch and safetensors

Linear weights become int8 with a scale a row, rounded to nearest; activations are quantised per token while it runs.
Embeddings, the output layer and norms stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(args.model_dir / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            tensors[name], tensors[f"{name}_scale"] = quantized_rows(weight)
        else:
            tensors[name] = weight
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((args.model_dir / "config.json").read_text())
    config["quantization_config"] = quantization_config()
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for path in args.model_dir.glob("tokenizer*"):
        shutil.copy(path, args.out)


def quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [n_out, n_in] -> (int8 [n_out, n_in], bfloat16 scale [n_out, 1])."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
    return (weight.float() / scale).round().clamp(-127, 127).to(torch.int8), scale.to(torch.bfloat16)


def quantization_config() -> dict:
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    linear = {
        "targets": ["Linear"],
        "weights": {**int8, "strategy": "channel", "dynamic": False},
        "input_activations": {**int8, "strategy": "token", "dynamic": True},
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": linear},
    }


if __name__ == "__main__":
    main()
