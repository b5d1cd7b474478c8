"""Rankings judged: metrics by hand, ties as the mean over orders, intervals that are paired and know their queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.evaluate import evaluate
from llm_decoder.reranker.groups import Group
from llm_decoder.reranker.metrics import measure


def by_definition(labels: Sequence[float], scores: Sequence[float], k: int) -> tuple[float, float, float]:
    """The mean over every order that the scores allow."""
    found = []
    for order in itertools.permutations(range(len(labels))):
        ranked = [scores[i] for i in order]
        if ranked != sorted(scores, reverse=True):
            continue
        gains = [labels[i] for i in order]
        first = next(place for place, gain in enumerate(gains, 1) if gain == max(labels))
        dcg, best = (
            sum(gain / math.log2(1 + place) for place, gain in enumerate(all_gains[:k], 1))
            for all_gains in (gains, sorted(labels, reverse=True))
        )
        found.append((float(first == 1), 1 / first, dcg / best))
    return tuple(np.mean(found, axis=0).tolist())  # type: ignore[return-value]


def test_the_right_candidate_at_the_second_place_by_hand() -> None:
    accuracy, mrr, ndcg = measure([0, 1, 0], [3.0, 2.0, 1.0], k=10)
    assert (accuracy, mrr) == (0.0, 0.5)
    assert ndcg == pytest.approx(1 / math.log2(3))


def test_grades_by_hand() -> None:
    # Order: 0.5, 1, 0. DCG = 0.5 + 1 / log2(3) = 1.1309; the best order has 1 + 0.5 / log2(3) = 1.3155.
    accuracy, mrr, ndcg = measure([1, 0.5, 0], [1.0, 2.0, 0.0], k=10)
    assert (accuracy, mrr) == (0.0, 0.5)
    assert ndcg == pytest.approx(0.8597, abs=1e-4)


def test_what_stands_behind_k_counts_nothing() -> None:
    assert measure([0, 0, 1], [3.0, 2.0, 1.0], k=2) == (0.0, pytest.approx(1 / 3), 0.0)


@pytest.mark.parametrize("k", [1, 2, 10])
def test_equal_scores_are_the_mean_over_their_orders(k: int) -> None:
    draw = np.random.default_rng(0)
    for _ in range(60):
        n = int(draw.integers(2, 6))
        labels = draw.choice([0, 0, 0.5, 1], n).tolist()
        if len(set(labels)) == 1:
            continue
        scores = draw.integers(0, 3, n).astype(float).tolist()
        assert measure(labels, scores, k) == pytest.approx(by_definition(labels, scores, k))


def right_first(n_queries: int, per_query: int = 1) -> list[Group]:
    labels = (1.0, 0.0, 0.0, 0.0)
    texts = ("right", "wrong", "wronger", "w")
    scores = (-2.0, -1.0, -3.0, -4.0)
    return [Group(f"{q}", texts, labels, scores) for q in range(n_queries) for _ in range(per_query)]


def knows(query: str, candidates: Sequence[str]) -> list[float]:
    return [float(candidate == "right") for candidate in candidates]


def test_every_scorer_is_judged_and_the_first_compared_with_the_others() -> None:
    found = evaluate(right_first(5), {"knows": knows}, n_resamples=100)
    assert (found.n_groups, found.n_queries, found.k) == (5, 5, 10)
    accuracy = {figures.name: figures.accuracy.mean for figures in found.scorers}
    mrr = {figures.name: figures.mrr.mean for figures in found.scorers}
    assert accuracy == {"knows": 1, "log_probability": 0, "shortest": 0, "longest": 0, "chance": 0.25}
    assert mrr["log_probability"] == 0.5
    assert mrr["shortest"] == pytest.approx((1 / 2 + 1 / 3) / 2)  # "right" and "wrong" have one length
    assert mrr["chance"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert {figures.name: figures.accuracy.mean for figures in found.differences} == {
        "log_probability": 1,
        "shortest": 1,
        "longest": 1,
        "chance": 0.75,
    }


def test_without_log_probabilities_of_all_there_is_no_such_baseline() -> None:
    groups = [*right_first(3), Group("q", ("a", "b"), (1, 0))]
    assert [figures.name for figures in evaluate(groups, {}, n_resamples=10).scorers] == [
        "shortest",
        "longest",
        "chance",
    ]


def half_right(query: str, candidates: Sequence[str]) -> list[float]:
    good = int(query) % 2 == 0
    return [float((candidate == "right") == good) for candidate in candidates]


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    (figures, *_) = evaluate(right_first(400), {"half": half_right}, n_resamples=4000).scorers
    half_width = 1.96 * 0.5 / math.sqrt(400)
    assert figures.accuracy.mean == pytest.approx(0.5, abs=1e-9)
    assert figures.accuracy.low == pytest.approx(0.5 - half_width, abs=0.01)
    assert figures.accuracy.high == pytest.approx(0.5 + half_width, abs=0.01)


def test_groups_of_one_query_are_drawn_together() -> None:
    alone = evaluate(right_first(25), {"half": half_right}, n_resamples=2000).scorers[0].accuracy
    many = evaluate(right_first(25, per_query=40), {"half": half_right}, n_resamples=2000).scorers[0].accuracy
    assert many.high - many.low == pytest.approx(alone.high - alone.low)


def test_a_difference_is_paired() -> None:
    """Two scorers that are right about the same queries differ by nothing, however unsure both are."""
    found = evaluate(right_first(50), {"half": half_right, "same": half_right}, n_resamples=500)
    difference = found.differences[0]
    assert difference.name == "same"
    assert (difference.accuracy.low, difference.accuracy.high) == (0.0, 0.0)
    assert found.scorers[0].accuracy.high - found.scorers[0].accuracy.low > 0.1


def test_the_same_seed_gives_the_same_intervals() -> None:
    groups = right_first(30)
    first, again, other = (
        evaluate(groups, {"half": half_right}, n_resamples=50, seed=seed).scorers[0].accuracy for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan"), 0.0, 0.0], [[1.0]] * 4])
def test_a_scorer_that_gives_no_number_for_each_candidate_is_named(scores: list) -> None:
    with pytest.raises(ConfigError, match=r"\[bad\] need 4 finite scores"):
        evaluate(right_first(2), {"bad": lambda query, candidates: scores})


def test_no_groups_cannot_be_judged() -> None:
    with pytest.raises(ConfigError, match="label some first"):
        evaluate([], {"knows": knows})


def test_a_baseline_keeps_its_name() -> None:
    with pytest.raises(ConfigError, match="got chance"):
        evaluate(right_first(2), {"chance": knows})


def test_each_scored_group_is_told() -> None:
    told = []
    evaluate(right_first(3), {"a": knows, "b": knows}, n_resamples=10, on_group=lambda: told.append(1))
    assert len(told) == 6
