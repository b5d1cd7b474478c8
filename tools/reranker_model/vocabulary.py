"""How is the tokenizer made? Trains a lower-casing WordPiece on the training groups and saves it in HF form."""

import argparse
import json
from pathlib import Path

from groups import read_groups
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 6656
LONGEST = 256  # tokens of a pair with its special tokens
PAD, UNKNOWN, CLASS, SEPARATOR, MASK = SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts):
    """Returns a WordPiece `Tokenizer` trained on the iterable `texts`: lower case, no accents, BERT's pair template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLASS} $A {SEPARATOR}",
        pair=f"{CLASS} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (CLASS, SEPARATOR)],
    )
    return tokenizer


def save_tokenizer(tokenizer, folder):
    """Writes tokenizer.json and tokenizer_config.json to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": LONGEST,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "cls_token": CLASS,
        "sep_token": SEPARATOR,
        "mask_token": MASK,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main():
    """Trains on the queries and right candidates of the training groups and writes to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", required=True, nargs="+", help="JSON Lines files of groups")
    parser.add_argument("--out", required=True, help="folder for the tokenizer files")
    args = parser.parse_args()
    groups = [g for path in args.groups for g in read_groups(path, "train")]
    save_tokenizer(train_tokenizer(text for g in groups for text in (g.query, g.texts[g.gold])), args.out)


if __name__ == "__main__":
    main()
