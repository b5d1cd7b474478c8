"""Small random encoders as HF lays them out: config.json, safetensors, a tokenizer. Needs no torch.

    from encoder_factory import make_encoder
    folder = make_encoder(tmp_path / "model", "roberta", seed=3)                   # a cross-encoder
    folder = make_encoder(tmp_path / "model", "bert", head=False, seed=3)          # the encoder alone

Weights are drawn wide enough that scores differ from pair to pair, from a generator whose stream numpy has frozen
(RandomState), so that a seed means the same checkpoint on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from models_factory import write_json, write_shards
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

# fmt: off
WORDS = [
    "the", "a", "of", "to", "and", "in", "is", "was", "it", "for", "on", "are", "with", "as", "his",
    "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all",
    "were", "when", "we", "there", "can", "an", "your", "which", "their", "said", "if", "cat", "dog",
    "mat", "river", "water", "people", "little", "very", "after", "called",
]
# fmt: on
CHARS = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,!?'-[]")

LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 48, "intermediate_size": 80}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**LAYERS, "max_position_embeddings": 96, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0},
    "distilbert": {"n_layers": 3, "n_heads": 4, "dim": 48, "hidden_dim": 80, "max_position_embeddings": 96},
    "roberta": {**LAYERS, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {**LAYERS, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "camembert": {**LAYERS, "max_position_embeddings": 98, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "modernbert": {
        **LAYERS,
        "num_hidden_layers": 4,
        "max_position_embeddings": 128,
        "local_attention": 12,
        "global_attn_every_n_layers": 3,
        "classifier_pooling": "mean",
    },
}
_ROBERTAS = ("roberta", "xlm-roberta", "camembert")
_CLASS = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "modernbert": "ModernBert",
}


def make_encoder(
    folder: Path, family: str = "bert", *, head: bool = True, seed: int = 0, dtype: str = "F32", **overrides: Any
) -> Path:
    """Write one checkpoint and return its folder. `dtype` is F32, F16 or BF16; `overrides` replace fields of
    config.json, and a value of `...` removes the field."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_pair_tokenizer(family)
    config = encoder_config(family, head=head, vocab_size=tokenizer.get_vocab_size() + 5, **overrides)
    write_json(folder / "config.json", config)
    write_shards(folder, random_encoder(config, head=head, seed=seed), dtype, 1)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **_specials(family)})
    return folder


def encoder_config(family: str, *, head: bool = True, **overrides: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [_CLASS[family] + ("ForSequenceClassification" if head else "Model")],
        **FAMILIES[family],
        "torch_dtype": "float32",
    }
    if family in _ROBERTAS:
        config |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if family == "modernbert":
        config |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    if head:
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config |= overrides
    return {key: value for key, value in config.items() if value is not ...}


