"""How the embedded reranker was measured: ranks, ties, intervals over documents, the order of candidates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools" / "reranker_model"))

from groups import read_groups, shuffled, write_groups
from measures import interval, quality


def test_the_right_candidate_in_the_first_place_is_all_there_is_to_win() -> None:
    assert quality([0.1, 3.0, -2.0], gold=1) == (1.0, 1.0, 1.0)


def test_the_third_place_counts_a_third_and_half_of_the_gain() -> None:
    first, reciprocal, gain = quality([3.0, 2.0, 1.0, 0.0], gold=2)
    assert (first, reciprocal, gain) == (0.0, pytest.approx(1 / 3), pytest.approx(0.5))


def test_equal_scores_are_chance_wherever_the_right_candidate_stands() -> None:
    found = {quality([0.0] * 4, gold) for gold in range(4)}
    assert len(found) == 1
    first, reciprocal, _ = found.pop()
    assert first == pytest.approx(1 / 4)
    assert reciprocal == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_beyond_the_tenth_place_nothing_is_gained() -> None:
    scores = list(range(12, 0, -1))
    assert quality(scores, gold=9)[2] == pytest.approx(1 / np.log2(11))
    assert quality(scores, gold=10)[2] == 0


def test_groups_of_one_document_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=20)
    differences = np.repeat(means, 50)  # the groups of a document all say the same
    together = interval(differences, np.repeat(np.arange(20), 50))
    apart = interval(differences, np.arange(1000))
    assert together[0] < differences.mean() < together[1]
    assert together[1] - together[0] > 4 * (apart[1] - apart[0])
    wide = 2 * 1.96 * means.std() / np.sqrt(20)
    assert together[1] - together[0] == pytest.approx(wide, rel=0.2)


def test_the_order_of_candidates_tells_nothing_and_keeps_what_belongs_to_them(tmp_path: Path) -> None:
    texts = ["right", "wrong", "worse", "worst"]
    made = [
        shuffled("source", "held_out", "document", f"query {i}", texts, [-1.0, -2.0, -3.0, -4.0]) for i in range(400)
    ]
    assert all(g.texts[g.gold] == "right" for g in made)
    assert all(
        dict(zip(g.texts, g.logprobs, strict=True)) == dict(zip(texts, [-1, -2, -3, -4], strict=True)) for g in made
    )
    assert np.bincount([g.gold for g in made], minlength=4).min() > 70
    path = tmp_path / "groups.jsonl"
    assert write_groups(path, made) == 400
    assert read_groups(path, "held_out") == made
    assert read_groups(path, "train") == []
