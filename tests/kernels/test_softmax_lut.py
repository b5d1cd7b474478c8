"""The exponential by table, seen through attention on float pages whose values are unit vectors: the probabilities."""

import numpy as np
from page_pool import PagePool

# exp by table is within 1.5e-7; the sum, its reciprocal's rounding and the score's own rounding add about as much.
F32_TOLERANCE = 5e-7
# What exp is at most where it counts as zero, below -87.3.
FLUSHED = 1.3e-38


def probabilities(isa: str, scores: np.ndarray) -> np.ndarray:
    """Softmax of scores [n], n a multiple of 16, by one row of attention."""
    n = len(scores)
    pool = PagePool("f32", 1, 1, n, n)
    keys = np.zeros((n, 1, n), np.float32)
    keys[:, 0, 0] = scores
    table = np.zeros(1, np.int32)
    pool.append(isa, table, 0, keys, np.eye(n, dtype=np.float32)[:, None, :])
    q = np.zeros((1, 1, n), np.float32)
    q[0, 0, 0] = 1
    return pool.attend(isa, q, table, n - 1, 1.0)[0, 0]


def reference(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores.astype(np.float64) - scores.max())
    return weights / weights.sum()


def test_softmax_matches_the_formula_over_the_whole_range_of_exp(isa):
    for seed in range(20):
        scores = -np.random.default_rng(seed).uniform(0, 87.2, 256).astype(np.float32)
        scores[0] = 0
        np.testing.assert_allclose(probabilities(isa, scores), reference(scores), rtol=F32_TOLERANCE)


def test_softmax_matches_the_formula_around_every_step_of_the_table(isa):
    step = np.log(2) / 16
    for octave in range(0, 120, 17):
        centres = -(octave * 16 + np.arange(16)) * step
        edges = centres[:, None] + np.array([-0.5, -0.499999, -1e-7, 0, 1e-7, 0.499999, 0.5, 0.25]) * step
        scores = np.minimum(edges.reshape(-1), 0).astype(np.float32)
        scores[0] = 0
        np.testing.assert_allclose(probabilities(isa, scores), reference(scores), rtol=F32_TOLERANCE)


def test_softmax_of_equal_scores_is_exactly_even(isa):
    np.testing.assert_array_equal(probabilities(isa, np.full(64, 3.7, np.float32)), np.full(64, 1 / 64, np.float32))


def test_softmax_flushes_what_lies_far_below_to_exactly_zero(isa):
    scores = np.array([0, -87, -87.29, -87.31, -88, -1000, -1e30, -np.inf] * 2, np.float32)
    out = probabilities(isa, scores)
    assert (out[[1, 2, 9, 10]] > 0).all()
    assert (out[[3, 4, 5, 6, 7, 11, 12, 13, 14, 15]] == 0).all()
    np.testing.assert_allclose(out, reference(scores), rtol=F32_TOLERANCE, atol=FLUSHED)


def test_softmax_shows_a_nan(isa):
    scores = np.zeros(16, np.float32)
    scores[11] = np.nan
    assert np.isnan(probabilities(isa, scores)).all()