def encoder_shapes(config: Mapping[str, Any], *, head: bool = True, n_labels: int = 1) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint, matrices as [n_out, n_in]."""
    family = config["model_type"]
    if family == "modernbert":
        return _modernbert_shapes(config, head, n_labels)
    is_distil = family == "distilbert"
    hidden = config["dim" if is_distil else "hidden_size"]
    inner = config["hidden_dim" if is_distil else "intermediate_size"]
    inside = "" if not head else "distilbert." if is_distil else "bert." if family == "bert" else "roberta."
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, n_out: int, n_in: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)

    def add_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    shapes[f"{inside}embeddings.word_embeddings.weight"] = (config["vocab_size"], hidden)
    shapes[f"{inside}embeddings.position_embeddings.weight"] = (config["max_position_embeddings"], hidden)
    if not is_distil:
        shapes[f"{inside}embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], hidden)
    add_norm(f"{inside}embeddings.LayerNorm")
    for layer in range(config["n_layers" if is_distil else "num_hidden_layers"]):
        if is_distil:
            at = f"{inside}transformer.layer.{layer}."
            for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
                add(f"{at}attention.{part}", hidden, hidden)
            add_norm(f"{at}sa_layer_norm")
            add(f"{at}ffn.lin1", inner, hidden)
            add(f"{at}ffn.lin2", hidden, inner)
            add_norm(f"{at}output_layer_norm")
            continue
        at = f"{inside}encoder.layer.{layer}."
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            add(f"{at}attention.{part}", hidden, hidden)
        add_norm(f"{at}attention.output.LayerNorm")
        add(f"{at}intermediate.dense", inner, hidden)
        add(f"{at}output.dense", hidden, inner)
        add_norm(f"{at}output.LayerNorm")
    if head:
        dense = {"bert": "bert.pooler.dense", "distilbert": "pre_classifier"}.get(family, "classifier.dense")
        add(dense, hidden, hidden)
        add("classifier.out_proj" if family in _ROBERTAS else "classifier", n_labels, hidden)
    return shapes


def _modernbert_shapes(config: Mapping[str, Any], head: bool, n_labels: int) -> dict[str, tuple[int, ...]]:
    hidden, inner, inside = config["hidden_size"], config["intermediate_size"], "model." if head else ""
    shapes: dict[str, tuple[int, ...]] = {f"{inside}embeddings.tok_embeddings.weight": (config["vocab_size"], hidden)}

    def add(name: str, shape: tuple[int, ...], field: str) -> None:
        shapes[f"{name}.weight"] = shape
        if config.get(field, False):
            shapes[f"{name}.bias"] = shape[:1]

    add(f"{inside}embeddings.norm", (hidden,), "norm_bias")
    for layer in range(config["num_hidden_layers"]):
        at = f"{inside}layers.{layer}."
        if layer:
            add(f"{at}attn_norm", (hidden,), "norm_bias")
        add(f"{at}attn.Wqkv", (3 * hidden, hidden), "attention_bias")
        add(f"{at}attn.Wo", (hidden, hidden), "attention_bias")
        add(f"{at}mlp_norm", (hidden,), "norm_bias")
        add(f"{at}mlp.Wi", (2 * inner, hidden), "mlp_bias")
        add(f"{at}mlp.Wo", (hidden, inner), "mlp_bias")
    add(f"{inside}final_norm", (hidden,), "norm_bias")
    if head:
        add("head.dense", (hidden, hidden), "classifier_bias")
        add("head.norm", (hidden,), "norm_bias")
        shapes |= {"classifier.weight": (n_labels, hidden), "classifier.bias": (n_labels,)}
    return shapes


def random_encoder(
    config: Mapping[str, Any], *, head: bool = True, seed: int = 0, n_labels: int = 1
) -> dict[str, np.ndarray]:
    """float32 tensors by checkpoint name."""
    rng = np.random.RandomState(seed)
    return {
        name: _draw(rng, name, shape) for name, shape in encoder_shapes(config, head=head, n_labels=n_labels).items()
    }


def _draw(rng: np.random.RandomState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if "norm" in name.lower():
        values = values * 0.2 + (0.0 if name.endswith("bias") else 1.0)
    elif len(shape) == 1:
        values = values * 0.2
    elif "embeddings" not in name:
        values = values * (1.6 / np.sqrt(shape[1]))
    return values.astype(np.float32)


def make_pair_tokenizer(family: str) -> Tokenizer:
    """WordPiece for BERT and its like, byte-level BPE for RoBERTa and ModernBERT, Unigram for XLM-R and CamemBERT."""
    if family in ("bert", "distilbert"):
        vocabulary = wordpiece_vocabulary()
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        _frame(tokenizer, "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", ("[CLS]", "[SEP]"))
        tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        return tokenizer
    if family == "modernbert":
        tokenizer = _byte_bpe(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], prefix_space=False)
        _frame(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:0 [SEP]:0", ("[CLS]", "[SEP]"))
        return tokenizer
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    if family == "roberta":
        tokenizer = _byte_bpe(specials, prefix_space=False)
    else:
        pieces = [(token, 0.0) for token in specials] + [("\u2581", -3.0)]
        pieces += [(f"\u2581{word}", -4.0 - 0.01 * index) for index, word in enumerate(WORDS)]
        pieces += [(char, -9.0) for char in CHARS]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.add_special_tokens(specials)
    _frame(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B:0 </s>:0", ("<s>", "</s>"))
    return tokenizer


def wordpiece_vocabulary() -> dict[str, int]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARS, *(f"##{char}" for char in CHARS)]
    tokens += [word for word in WORDS if len(word) > 1]
    return {token: id_ for id_, token in enumerate(tokens)}


def _byte_bpe(specials: list[str], *, prefix_space: bool) -> Tokenizer:
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "\u0120"  # a space, as byte-level BPE spells it
        for char in word:
            if left + char not in tokens:
                tokens.append(left + char)
                merges.append((left, char))
            left += char
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _frame(tokenizer: Tokenizer, single: str, pair: str, tokens: tuple[str, str]) -> None:
    special = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _specials(family: str) -> dict[str, Any]:
    if family in _ROBERTAS:
        return {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if family == "bert" else {}
    return types | {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def random_texts(n: int, *, seed: int = 0, most_words: int = 40) -> list[str]:
    """Texts of 0 to most_words words, some of them made up, with signs between."""
    rng = np.random.RandomState(seed)
    texts = []
    for _ in range(n):
        words = [WORDS[rng.randint(len(WORDS))] for _ in range(rng.randint(most_words + 1))]
        for index in range(len(words)):
            kind = rng.randint(12)
            if kind == 0:
                words[index] = "".join(CHARS[rng.randint(26)] for _ in range(rng.randint(1, 7)))
            if kind == 1:
                words[index] += "."
        texts.append(" ".join(words))
    return texts


def golden_pairs() -> list[tuple[str, str]]:
    """What the goldens of tests/goldens/encoders were computed on."""
    texts = random_texts(46, seed=12, most_words=24)
    return [("", ""), *zip(texts[::2], texts[1::2], strict=True)]
