"""Every family of encoders against stored scores and vectors of HF transformers (tools/make_encoder_goldens.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from encoder_factory import golden_pairs, make_encoder

from llm_decoder import CrossEncoder, SentenceEncoder

GOLDENS = sorted((Path(__file__).parent.parent / "goldens" / "encoders").glob("*.npz"))
TOLERANCE = 1e-5  # of the largest: float32 sums in another order


@dataclass(frozen=True)
class Golden:
    with_head: Path
    plain: Path
    max_length: int
    scores: np.ndarray  # float32 [n_pairs]
    vectors: np.ndarray  # float32 [n_pairs, hidden_size]


@pytest.fixture(params=GOLDENS, ids=[path.stem for path in GOLDENS])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    with np.load(request.param) as stored:
        family, dtype, seed = str(stored["family"]), str(stored["dtype"]), int(stored["seed"])
        changes, max_length = json.loads(str(stored["changes"])), int(stored["max_length"])
        scores, vectors = stored["scores"], stored["vectors"]
    with_head = make_encoder(tmp_path / "head", family, seed=seed, dtype=dtype, **changes)
    plain = make_encoder(tmp_path / "plain", family, head=False, seed=seed, dtype=dtype, **changes)
    return Golden(with_head, plain, max_length, scores, vectors)


def test_there_is_a_golden_of_every_family() -> None:
    names = " ".join(path.stem for path in GOLDENS)
    families = ("bert", "distilbert", "roberta", "xlm_roberta", "camembert", "modernbert")
    assert all(family in names for family in families)


def test_float32_gives_the_scores_of_the_golden(golden: Golden) -> None:
    encoder = CrossEncoder(golden.with_head, quantization="none", max_length=golden.max_length)
    scores = encoder.score_pairs(golden_pairs())
    assert scores.dtype == np.float32
    assert np.abs(scores - golden.scores).max() <= TOLERANCE * np.abs(golden.scores).max()


def test_int8_ranks_as_the_golden_does(golden: Golden) -> None:
    scores = CrossEncoder(golden.with_head, max_length=golden.max_length).score_pairs(golden_pairs())
    ranks, golden_ranks = scores.argsort().argsort(), golden.scores.argsort().argsort()
    assert np.corrcoef(ranks, golden_ranks)[0, 1] >= 0.95


def test_float32_gives_the_vectors_of_the_golden(golden: Golden) -> None:
    encoder = SentenceEncoder(golden.plain, quantization="none", max_length=golden.max_length)
    vectors = encoder.embed([first for first, _ in golden_pairs()])
    assert np.abs(vectors - golden.vectors).max() <= TOLERANCE * np.abs(golden.vectors).max()
