"""CUDADecoder where steps and draws are queued and not waited for, on streams that do nothing until somebody waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sampling_reference import params_of
from tiny_decoder import LAST_TOKEN, Runner, i32, random_weights
from tiny_gpu_decoder import Together, late_streams, make_cache, make_decoder, tiny_config

from llm_decoder import _core


def tokens_of(config: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config["vocab_size"], n)]


def make(**overrides: Any) -> tuple[dict[str, Any], Any]:
    config = tiny_config(**overrides)
    return config, make_decoder(config, random_weights(config, seed=1))


@pytest.fixture
def late() -> Iterator[None]:
    with late_streams():
        yield


# ---- steps -------------------------------------------------------------------------------------------------------


def queue_prompts(decoder: Any, cache: Any, prompts: list[list[int]], chunks: int) -> None:
    """All prompts together, `chunks` tokens a step, nothing read in between."""
    ids = np.array([cache.admit(i32(p))[0] for p in prompts], np.int64)
    for begin in range(0, len(prompts[0]), chunks):
        parts = [p[begin : begin + chunks] for p in prompts]
        counts = i32(len(part) for part in parts)
        assert cache.reserve(ids, counts)
        fed = i32(t for part in parts for t in part)
        decoder.step(cache, fed, ids, counts, np.full(len(ids), LAST_TOKEN, np.uint8))
        cache.commit(ids, counts, fed)


def test_steps_that_are_queued_behind_each_other_read_their_own_arrays() -> None:
    """Seven steps, each with other tokens, slots and tables than the one before."""
    config, decoder = make(n_layers=3, windows=[20, 0, 7])
    prompts = [tokens_of(config, 56, seed=s) for s in range(3)]
    queue_prompts(decoder, make_cache(decoder, config), prompts, 8)
    want = decoder.logits()
    with late_streams():
        queue_prompts(decoder, make_cache(decoder, config), prompts, 8)
        got = decoder.logits()
    assert np.array_equal(got, want)


@pytest.mark.usefixtures("late")
def test_a_step_that_needs_more_memory_waits_for_those_that_use_what_there_is() -> None:
    config, decoder = make()
    tokens = tokens_of(config, 100)
    cache = make_cache(decoder, config)
    queue_prompts(decoder, cache, [tokens[:20]], 4)
    runner = Runner(decoder, cache)
    got = runner.run(tokens)  # logits of 84 tokens more, in larger arrays
    assert np.array_equal(got, Runner(*fresh(config)).run(tokens)[16:])


def fresh(config: dict[str, Any]) -> tuple[Any, Any]:
    decoder = make_decoder(config, random_weights(config, seed=1))
    return decoder, make_cache(decoder, config)


def test_pages_are_copied_in_the_order_of_steps() -> None:
    """A fork's first token copies the page that both had, which the steps before have not written yet."""
    config, decoder = make()
    tokens = tokens_of(config, 23)

    def run() -> np.ndarray:
        cache = make_cache(decoder, config)
        queue_prompts(decoder, cache, [tokens], 8)
        both = np.array([0, cache.fork(0)], np.int64)
        step_of(decoder, cache, both, [5, 6])
        assert cache.stats()["n_copies"] == 1
        return np.array(decoder.logits())

    want = run()
    with late_streams():
        assert np.array_equal(run(), want)


# ---- draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_fed_on_the_device_are_those_that_the_host_would_feed(temperature: float) -> None:
    """Three sequences, of which one comes later and one goes early."""
    config, decoder = make()

    def run(*, ahead: bool) -> list[list[int]]:
        walk = Together(decoder, make_cache(decoder, config), temperature=temperature)
        first, second = walk.admit(tokens_of(config, 9)), walk.admit(tokens_of(config, 30, seed=1))
        walk.decode(6, ahead=ahead)
        third = walk.admit(tokens_of(config, 17, seed=2))
        walk.decode(4, ahead=ahead)
        done = [walk.release(first)]
        walk.decode(5, ahead=ahead)
        return [*done, walk.release(second), walk.release(third)]

    want = run(ahead=False)
    assert [len(tokens) for tokens in want] == [11, 16, 10]
    assert run(ahead=True) == want
    with late_streams():
        assert run(ahead=True) == want


