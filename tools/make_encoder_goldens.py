"""Make the goldens of tests/goldens/encoders: what HF transformers computes on small random encoders.

    python tools/make_encoder_goldens.py [NAME ...]

The checkpoints themselves are not stored: tests/encoder_factory.py draws them again from the same seeds, so that
`make test` can check every family without torch. Needs torch and transformers. Each golden is an .npz with `family`,
`dtype`, `seed`, `changes` (of config.json, as JSON), `max_length`, `scores` float32 [n_pairs], of the pairs of
encoder_factory.golden_pairs, and `vectors` float32 [n_pairs, hidden_size], the mean hidden state of the encoder alone
over the first text of each.
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

from encoder_factory import golden_pairs, make_encoder  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens" / "encoders"
MAX_LENGTH = 40  # some pairs are longer

# name -> (family, dtype on disk, changes of the config)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "F32", {}),
    "bert_float16": ("bert", "F16", {"hidden_act": "gelu_new"}),
    "camembert": ("camembert", "F32", {}),
    "distilbert": ("distilbert", "F32", {}),
    "modernbert": ("modernbert", "F32", {}),
    "modernbert_biases": (
        "modernbert",
        "BF16",
        {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "cls",
            "global_attn_every_n_layers": 2,
        },
    ),
    "roberta": ("roberta", "F32", {}),
    "xlm_roberta": ("xlm-roberta", "F32", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(CASES))
    GOLDENS.mkdir(exist_ok=True)
    for name in parser.parse_args().names:
        golden = make_golden(name)
        path = GOLDENS / f"{name}.npz"
        np.savez_compressed(path, **golden)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes, scores {golden['scores'][:4].round(3)} ...")


def make_golden(name: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    family, dtype, changes = CASES[name]
    seed = sum(name.encode())
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    scores, vectors = [], []
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        folder = make_encoder(Path(temporary) / "head", family, seed=seed, dtype=dtype, **changes)
        plain = make_encoder(Path(temporary) / "plain", family, head=False, seed=seed, dtype=dtype, **changes)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
        encoder = AutoModel.from_pretrained(plain, **options).eval()
        cut = {"truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
        for first, second in golden_pairs():
            scores.append(float(classifier(**tokenizer([first], [second], **cut)).logits[0, 0]))
            vectors.append(encoder(**tokenizer([first], **cut)).last_hidden_state[0].mean(dim=0).numpy())
    return {
        "family": np.array(family),
        "dtype": np.array(dtype),
        "seed": np.array(seed),
        "changes": np.array(json.dumps(changes)),
        "max_length": np.array(MAX_LENGTH),
        "scores": np.array(scores, np.float32),
        "vectors": np.stack(vectors).astype(np.float32),
    }


if __name__ == "__main__":
    main()
