"""How good is an order of candidates, and is one order better than another?

The right candidate's rank says all: one is right in each group. Candidates with equal scores are counted as if they
stood in every order equally often.
"""

import numpy as np

_SAMPLES = 2000  # of the bootstrap


def quality(scores, gold):
    """Returns (first, reciprocal rank, NDCG@10) of the right candidate, the place `gold` in `scores`."""
    scores = np.asarray(scores, np.float64)
    above = int((scores > scores[gold]).sum())
    equal = int((scores == scores[gold]).sum())
    ranks = 1 + above + np.arange(equal)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    return float((ranks == 1).mean()), float((1 / ranks).mean()), float(gains.mean())


def interval(differences, documents, seed=1):
    """Returns (low, high): the 95 % interval of the mean of `differences` by a bootstrap over whole `documents`.

    differences: one number a group; documents: the name of each group's document. Groups of one document are drawn
    together, for they are not independent.
    """
    _, places = np.unique(documents, return_inverse=True)
    sums = np.bincount(places, weights=differences)
    counts = np.bincount(places)
    draws = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _SAMPLES)
    low, high = np.quantile((draws @ sums) / (draws @ counts), [0.025, 0.975])
    return float(low), float(high)
