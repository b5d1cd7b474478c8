"""The embedded reranker opens in transformers and sentence-transformers, and scores there as here."""

from __future__ import annotations

import numpy as np
import pytest

from llm_decoder import CrossEncoder
from llm_decoder.embedded import embedded_reranker

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

PAIRS = [
    ("Tell me a story about a cat.", "Once upon a time, there was a cat named Tom."),
    ("Tell me a story about a cat.", "Yes, there is free parking for guests."),
    ("Can I park my car at the hotel?", "Yes, there is free parking for guests."),
    ("What did the queen give to the girl?", "The queen gave the girl a golden comb. " * 60),
    ("", "Naïve Füße, 東京 and 🙂."),
]


def test_transformers_opens_it_whole_and_scores_as_we_do() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_reranker())
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        embedded_reranker(), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rows = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        scores = model.eval()(**rows).logits[:, 0].numpy()
    ours = CrossEncoder(embedded_reranker(), quantization="none", threads=1).score_pairs(PAIRS)
    np.testing.assert_allclose(ours, scores, atol=1e-4)


def test_sentence_transformers_opens_it_as_a_cross_encoder() -> None:
    torch = pytest.importorskip("torch")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.CrossEncoder(
        str(embedded_reranker()), device="cpu", model_kwargs={"dtype": torch.float32}
    )
    scores = model.predict(PAIRS, activation_fn=torch.nn.Identity())
    ours = CrossEncoder(embedded_reranker(), quantization="none", threads=1).score_pairs(PAIRS)
    np.testing.assert_allclose(ours, scores, atol=1e-4)
