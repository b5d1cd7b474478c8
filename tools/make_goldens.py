"""Make the goldens of tests/goldens: what HF transformers computes on small random checkpoints.

    python tools/make_goldens.py [NAME ...]

The checkpoints themselves are not stored: tests/models_factory.py draws them again from the same seeds, so that
`make test` can check every family without torch. Needs torch and transformers. Each golden is an .npz with `config`
(the config.json as text), `seed`, `dtype`, `prompt` int32 [n], `logits` float32 [n, vocab_size] and `tokens`
int32 [n_new], the greedy continuation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from models_factory import make_checkpoint  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens"
N_NEW_TOKENS = 64
SMALL = {"hidden_size": 48, "intermediate_size": 64, "vocab_size": 331}
ODD = {"hidden_size": 120, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 40, "intermediate_size": 61}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

# name -> (family, dtype on disk, prompt length, changes of the config)
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "llama": ("llama", "F32", 20, SMALL),
    "llama_odd_llama3_rope": ("llama", "BF16", 40, {**ODD, "rope_scaling": LLAMA3}),
    "llama_linear_rope_biases": (
        "llama",
        "F16",
        24,
        {**SMALL, "attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "mistral_window": ("mistral", "F32", 40, {**SMALL, "sliding_window": 11}),
    "qwen2_yarn": ("qwen2", "BF16", 40, {**SMALL, "rope_scaling": YARN}),
    "qwen2_upper_windows": (
        "qwen2",
        "F32",
        30,
        {**SMALL, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", "BF16", 24, {**SMALL, "tie_word_embeddings": False}),
    "qwen3_tied": ("qwen3", "F32", 24, SMALL),
    "llama_one_token_prompt": ("llama", "F32", 1, SMALL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(CASES))
    GOLDENS.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        golden = make_golden(name)
        path = GOLDENS / f"{name}.npz"
        np.savez_compressed(path, **golden)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes, tokens {golden['tokens'][:8].tolist()} ...")


def make_golden(name: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    family, dtype, n_prompt, changes = CASES[name]
    seed = sum(name.encode())
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_checkpoint(Path(temporary), family, seed=seed, dtype=dtype, **changes)
        config = (folder / "config.json").read_text()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        prompt = np.random.RandomState(seed).randint(2, json.loads(config)["vocab_size"], size=n_prompt)
        with torch.no_grad():
            ids = torch.tensor(prompt)[None]
            logits = model(ids).logits[0].numpy()
            tokens = model.generate(ids, max_new_tokens=N_NEW_TOKENS, min_new_tokens=N_NEW_TOKENS, do_sample=False)
    return {
        "config": np.array(config),
        "family": np.array(family),
        "dtype": np.array(dtype),
        "seed": np.array(seed),
        "prompt": prompt.astype(np.int32),
        "logits": logits.astype(np.float32),
        "tokens": tokens[0, n_prompt:].numpy().astype(np.int32),
    }


if __name__ == "__main__":
    main()
