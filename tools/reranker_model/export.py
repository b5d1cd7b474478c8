"""Writes the model folder: weights in float16, tokenizer, configuration. The card is written by hand beside them."""

import argparse
import shutil
from pathlib import Path

import torch
from network import make_config
from transformers import BertForSequenceClassification

MOST_BYTES = 8_000_000


def export(weights, tokenizer, out):
    """Writes the weights file `weights` and the folder `tokenizer` to the folder `out`. Returns its size in bytes."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = BertForSequenceClassification(make_config())
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.config.id2label, model.config.label2id = {0: "RELEVANCE"}, {"RELEVANCE": 0}
    model.half().save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(tokenizer) / name, out / name)
    return sum(f.stat().st_size for f in out.iterdir())


def main():
    """Exports --weights with --tokenizer to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="file written by train.py")
    parser.add_argument("--tokenizer", required=True, help="folder written by vocabulary.py")
    parser.add_argument("--out", required=True, help="the model folder")
    args = parser.parse_args()
    size = export(args.weights, args.tokenizer, args.out)
    print(f"{size} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"need at most {MOST_BYTES} bytes, got {size}; make the network or the vocabulary smaller")


if __name__ == "__main__":
    main()
