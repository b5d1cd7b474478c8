"""How is the tokenizer made? Trains a byte-level BPE of 4096 tokens and saves it in HF form."""

import argparse
import json
from pathlib import Path

from chat import BEGIN, CHAT_TEMPLATE, END_OF_TEXT, SPECIAL_TOKENS
from data import load_smalltalk, load_stories
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
CONTEXT = 1024
# The word pattern of Llama 3, so that the same tokenizer code serves both.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts):
    """Returns a byte-level BPE `Tokenizer` trained on the iterable `texts`.

    Every byte is a token, so any text survives encoding and decoding. The begin token is
    prepended when special tokens are asked for.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN}:1 $B:1", special_tokens=[begin]
    )
    return tokenizer


def save_tokenizer(tokenizer, folder):
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BEGIN, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    added = {
        str(tokenizer.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for t in SPECIAL_TOKENS
    }
    config = {
        "added_tokens_decoder": added,
        **names,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", {**names, "additional_special_tokens": SPECIAL_TOKENS[2:]})


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    """Trains on the stories and the small talk of --data and writes to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with the .jsonl.xz files")
    parser.add_argument("--out", required=True, help="folder for the tokenizer files")
    args = parser.parse_args()
    stories, _ = load_stories(args.data)
    own, other = load_smalltalk(args.data)
    texts = [s.text for s in stories] + [text for pair in own + other for text in pair]
    save_tokenizer(train_tokenizer(texts), args.out)


if __name__ == "__main__":
    main()
