"""How well scores order a group: three numbers a group, each 0 to 1, the higher the better.

accuracy: whether the pick, the candidate of the highest score, is right: has the highest label of its group.
mrr: 1 / the place of the first right candidate (Voorhees, TREC-8 Question Answering Track Report, 1999).
ndcg: the sum over the first k places of label / log2(1 + place), over that of the best order (Järvelin and Kekäläinen,
    Cumulated Gain-Based Evaluation of IR Techniques, ACM TOIS 20(4), 2002).

Equal scores are no order. Each number is then the mean over all orders of what is equal (McSherry and Najork, Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores, ECIR 2008): candidates that stand
first in the file gain nothing by it, and equal scores for all are what chance gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "measure"]

METRICS = ("accuracy", "mrr", "ndcg")

Floats = npt.NDArray[np.float64]


def measure(labels: Sequence[float], scores: Sequence[float], k: int) -> tuple[float, float, float]:
    """accuracy, mrr and ndcg at k of one group. labels and scores: float [n_candidates], the labels not all equal."""
    grades = np.asarray(labels, np.float64)
    blocks = _tied_blocks(np.asarray(scores, np.float64))
    right = grades == grades.max()
    first = blocks[0]
    return float(right[first].mean()), _reciprocal_rank(right, blocks), _ndcg(grades, blocks, k)


def _tied_blocks(scores: Floats) -> list[npt.NDArray[np.intp]]:
    """Places in the group of those with equal scores, the highest score first."""
    _, which = np.unique(-scores, return_inverse=True)
    return [np.flatnonzero(which == block) for block in range(int(which.max()) + 1)]


def _reciprocal_rank(right: npt.NDArray[np.bool_], blocks: Sequence[npt.NDArray[np.intp]]) -> float:
    n_before = 0
    for block in blocks:
        size, n_right = len(block), int(right[block].sum())
        if n_right:
            # The first of n_right among `size` in any order stands behind `i` others: the chance that none of these
            # is right, times the chance that the next one is.
            total, none_right = 0.0, 1.0
            for i in range(size - n_right + 1):
                chance = n_right / (size - i)
                total += none_right * chance / (n_before + i + 1)
                none_right *= 1 - chance
            return total
        n_before += size
    raise AssertionError("one candidate has the highest label")


def _ndcg(grades: Floats, blocks: Sequence[npt.NDArray[np.intp]], k: int) -> float:
    """Those that are equal share the mean of their gains at each of their places."""
    places = np.arange(1, len(grades) + 1)
    discounts = np.where(places <= k, 1 / np.log2(1 + places), 0.0)
    expected = np.concatenate([np.full(len(block), grades[block].mean()) for block in blocks])
    best = np.sort(grades)[::-1]
    return float(expected @ discounts / (best @ discounts))
