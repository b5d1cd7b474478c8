"""INT8Decoder against the NumPy reference, and against itself however its work is cut."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from tiny_decoder import (
    ALL_TOKENS,
    LAST_TOKEN,
    NO_TOKEN,
    Runner,
    fuse,
    i32,
    make_cache,
    make_decoder,
    quantized_as_float,
    random_weights,
    rounded_to_bf16,
    set_weight,
    tiny_config,
)

from llm_decoder import _core, reference

LAYOUTS = ["f32", "bf16", "w8"]
# Each knob of the layer loop, on sizes that are multiples of nothing.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "3_heads_on_1": ({}, {}),
    "a_kv_head_each": ({"n_kv_heads": 3, "head_dim": 16}, {}),
    "biases": ({"n_heads": 4, "n_kv_heads": 2}, {"biases": True}),
    "own_lm_head": ({"vocab_size": 1009}, {"tied": False}),
    "qk_norm": ({"qk_norm": True, "norm_eps": 1e-6}, {}),
    "windows": ({"n_layers": 3, "windows": [20, 0, 7]}, {}),
    "scaled_rope": ({"rope_attention_factor": 1.3, "attention_scale": 0.11}, {}),
    "rope_on_some_channels": ({"rope_inv_freq": [1.0, 0.5, 0.25, 0.125, 0.01]}, {}),
    "one_layer": ({"n_layers": 1}, {}),
}


def tokens_of(config: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config["vocab_size"], n)]


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("model", MODELS)
def test_float_logits_are_those_of_the_reference(model: str, isa: str) -> None:
    config, weights = tiny_config(**MODELS[model][0]), {}
    weights = random_weights(config, seed=1, **MODELS[model][1])
    tokens = tokens_of(config, 75)
    decoder = make_decoder(config, weights, "f32", threads=2, isa=isa)
    assert decoder.isa == isa
    got = Runner(decoder, make_cache(config)).run(tokens)
    want = reference.forward(config, weights, tokens)
    # float32 sums of a few hundred terms, through a few layers
    assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("kv_dtype", ["f32", "s8"])
@pytest.mark.parametrize("model", MODELS)
def test_int8_logits_stay_near_a_reference_with_the_same_rounded_weights(model: str, kv_dtype: str) -> None:
    config = tiny_config(**MODELS[model][0])
    weights = random_weights(config, seed=1, **MODELS[model][1])
    tokens = tokens_of(config, 75)
    got = Runner(make_decoder(config, weights, "w8"), make_cache(config, kv_dtype)).run(tokens)
    want = reference.forward(config, quantized_as_float(weights), tokens)
    # What is left is the rounding of activations (and KV) to 1/127 of a row's largest, about 1 % each.
    rms_error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert rms_error < 0.06


@pytest.mark.parametrize("isa", _core.isas())
def test_int8_logits_are_the_same_on_every_isa(isa: str) -> None:
    config = tiny_config()
    weights, tokens = random_weights(config), tokens_of(config, 40)
    want = Runner(make_decoder(config, weights, "w8", isa="generic"), make_cache(config, "s8")).run(tokens)
    got = Runner(make_decoder(config, weights, "w8", isa=isa), make_cache(config, "s8")).run(tokens)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("tied", [True, False])
def test_bf16_logits_have_the_bits_of_the_floats_that_they_stand_for(isa: str, tied: bool) -> None:
    config = tiny_config()
    weights = random_weights(config, biases=True, tied=tied)
    tokens = tokens_of(config, 70)
    want = Runner(make_decoder(config, rounded_to_bf16(weights), "f32", isa=isa), make_cache(config)).run(tokens)
    for chunks in ([70], [1] * 70, [9, 61]):
        got = Runner(make_decoder(config, weights, "bf16", isa=isa, threads=2), make_cache(config))
        np.testing.assert_array_equal(got.run(tokens, chunks), want)


@pytest.mark.parametrize("isa", _core.isas())
@pytest.mark.parametrize("tied", [True, False])
def test_w4_logits_have_the_bits_of_the_w8_weights_that_they_stand_for(isa: str, tied: bool) -> None:
    config = tiny_config()
    weights = random_weights(config, biases=True, tied=tied)
    tokens = tokens_of(config, 70)
    want = Runner(make_decoder(config, weights, "w4 as w8", isa="generic"), make_cache(config, "s8")).run(tokens)
    for chunks in ([70], [1] * 70, [9, 61]):
        got = Runner(make_decoder(config, weights, "w4", isa=isa, threads=2), make_cache(config, "s8"))
        np.testing.assert_array_equal(got.run(tokens, chunks), want)


CUTS = [("f32", "f32"), ("bf16", "bf16"), ("w8", "f32"), ("w8", "bf16"), ("w8", "s8"), ("w4", "s8")]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("model", ["3_heads_on_1", "windows"])
@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_any_chunks_and_any_threads_give_the_same_bits(layout: str, kv_dtype: str, model: str, threads: int) -> None:
    config = tiny_config(**MODELS[model][0])
    weights, tokens = random_weights(config), tokens_of(config, 90)
    want = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(tokens)
    runner = Runner(make_decoder(config, weights, layout, threads=threads), make_cache(config, kv_dtype))
    for chunks in ([90], [1] * 90, [37, 53], [1, 16, 17, 33, 23], [64, 1, 25]):
        runner.cache.clear_prefix_index()
        assert np.array_equal(runner.run(tokens, chunks), want)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_rows_in_blocks_of_one_thread_get_the_bits_that_rows_of_all_threads_get(
    layout: str, kv_dtype: str, threads: int
) -> None:
    """A row of gate and up has 16 KB, so two threads take two blocks from 96 rows on, and four from 192 on."""
    config = tiny_config(intermediate_size=2000)
    weights, tokens = random_weights(config, biases=True), tokens_of(config, 193)
    want = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(tokens, [29] * 6 + [19])
    decoder = make_decoder(config, weights, layout, threads=threads, max_tokens=len(tokens))
    runner = Runner(decoder, make_cache(config, kv_dtype))
    for n in (95, 96, 97, 144, 145, 191, 192, 193):
        runner.cache.clear_prefix_index()
        assert np.array_equal(runner.run(tokens[:n]), want[:n])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_a_sequence_gets_the_same_bits_alone_and_in_any_batch(layout: str, kv_dtype: str, threads: int) -> None:
    config = tiny_config(n_heads=4, n_kv_heads=2)
    weights = random_weights(config)
    prompts = [tokens_of(config, n, seed=n) for n in (1, 2, 33, 50, 61)]
    alone = [Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(p) for p in prompts]
    runner = Runner(make_decoder(config, weights, layout, threads=threads), make_cache(config, kv_dtype))
    walks = [runner.admit(p) for p in prompts]
    rng = np.random.default_rng(5)
    while left := [w for w in walks if w.n_done < len(w.tokens)]:
        rng.shuffle(left)
        runner.step([(w, int(rng.integers(1, min(25, len(w.tokens) - w.n_done) + 1))) for w in left])
    for walk, want in zip(walks, alone, strict=True):
        assert np.array_equal(walk.all_logits(), want)


@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_a_prefix_hit_gives_the_bits_that_a_miss_gives(layout: str, kv_dtype: str) -> None:
    config = tiny_config()
    weights, tokens = random_weights(config), tokens_of(config, 70)
    runner = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype))
    miss = runner.run(tokens)
    other_tail = [*tokens[:40], *tokens_of(config, 30, seed=9)]
    want_tail = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(other_tail)
    assert np.array_equal(runner.run(tokens), miss[64:])
    assert np.array_equal(runner.run(other_tail), want_tail[32:])


@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_pages_that_come_back_from_the_tier_give_the_bits_that_a_miss_gives(layout: str, kv_dtype: str) -> None:
    config = tiny_config(n_layers=3, windows=[0, 20, 0])
    weights, tokens = random_weights(config), tokens_of(config, 70)
    cache = make_cache(config, kv_dtype, n_pages=[5, 4], window=[0, 20], layers=[0, 1, 0], n_tier_slots=8)
    runner = Runner(make_decoder(config, weights, layout), cache)
    chunks = [20, 25, 25]
    miss = runner.run(tokens, chunks)
    runner.run(tokens_of(config, 70, seed=9), chunks)  # has all pages to itself
    assert cache.stats()["n_loaded"] == 0
    assert np.array_equal(runner.run(tokens), miss[64:])
    assert cache.stats()["n_loaded"] == 6  # four of the layers that see everything, two within the window


@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_forks_of_a_sequence_go_their_own_ways(layout: str, kv_dtype: str) -> None:
    config = tiny_config()
    weights, tokens = random_weights(config), tokens_of(config, 21)
    runner = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype))
    tails = [tokens_of(config, 5, seed=s) for s in (1, 2)]
    want = [runner.run(tokens + tail)[-5:] for tail in tails]
    runner.cache.clear_prefix_index()
    first = runner.admit(tokens)
    runner.step([(first, len(tokens))])
    second = runner.admit([0])
    runner.cache.release(second.seq_id)
    second.seq_id, second.n_done = runner.cache.fork(first.seq_id), len(tokens)
    first.tokens, second.tokens = tokens + tails[0], tokens + tails[1]
    for _ in range(5):
        runner.step([(second, 1), (first, 1)])
    assert np.array_equal(np.concatenate(first.logits[-5:]), want[0])
    assert np.array_equal(np.concatenate(second.logits[-5:]), want[1])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_sequences_that_share_a_long_prefix_step_together_as_they_do_alone(
    layout: str, kv_dtype: str, threads: int
) -> None:
    config = tiny_config(n_heads=4, n_kv_heads=2, windows=[0, 290])
    weights, prefix = random_weights(config), tokens_of(config, 335)
    prompts = [prefix[:n] + tokens_of(config, 14, seed=n) for n in (335, 330, 272, 100)]
    alone = [
        Runner(make_decoder(config, weights, layout, max_tokens=400), make_cache(config, kv_dtype)).run(p)[-12:]
        for p in prompts
    ]
    runner = Runner(make_decoder(config, weights, layout, threads=threads), make_cache(config, kv_dtype, n_pages=200))
    walks = [runner.admit(prompts[0])]
    for walk, prompt in zip(walks, prompts, strict=False):
        while walk.n_done < len(prompt) - 12:
            runner.step([(walk, min(64, len(prompt) - 12 - walk.n_done))])
        if len(walks) < len(prompts):
            walks.append(runner.admit(prompts[len(walks)]))
    pages = [runner.cache.page_table(walk.seq_id)[:16] for walk in walks[:3]]
    assert np.array_equal(pages[0], pages[1])
    assert np.array_equal(pages[0], pages[2])
    for n in (1, 4, 1, 6):
        runner.step([(walk, n) for walk in walks])
    for walk, want in zip(walks, alone, strict=True):
        assert np.array_equal(walk.all_logits()[-12:], want)


def test_pages_left_of_the_window_are_not_needed() -> None:
    config = tiny_config(windows=[20, 9])
    weights, tokens = random_weights(config), tokens_of(config, 90)
    want = Runner(make_decoder(config, weights, "w8"), make_cache(config, "s8")).run(tokens)
    runner = Runner(make_decoder(config, weights, "w8"), make_cache(config, "s8", window=20))
    walk = runner.admit(tokens)
    for n in (40, 10, 39, 1):
        runner.step([(walk, n)])
    assert (runner.cache.page_table(walk.seq_id)[:3] == -1).all()
    assert np.array_equal(walk.all_logits(), want)


@pytest.mark.parametrize(("layout", "kv_dtype"), [("w8", "s8"), ("f32", "f32")])
def test_layers_with_different_windows_have_pages_of_their_own(layout: str, kv_dtype: str) -> None:
    config = tiny_config(n_layers=4, windows=[0, 9, 0, 20])
    weights, tokens = random_weights(config), tokens_of(config, 90)
    want = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(tokens)
    cache = make_cache(config, kv_dtype, n_pages=[12, 6, 4], window=[0, 20, 9], layers=[0, 2, 0, 1])
    runner = Runner(make_decoder(config, weights, layout), cache)
    walk = runner.admit(tokens)
    for n in (32, 8, 30, 19, 1):
        runner.step([(walk, n)])
    assert (cache.page_table(walk.seq_id, 0) >= 0).all()
    assert (cache.page_table(walk.seq_id, 1)[:4] == -1).all()
    assert (cache.page_table(walk.seq_id, 2)[:5] == -1).all()
    assert (
        np.array_equal(walk.all_logits(), want) if layout == "w8" else np.allclose(walk.all_logits(), want, atol=1e-4)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wanted_rows_are_rows_of_all_logits(layout: str) -> None:
    config = tiny_config(n_layers=3)
    weights = random_weights(config)
    prompts = [tokens_of(config, n, seed=n) for n in (9, 20, 30)]
    runner = Runner(make_decoder(config, weights, layout, threads=2), make_cache(config))
    everything = [runner.run(p) for p in prompts]
    runner.cache.clear_prefix_index()
    walks = [runner.admit(p) for p in prompts]
    ids = np.array([w.seq_id for w in walks], np.int64)
    counts, tokens = i32(len(p) for p in prompts), i32(t for p in prompts for t in p)
    assert runner.cache.reserve(ids, counts)
    wants = {
        (LAST_TOKEN, NO_TOKEN, ALL_TOKENS): [everything[0][-1:], everything[2]],
        (NO_TOKEN, ALL_TOKENS, LAST_TOKEN): [everything[1], everything[2][-1:]],
        (NO_TOKEN, NO_TOKEN, NO_TOKEN): [np.zeros((0, config["vocab_size"]), np.float32)],
    }
    for want, rows in wants.items():
        n_rows = runner.decoder.step(runner.cache, tokens, ids, counts, np.array(want, np.uint8))
        assert n_rows == len(np.concatenate(rows))
        assert np.array_equal(runner.decoder.logits(), np.concatenate(rows))
    # The step that wanted nothing has still written all KV.
    runner.cache.commit(ids, counts, tokens)
    walks[1].tokens.append(5)
    walks[1].n_done = 20
    runner.step([(walks[1], 1)])
    assert np.array_equal(
        walks[1].all_logits()[-1], Runner(runner.decoder, make_cache(config)).run(walks[1].tokens)[-1]
    )


def test_hidden_is_what_the_lm_head_reads() -> None:
    config = tiny_config()
    weights = random_weights(config, tied=False)
    decoder = make_decoder(config, weights, "f32")
    logits = Runner(decoder, make_cache(config)).run(tokens_of(config, 12))
    assert decoder.hidden().shape == (12, config["hidden_size"])
    assert relative_error(decoder.hidden().astype(np.float64) @ weights["lm_head"].T, logits) < 1e-5


@pytest.mark.parametrize(("layout", "kv_dtype"), CUTS)
def test_a_sequence_of_nan_hurts_nobody_beside_it_or_after_it(layout: str, kv_dtype: str) -> None:
    config = tiny_config()
    weights, tokens = random_weights(config), tokens_of(config, 40)
    tokens = [t if t != 7 else 8 for t in tokens]
    want = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype)).run(tokens)
    weights["embedding"][7] = np.nan
    weights["lm_head"] = random_weights(config)["embedding"]
    runner = Runner(make_decoder(config, weights, layout), make_cache(config, kv_dtype, n_pages=8))
    poisoned, healthy = runner.admit([7] * 40), runner.admit(tokens)
    runner.step([(poisoned, 40), (healthy, 40)])
    assert np.isnan(poisoned.all_logits()).all()
    assert np.array_equal(healthy.all_logits(), want)
    for walk in (poisoned, healthy):
        runner.cache.release(walk.seq_id)
    runner.cache.clear_prefix_index()
    for _ in range(2):  # every page by now has held NaN
        runner.run([7] * 120)
        runner.cache.clear_prefix_index()
    assert np.array_equal(runner.run(tokens, [20, 1, 19]), want)


def greedy_params(n: int) -> dict[str, np.ndarray]:
    params = {
        name: np.zeros(n, np.float32) for name in ("temperature", "min_p", "presence_penalty", "frequency_penalty")
    }
    params |= {name: np.ones(n, np.float32) for name in ("top_p", "repetition_penalty")}
    params |= {"top_k": np.zeros(n, np.int32), "seed": np.zeros(n, np.uint64), "position": np.zeros(n, np.int64)}
    for name in ("prompt", "output", "bias", "banned", "allowed"):
        params[f"{name}_offsets"] = np.zeros(n + 1, np.int64)
        params[f"{name}_{'tokens' if name in ('prompt', 'output') else 'ids'}"] = np.zeros(0, np.int32)
    return params | {"bias_values": np.zeros(0, np.float32)}


def test_sample_and_log_probs_read_the_logits_of_the_last_step() -> None:
    config = tiny_config()
    decoder = make_decoder(config, random_weights(config), "w8", threads=3)
    logits = Runner(decoder, make_cache(config)).run(tokens_of(config, 9))
    rows = i32([8, 0, 3, 3])
    params = greedy_params(4) | {
        "temperature": np.array([0, 1, 1, 2], np.float32),
        "seed": np.arange(4, dtype=np.uint64),
    }
    for got, want in zip(decoder.sample(rows, params, 5), _core.sample(logits, rows, params, 5), strict=True):
        assert np.array_equal(got, want)
    assert decoder.sample(rows, params, 0)[0][0] == logits[8].argmax()
    targets = i32(range(9))
    for got, want in zip(decoder.log_probs(targets, 3), _core.log_probs(logits, targets, 3), strict=True):
        assert np.array_equal(got, want)
    with pytest.raises(ValueError, match=r"rows must be in \[0, 9\), got 9"):
        decoder.sample(i32([9, 0, 0, 0]), params, 0)


class TestDoors:
    """A batch that does not fit is refused before anything is written, and the decoder goes on."""

    @pytest.fixture
    def runner(self) -> Runner:
        config = tiny_config(max_model_len=48)
        return Runner(make_decoder(config, random_weights(config), "w8", max_tokens=32), make_cache(config, "s8"))

    def refused(self, runner: Runner, match: str, tokens: Any, ids: Any, counts: Any, want: Any) -> None:
        with pytest.raises(ValueError, match=match):
            runner.decoder.step(
                runner.cache, i32(tokens), np.array(ids, np.int64), i32(counts), np.array(want, np.uint8)
            )

    def test_what_does_not_fit_is_named(self, runner: Runner) -> None:
        a, b = runner.admit([1, 2, 3]), runner.admit([4, 5])
        both = [a.seq_id, b.seq_id]
        assert runner.cache.reserve(np.array(both, np.int64), i32([3, 2]))
        self.refused(runner, r"step\] tokens must be in \[0, 1003\), got 1003", [1, 2, 1003], [a.seq_id], [3], [1])
        self.refused(runner, r"tokens must be in \[0, 1003\), got -1", [1, 2, -1], [a.seq_id], [3], [1])
        self.refused(runner, "counts must be positive, got 0", [1, 2, 3], both, [3, 0], [1, 1])
        self.refused(runner, "counts add up to 4, but there are 3", [1, 2, 3], both, [2, 2], [1, 1])
        self.refused(runner, "one entry for each of 2", [1, 2, 3], both, [3], [1, 1])
        self.refused(runner, "at least one sequence", [], [], [], [])
        self.refused(runner, "want must be 0, 1 or 2, got 3", [1, 2, 3], [a.seq_id], [3], [3])
        self.refused(runner, "twice", [1, 2], [a.seq_id, a.seq_id], [1, 1], [1, 1])
        self.refused(runner, "reserve before the step", [1] * 20, [a.seq_id], [20], [1])
        self.refused(runner, "max_tokens_per_step = 32 tokens, got 33", [1] * 33, [a.seq_id], [33], [1])
        self.refused(runner, "12345", [1], [12345], [1], [1])
        ids, counts = np.array(both, np.int64), i32([3, 2])
        assert runner.decoder.step(runner.cache, i32([1, 2, 3, 4, 5]), ids, counts, np.array([1, 2], np.uint8)) == 3

    def test_positions_end_at_max_model_len(self, runner: Runner) -> None:
        walk = runner.admit(range(49))
        runner.step([(walk, 30)])
        ids = np.array([walk.seq_id], np.int64)
        assert runner.cache.reserve(ids, i32([19]))
        self.refused(
            runner, "below max_model_len = 48; sequence .* holds 30 tokens and got 19", [1] * 19, ids, [19], [1]
        )
        assert runner.decoder.step(runner.cache, i32([1] * 18), ids, i32([18]), np.array([1], np.uint8)) == 1

    def test_a_cache_of_another_shape_is_refused(self, runner: Runner) -> None:
        other = make_cache(tiny_config(n_layers=3), "s8")
        seq_id, _ = other.admit(i32([1]))
        assert other.reserve(np.array([seq_id], np.int64), i32([1]))
        with pytest.raises(ValueError, match=r"\[2, 1, 40\], got \[3, 1, 40\]"):
            runner.decoder.step(other, i32([1]), np.array([seq_id], np.int64), i32([1]), np.array([1], np.uint8))

    def test_a_cache_that_forgets_what_a_layer_sees_is_refused(self, runner: Runner) -> None:
        other = make_cache(tiny_config(), "s8", window=32)
        seq_id, _ = other.admit(i32([1]))
        assert other.reserve(np.array([seq_id], np.int64), i32([1]))
        with pytest.raises(ValueError, match="layer 0 sees every position, but the cache keeps a window of 32"):
            runner.decoder.step(other, i32([1]), np.array([seq_id], np.int64), i32([1]), np.array([1], np.uint8))

    def test_arrays_of_another_dtype_are_refused(self, runner: Runner) -> None:
        with pytest.raises(ValueError, match="tokens must be int32, got int64"):
            runner.decoder.step(runner.cache, np.array([1]), np.array([0], np.int64), i32([1]), np.array([1], np.uint8))

    def test_a_second_thread_is_refused_while_the_first_is_inside(self, runner: Runner) -> None:
        walk = runner.admit(range(32))
        ids = np.array([walk.seq_id], np.int64)
        assert runner.cache.reserve(ids, i32([32]))
        stop, refusals = threading.Event(), []

        def step_again_and_again() -> None:
            while not stop.is_set():
                try:
                    runner.decoder.step(runner.cache, i32([1] * 32), ids, i32([32]), np.array([2], np.uint8))
                except RuntimeError as error:
                    refusals.append(str(error))
                    stop.set()

        threads = [threading.Thread(target=step_again_and_again) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        stop.set()
        assert refusals
        assert "another thread is inside" in refusals[0]


class TestWeights:
    """finalize names the weight at fault, what it needed and what came."""

    def unfinished(self, layout: str, change: dict[str, np.ndarray | None]) -> Any:
        config = tiny_config()
        weights: dict[str, Any] = fuse(config, random_weights(config)) | change
        decoder = _core.INT8Decoder(config, 1)
        for name, weight in weights.items():
            if weight is not None:
                set_weight(decoder, name, weight, layout)
        return decoder

    @pytest.mark.parametrize(
        "name", ["embedding", "final_norm", "layer_0/ln1", "layer_1/attn_qkv", "layer_1/attn_o", "layer_0/mlp_down"]
    )
    def test_a_missing_weight_is_named(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"\[INT8Decoder.finalize\] weight {name} is missing"):
            self.unfinished("w8", {name: None}).finalize(8)

    def test_a_wrong_shape_says_which_was_needed_and_which_came(self) -> None:
        wrong = np.ones((72, 121), np.float32)
        with pytest.raises(
            ValueError, match=r"layer_1/attn_o must be a matrix \[72, 120\], got f32 matrix \[72, 121\]"
        ):
            self.unfinished("f32", {"layer_1/attn_o": wrong}).finalize(8)
        with pytest.raises(ValueError, match=r"layer_0/ln2 must be a vector \[72\], got vector \[71\]"):
            self.unfinished("f32", {"layer_0/ln2": np.ones(71, np.float32)}).finalize(8)
        with pytest.raises(ValueError, match=r"attn_qkv.bias must be a vector \[200\], got vector \[3\]"):
            self.unfinished("f32", {"layer_0/attn_qkv.bias": np.ones(3, np.float32)}).finalize(8)

    def test_a_weight_that_the_model_does_not_have_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="this model has no weight layer_0/q_norm"):
            self.unfinished("f32", {"layer_0/q_norm": np.ones(40, np.float32)}).finalize(8)

    def test_layouts_do_not_mix(self) -> None:
        decoder = self.unfinished("w8", {"layer_1/mlp_down": None})
        set_weight(decoder, "layer_1/mlp_down", np.ones((72, 91), np.float32), "f32")
        with pytest.raises(
            ValueError, match="must be w8 or w4, as the embedding is quantised, got layer_1/mlp_down as f32"
        ):
            decoder.finalize(8)

    def test_an_embedding_of_4_bits_is_refused(self) -> None:
        decoder = self.unfinished("w8", {"embedding": None})
        groups = _core.quantize_weight_groups(np.ones((1003, 72), np.float32))
        decoder.set_weight("embedding", "w4", (1003, 72), _core.pack_w4(*groups[:3]), groups[3])
        with pytest.raises(ValueError, match="embedding must be f32, bf16 or w8, got w4 matrix"):
            decoder.finalize(8)

    def test_arrays_that_do_not_fit_their_shape_are_refused(self) -> None:
        decoder = _core.INT8Decoder(tiny_config(), 1)
        packed = _core.pack_f32(np.ones((20, 8), np.float32))
        with pytest.raises(ValueError, match=r"embedding data must have shape \[384\], got \[256\]"):
            decoder.set_weight("embedding", "f32", (40, 8), packed)
        with pytest.raises(ValueError, match=r"embedding data must have shape \[384\], got \[256\]"):
            decoder.set_weight("embedding", "bf16", (40, 8), _core.pack_bf16(np.ones((20, 8), np.float32)))
        with pytest.raises(ValueError, match="w8 and w4 need scales, got none for embedding"):
            decoder.set_weight("embedding", "w8", (16, 4), np.zeros(64, np.uint8))
        with pytest.raises(ValueError, match=r"embedding data must have shape \[576\], got \[64\]"):
            decoder.set_weight("embedding", "w4", (16, 4), np.zeros(64, np.uint8), np.ones(16, np.float32))
        with pytest.raises(ValueError, match="'vector', 'f32', 'bf16', 'w8' or 'w4', got 'w2'"):
            decoder.set_weight("embedding", "w2", (16, 4), np.zeros(64, np.uint8))
        with pytest.raises(ValueError, match="aligned to 64 bytes"):
            decoder.set_weight("embedding", "f32", (3, 4), np.zeros(80, np.float32)[1:65])

    def test_a_decoder_without_its_weights_does_not_step(self) -> None:
        config = tiny_config()
        decoder, cache = _core.INT8Decoder(config, 1), make_cache(config)
        with pytest.raises(ValueError, match="needs finalize first"):
            decoder.step(cache, i32([1]), np.array([0], np.int64), i32([1]), np.array([1], np.uint8))

    def test_a_finished_decoder_takes_no_more_weights(self) -> None:
        config = tiny_config()
        decoder = make_decoder(config, random_weights(config), "f32")
        with pytest.raises(ValueError, match="cannot change after finalize, got final_norm"):
            decoder.set_weight("final_norm", "vector", (72,), np.ones(72, np.float32))
        assert decoder.workspace_bytes > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_kv_heads": 2}, "n_heads must be a multiple of n_kv_heads, got 3 and 2"),
        ({"windows": [0]}, "an entry for each of 2 layers, got 1"),
        ({"windows": [0, -1]}, "windows must not be negative, got -1"),
        ({"hidden_size": 0}, "hidden_size must be positive, got 0"),
        ({"intermediate_size": 133145}, "sums 133145 terms, int8 sums are exact up to 133144"),
        ({"attention_scale": 0.0}, "attention_scale must be positive, got 0"),
        ({"rope_inv_freq": [1.0] * 21}, "at most head_dim / 2 entries, got 21"),
        ({"n_heads": "three"}, "config n_heads has a wrong value: 'three'"),
        ({"n_experts": 8}, "must have exactly"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _core.INT8Decoder(tiny_config() | change, 1)


def test_what_a_config_lacks_is_named() -> None:
    config = tiny_config()
    del config["norm_eps"]
    with pytest.raises(ValueError, match="config must have norm_eps"):
        _core.INT8Decoder(config, 1)


def test_an_isa_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv"):
        _core.INT8Decoder(tiny_config(), 1, "riscv")


def test_a_decoder_needs_a_thread() -> None:
    with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
        _core.INT8Decoder(tiny_config(), 0)
