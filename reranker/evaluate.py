"""Rankings judged: how well scorers order labelled groups, and whether one is better than another.

Intervals are percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): queries
are drawn with replacement, all groups of a query together, for they are not independent. A difference is paired: both
scorers are judged on the same draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.groups import Group
from llm_decoder.reranker.metrics import measure

__all__ = ["BASELINES", "Evaluation", "Figures", "Interval", "Scorer", "evaluate"]

Scorer = Callable[[str, list[str]], npt.ArrayLike]
"""scorer(query, candidates) -> a score a candidate, the higher the better."""

_DRAWN_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean over groups, and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """How well one scorer orders the groups, or how much better the first one does than it (see metrics.py)."""

    name: str
    accuracy: Interval
    mrr: Interval
    ndcg: Interval


@dataclass(frozen=True)
class Evaluation:
    """scorers: each one's figures, those that were asked for first. differences: the first one's minus each other's, by
    the other's name. k: of ndcg."""

    n_groups: int
    n_queries: int
    k: int
    scorers: tuple[Figures, ...]
    differences: tuple[Figures, ...]


def _by_chance(group: Group) -> Sequence[float] | None:
    return [0.0] * len(group.candidates)


def _shortest(group: Group) -> Sequence[float] | None:
    return [-float(len(candidate)) for candidate in group.candidates]


def _longest(group: Group) -> Sequence[float] | None:
    return [float(len(candidate)) for candidate in group.candidates]


def _log_probability(group: Group) -> Sequence[float] | None:
    return group.beam_scores


# What a scorer must be better than. log_probability is of the search that found the candidates (beam_score), and can
# be judged only where every group has it.
BASELINES: Mapping[str, Callable[[Group], Sequence[float] | None]] = {
    "log_probability": _log_probability,
    "shortest": _shortest,
    "longest": _longest,
    "chance": _by_chance,
}


def evaluate(
    groups: Sequence[Group],
    scorers: Mapping[str, Scorer],
    *,
    k: int = 10,
    n_resamples: int = 10_000,
    seed: int = 0,
    on_group: Callable[[], None] | None = None,
) -> Evaluation:
    """Judges the scorers, then the baselines of BASELINES, on groups with an order (see Group.has_order).

    The first scorer, or baseline where there is no scorer, is compared with all others. on_group is called after each
    group of each scorer. Raises ConfigError where there is no group, where a scorer has a baseline's name, and where it
    gives another number of scores than candidates or one that is not finite.
    """
    if not groups:
        raise ConfigError(
            "[groups] need groups with labels of which one is higher than another, got none; label some first"
        )
    if taken := scorers.keys() & BASELINES.keys():
        raise ConfigError(f"[scorers] need a name that is no baseline's, got {min(taken)}")
    tables: dict[str, npt.NDArray[np.float64]] = {}
    for name, scorer in scorers.items():
        rows = []
        for group in groups:
            rows.append(
                measure(group.grades, checked_scores(name, group, scorer(group.query, list(group.candidates))), k)
            )
            if on_group is not None:
                on_group()
        tables[name] = np.array(rows)
    for name, baseline in BASELINES.items():
        found = [baseline(group) for group in groups]
        known = [scores for scores in found if scores is not None]
        if len(known) == len(groups):
            tables[name] = np.array(
                [measure(group.grades, scores, k) for group, scores in zip(groups, known, strict=True)]
            )
    queries = np.unique([group.query for group in groups], return_inverse=True)[1]
    names = list(tables)
    stacked = np.stack([tables[name] for name in names])
    differences = stacked[:1] - stacked[1:]
    intervals = _intervals(np.concatenate([stacked, differences]), queries, n_resamples, seed)
    return Evaluation(
        len(groups),
        int(queries.max()) + 1,
        k,
        tuple(Figures(name, *intervals[index]) for index, name in enumerate(names)),
        tuple(Figures(name, *intervals[len(names) + index]) for index, name in enumerate(names[1:])),
    )


def checked_scores(name: str, group: Group, scores: npt.ArrayLike) -> Sequence[float]:
    """Raises ConfigError unless there is a finite score for each candidate."""
    values = np.asarray(scores, np.float64)
    if values.shape != (len(group.candidates),) or not np.isfinite(values).all():
        raise ConfigError(
            f"[{name}] need {len(group.candidates)} finite scores, got shape {values.shape} with "
            f"{int((~np.isfinite(values)).sum())} not finite, for the query {group.query!r:.60}"
        )
    return values.tolist()


def _intervals(
    tables: npt.NDArray[np.float64], queries: npt.NDArray[np.intp], n_resamples: int, seed: int
) -> list[list[Interval]]:
    """tables: float64 [n_rows, n_groups, n_metrics]; the intervals are [n_rows][n_metrics]."""
    n_rows, _, n_metrics = tables.shape
    n_queries = int(queries.max()) + 1
    sums = np.zeros((n_queries, n_rows * n_metrics + 1))  # the last column counts groups
    columns = np.concatenate([tables.transpose(1, 0, 2).reshape(len(queries), -1), np.ones((len(queries), 1))], axis=1)
    np.add.at(sums, queries, columns)
    draw = np.random.default_rng(seed)
    means = []
    for begin in range(0, n_resamples, size := max(1, _DRAWN_AT_A_TIME // n_queries)):
        n_drawn = min(size, n_resamples - begin)
        times = draw.multinomial(n_queries, np.full(n_queries, 1 / n_queries), size=n_drawn)
        totals = times @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0).reshape(2, n_rows, n_metrics)
    mean = tables.mean(axis=1)
    return [
        [Interval(float(mean[row, i]), float(low[row, i]), float(high[row, i])) for i in range(n_metrics)]
        for row in range(n_rows)
    ]
