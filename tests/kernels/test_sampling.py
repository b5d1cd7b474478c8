"""_core.sample and _core.log_probs against a reference in float64 with a full sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling_reference import candidates, edited, is_token_of, params_of, reference_token

from llm_decoder import _core
from llm_decoder.reference import log_softmax

VOCAB_SIZES = [1, 3, 31, 127, 8193, 151936]


def sample(logits: np.ndarray, draws: list[dict[str, Any]], rows: list[int] | None = None, n_top: int = 0) -> Any:
    rows = [0] * len(draws) if rows is None else rows
    return _core.sample(logits, np.array(rows, np.int32), params_of(draws), n_top)


def random_logits(n_rows: int, vocab_size: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n_rows, vocab_size)) * spread).astype(np.float32)


HISTORY = {"prompt": [1, 2, 2, 9], "output": [2, 5, 5, 5, 0]}
# What a request may ask for; each is drawn many times against the reference.
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "cold": {"temperature": 0.3},
    "hot": {"temperature": 4.0},
    "top_k": {"temperature": 1.5, "top_k": 7},
    "top_k_of_all": {"temperature": 1.0, "top_k": 1_000_000},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "top_p_of_a_flat_row": {"temperature": 30.0, "top_p": 0.95},
    "min_p": {"temperature": 1.2, "min_p": 0.1},
    "min_p_of_a_flat_row": {"temperature": 30.0, "min_p": 0.8},
    "top_p_and_min_p_of_a_flat_row": {"temperature": 30.0, "top_p": 0.6, "min_p": 0.7},
    "all_cuts": {"temperature": 2.0, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    "repetition_penalty": {"temperature": 0.8, "repetition_penalty": 1.7, **HISTORY},
    "repetition_reward": {"temperature": 0.8, "repetition_penalty": 0.5, **HISTORY},
    "presence_penalty": {"temperature": 0.8, "presence_penalty": 3.0, **HISTORY},
    "frequency_penalty": {"temperature": 0.8, "frequency_penalty": -1.5, **HISTORY},
    "bias": {"temperature": 1.0, "bias": {3: 8.0, 0: -2.0, 11: 6.5}},
    "banned": {"temperature": 0.2, "banned": [3, 7, 7, 20]},
    "allowed": {"temperature": 3.0, "allowed": [4, 9, 4, 30, 2]},
    "everything": {
        "temperature": 1.4,
        "top_k": 12,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "bias": {8: 5.0},
        "banned": [9],
        "allowed": list(range(1, 31)),
        **HISTORY,
    },
}


@pytest.mark.parametrize("vocab_size", [31, 8193])
@pytest.mark.parametrize("name", REQUESTS)
def test_each_parameter_draws_what_the_reference_draws(name: str, vocab_size: int) -> None:
    logits = random_logits(4, vocab_size, seed=vocab_size)
    logits[1] = np.round(logits[1])  # many ties
    rows = [i % 4 for i in range(200)]
    draws = [REQUESTS[name] | {"seed": 1000 + i, "position": 3 * i} for i in range(200)]
    if vocab_size == 31:
        draws = [p | {"banned": [3, 7, 7, 20]} for p in draws]
    tokens = sample(logits, draws, rows)[0]
    assert all(is_token_of(int(t), logits[row], p) for t, row, p in zip(tokens, rows, draws, strict=True))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_every_vocab_size_draws_what_the_reference_draws(vocab_size: int) -> None:
    logits = random_logits(1, vocab_size, seed=3)
    assert sample(logits, [{}])[0].tolist() == [int(logits.argmax())]
    for temperature in (1.0, 10.0):
        draws = [{"temperature": temperature, "seed": i} for i in range(8)]
        tokens = sample(logits, draws)[0]
        assert all(is_token_of(int(t), logits[0], p) for t, p in zip(tokens, draws, strict=True))


@pytest.mark.parametrize("name", ["plain", "top_k", "top_p", "min_p", "everything"])
def test_draws_follow_their_probabilities(name: str) -> None:
    p, n_draws = REQUESTS[name], 20_000
    logits = random_logits(1, 127, seed=8)
    got = sample(logits, [p | {"seed": 5, "position": i} for i in range(n_draws)])[0]
    ids, probabilities = candidates(edited(logits[0], p), p)
    assert set(got.tolist()) <= set(ids.tolist())
    common = probabilities * n_draws >= 5
    observed = np.array([(got == i).sum() for i in ids[common]])
    expected = probabilities[common] * n_draws
    chi_square = ((observed - expected) ** 2 / expected).sum()
    n = common.sum()
    assert chi_square < n + 4 * np.sqrt(2 * n)  # four standard deviations; seeds are fixed


def test_seeds_and_positions_give_different_draws() -> None:
    logits = np.zeros((1, 8193), np.float32)
    by_seed = sample(logits, [{"temperature": 1.0, "seed": i} for i in range(50)])[0]
    by_position = sample(logits, [{"temperature": 1.0, "seed": 1, "position": i} for i in range(50)])[0]
    assert len(set(by_seed.tolist())) > 45
    assert len(set(by_position.tolist())) > 45
    wide = [{"temperature": 1.0, "seed": 2**64 - 1}, {"temperature": 1.0, "seed": 2**32 - 1}]
    assert sample(logits, wide)[0].tolist() == [reference_token(logits[0], p) for p in wide]


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = np.zeros((3, 1003), np.float32)
    logits[0, [40, 41, 999]] = 2.5
    logits[1, 1002] = 1.0
    assert sample(logits, [{}, {}, {}], [0, 1, 2])[0].tolist() == [40, 1002, 0]
    assert sample(logits, [{"banned": [40]}, {"bias": {999: 0.5}}])[0].tolist() == [41, 999]


@pytest.mark.parametrize("vocab_size", [3, 1003, 151936])
def test_top_k_of_one_is_greedy_at_any_temperature(vocab_size: int) -> None:
    logits = np.round(random_logits(5, vocab_size, seed=2))
    draws = [{"temperature": 5.0, "top_k": 1, "seed": i} for i in range(5)]
    assert sample(logits, draws, list(range(5)))[0].tolist() == logits.argmax(axis=1).tolist()


def test_a_tiny_temperature_is_greedy() -> None:
    logits = random_logits(1, 1003)
    draws = [{"temperature": 1e-38, "seed": i} for i in range(20)]
    assert set(sample(logits, draws)[0].tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_logprobs_ranks_and_top_are_those_of_the_raw_logits(vocab_size: int) -> None:
    logits = random_logits(6, vocab_size, seed=1)
    logits[2] = np.round(logits[2])
    n_top = min(5, vocab_size)
    draws = [
        {"temperature": 2.0, "seed": i, "bias": {0: 3.0}, "banned": [1] if vocab_size > 1 else []} for i in range(6)
    ]
    tokens, logprobs, ranks, top_ids, top_logprobs = sample(logits, draws, list(range(6)), n_top)
    want = log_softmax(logits.astype(np.float64))
    for i, token in enumerate(tokens):
        assert logprobs[i] == pytest.approx(want[i, token], abs=1e-5)
        assert ranks[i] == 1 + (logits[i] > logits[i, token]).sum()
        order = np.lexsort((np.arange(vocab_size), -logits[i]))[:n_top]
        assert top_ids[i].tolist() == order.tolist()
        assert np.allclose(top_logprobs[i], want[i, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("vocab_size", [1, 31, 8193])
def test_log_probs_of_targets(vocab_size: int) -> None:
    logits = random_logits(9, vocab_size, seed=4)
    targets = np.random.default_rng(0).integers(0, vocab_size, 9).astype(np.int32)
    logprobs, ranks, top_ids, top_logprobs = _core.log_probs(logits, targets, vocab_size if vocab_size < 100 else 20)
    want = log_softmax(logits.astype(np.float64))
    assert np.allclose(logprobs, want[np.arange(9), targets], atol=1e-5, rtol=0)
    assert ranks.tolist() == [1 + int((row > row[t]).sum()) for row, t in zip(logits, targets, strict=True)]
    assert np.allclose(top_logprobs, np.take_along_axis(want, top_ids.astype(np.int64), axis=1), atol=1e-5, rtol=0)
    assert (top_ids[:, 0] == logits.argmax(axis=1)).all()


def test_a_row_never_depends_on_the_others() -> None:
    logits = random_logits(8, 8193, seed=6)
    names = list(REQUESTS)
    draws = [REQUESTS[names[i % len(names)]] | {"seed": i} for i in range(40)]
    rows = [(5 * i) % 8 for i in range(40)]
    together = sample(logits, draws, rows, 4)
    order = np.random.default_rng(1).permutation(40)
    shuffled = sample(logits, [draws[i] for i in order], [rows[i] for i in order], 4)
    for got, want in zip(shuffled, together, strict=True):
        assert np.array_equal(got, want[order])
    for i in range(40):
        alone = sample(logits[rows[i] : rows[i] + 1], [draws[i]], [0], 4)
        for got, want in zip(alone, together, strict=True):
            assert np.array_equal(got[0], want[i])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_row_that_is_not_finite_fails_alone(poison: float) -> None:
    logits = random_logits(3, 8193)
    logits[1, 5000] = poison
    for p in ({"temperature": 1.0, "seed": 3}, {}, {"allowed": [1, 2]}, {"temperature": 1.0, "top_k": 3}):
        tokens, logprobs, ranks, top_ids, top_logprobs = sample(logits, [p] * 3, [0, 1, 2], 2)
        assert tokens[1] == -1
        assert np.isnan(logprobs[1])
        assert ranks[1] == 0
        assert top_ids[1].tolist() == [-1, -1]
        assert np.isnan(top_logprobs[1]).all()
        assert tokens[[0, 2]].tolist() == [
            reference_token(logits[i], p | {"temperature": p.get("temperature", 0)}) for i in (0, 2)
        ]
    logprobs, ranks, _, _ = _core.log_probs(logits, np.array([1, 1, 1], np.int32), 0)
    assert np.isnan(logprobs).tolist() == [False, True, False]
    assert (ranks > 0).tolist() == [True, False, True]


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full((1, 1003), -np.inf, np.float32)
    logits[0, [7, 600]] = [1.0, 0.0]
    for p in ({"temperature": 50.0}, {"temperature": 50.0, "top_k": 9}, {"temperature": 50.0, "top_p": 0.999}):
        drawn = sample(logits, [p | {"seed": i} for i in range(60)])[0]
        assert set(drawn.tolist()) == {7, 600}


def test_nothing_left_to_choose_is_told_apart_from_a_row_that_is_not_finite() -> None:
    logits = random_logits(2, 31)
    logits[1] = -np.inf
    for temperature in (0.0, 1.0):
        p = {"temperature": temperature}
        tokens, logprobs, ranks, top_ids, _ = sample(logits, [p | {"banned": list(range(31))}, p], [0, 0], 1)
        assert (tokens[0], ranks[0], top_ids[0, 0]) == (-2, 0, logits[0].argmax())
        assert np.isnan(logprobs[0])
        assert tokens[1] >= 0
        assert sample(logits, [p | {"allowed": [4], "banned": [4]}])[0].tolist() == [-2]
        assert sample(logits, [p, p | {"banned": [3]}], [1, 1])[0].tolist() == [-1, -1]


def test_no_draws_give_empty_arrays() -> None:
    shapes = [a.shape for a in sample(random_logits(2, 31), [], [], 3)]
    assert shapes == [(0,), (0,), (0,), (0, 3), (0, 3)]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bias": {31: 1.0}}, r"bias ids must be in \[0, 31\), got 31"),
        ({"banned": [-1]}, r"banned ids must be in \[0, 31\), got -1"),
        ({"allowed": [99]}, r"allowed ids must be in \[0, 31\), got 99"),
        ({"prompt": [31]}, r"prompt ids must be in \[0, 31\), got 31"),
        ({"output": [31]}, r"output ids must be in \[0, 31\), got 31"),
        ({"bias": {1: np.inf}}, "bias_values must be finite, got inf"),
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1"),
        ({"temperature": np.nan}, "temperature must be finite and not negative"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be finite and positive, got 0"),
        ({"presence_penalty": np.inf}, "presence_penalty must be finite, got inf"),
        ({"frequency_penalty": np.nan}, "frequency_penalty must be finite"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sample(random_logits(1, 31), [{"temperature": 1.0} | change])


def test_wrong_arrays_are_refused() -> None:
    logits, rows, good = random_logits(2, 31), np.zeros(1, np.int32), params_of([{}])
    for change, match in [
        ({"top_k": np.zeros(2, np.int32)}, "top_k must have one entry for each of 1 rows, got 2"),
        ({"temperature": np.zeros(1)}, "temperature must be float32, got float64"),
        ({"temperature": 1.0}, "temperature must be an ndarray, got float"),
        ({"top_q": rows}, "unknown name: top_q"),
        (
            {"banned_offsets": np.array([0, 5], np.int64)},
            "banned_offsets must go from 0 to the number of ids, 0, got 0 to 5",
        ),
        ({"bias_offsets": np.zeros(1, np.int64)}, "bias_offsets must have 2 entries, got 1"),
        ({"bias_values": np.ones(1, np.float32)}, "bias_values must have one entry for each of 0 rows, got 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            _core.sample(logits, rows, good | change, 0)
    del good["seed"]
    with pytest.raises(ValueError, match="params must have seed"):
        _core.sample(logits, rows, good, 0)
    with pytest.raises(ValueError, match=r"rows must be in \[0, 2\), got 2"):
        sample(logits, [{}], [2])
    with pytest.raises(ValueError, match=r"n_top must be in \[0, 31\], got 32"):
        sample(logits, [{}], [0], 32)
    with pytest.raises(ValueError, match=r"targets must be in \[0, 31\), got -1"):
        _core.log_probs(logits, np.array([0, -1], np.int32), 0)
    with pytest.raises(ValueError, match="a target for each of 2 rows, got 1"):
        _core.log_probs(logits, np.array([0], np.int32), 0)
    backwards = params_of([{}, {}]) | {
        "banned_offsets": np.array([0, 2, 1], np.int64),
        "banned_ids": np.zeros(1, np.int32),
    }
    with pytest.raises(ValueError, match="banned_offsets must ascend"):
        _core.sample(logits, np.zeros(2, np.int32), backwards, 0)