def step_of(decoder: Any, cache: Any, ids: np.ndarray, tokens: list[int]) -> None:
    ones = np.ones(len(ids), np.int32)
    assert cache.reserve(ids, ones)
    decoder.step(cache, i32(tokens), ids, ones, np.full(len(ids), LAST_TOKEN, np.uint8))


@pytest.mark.usefixtures("late")
def test_a_draw_that_gives_no_token_feeds_token_0() -> None:
    config, decoder = make()
    cache = make_cache(decoder, config)
    ids = np.array([cache.admit(i32([7]))[0] for _ in range(2)], np.int64)
    step_of(decoder, cache, ids, [7, 7])
    decoder.begin_sample(i32([0, 1]), params_of([{"allowed": [7], "banned": [7]}, {"allowed": [0]}]), 0)
    cache.commit(ids, i32([1, 1]), i32([7, 7]))
    step_of(decoder, cache, ids, [-1, -2])
    assert decoder.end_sample()[0].tolist() == [-2, 0]
    logits = decoder.logits()
    assert np.array_equal(logits[0], logits[1])


@pytest.mark.usefixtures("late")
def test_draws_end_in_the_order_in_which_they_began() -> None:
    config, decoder = make()
    cache = make_cache(decoder, config)
    logits = Runner(decoder, cache).run(tokens_of(config, 12))
    draws = [{"temperature": 1.0, "seed": s} for s in range(5)]
    decoder.begin_sample(i32([1, 2, 3, 4, 5]), params_of(draws), 3)
    decoder.begin_sample(i32([7]), params_of([{}]), 0)
    with pytest.raises(ValueError, match="at most 2 draws can be begun and not ended"):
        decoder.begin_sample(i32([7]), params_of([{}]), 0)
    with pytest.raises(ValueError, match="end the draws first that were begun, got 2"):
        decoder.sample(i32([7]), params_of([{}]), 0)
    first, second = decoder.end_sample(), decoder.end_sample()
    for got, rows, params, n_top in (
        (first, [1, 2, 3, 4, 5], params_of(draws), 3),
        (second, [7], params_of([{}]), 0),
    ):
        want = _core.sample(logits, i32(rows), params, n_top)
        assert [array.shape for array in got] == [array.shape for array in want]
        assert np.array_equal(got[0], want[0])
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-5)
        assert np.array_equal(got[3], want[3])
    with pytest.raises(ValueError, match="needs begin_sample first"):
        decoder.end_sample()
    assert decoder.sample(i32([7]), params_of([{}]), 0)[0] == second[0]


@pytest.mark.usefixtures("late")
def test_what_is_read_of_a_step_leaves_its_draw_for_the_next() -> None:
    """Log probabilities, logits and continuations between a draw and the step that is fed with it."""
    config, decoder = make()
    cache = make_cache(decoder, config)
    ids = np.array([cache.admit(i32([7]))[0]], np.int64)
    step_of(decoder, cache, ids, [7])
    decoder.begin_sample(i32([0, 0]), params_of([{"allowed": [5]}, {"allowed": [11]}]), 2)
    decoder.log_probs(i32([3]), 4)
    decoder.continuations(i32([0]), params_of([{}]), 6, 2)
    cache.commit(ids, i32([1]), i32([7]))
    step_of(decoder, cache, ids, [-2])
    assert decoder.end_sample()[0].tolist() == [5, 11]
    want = Runner(*fresh(config)).run([7, 11])[-1]
    np.testing.assert_allclose(decoder.logits()[0], want, rtol=1e-5, atol=1e-5)


def test_draws_that_are_not_there_cannot_be_fed() -> None:
    config, decoder = make()
    cache = make_cache(decoder, config)
    ids = np.array([cache.admit(i32([7]))[0] for _ in range(2)], np.int64)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 331\), got -1 at index 1"):
        step_of(decoder, cache, ids, [7, -1])
    step_of(decoder, cache, ids, [7, 7])
    decoder.sample(i32([1]), params_of([{}]), 0)
    cache.commit(ids, i32([1, 1]), i32([7, 7]))
    with pytest.raises(ValueError, match=r"tokens must be in \[-1, 331\), got -2 at index 0"):
        step_of(decoder, cache, ids, [-2, -1])
    step_of(decoder, cache, ids, [-1, -1])
