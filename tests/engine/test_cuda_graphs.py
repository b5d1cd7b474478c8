"""Decode steps of CUDADecoder that are repeated as graphs give what the same steps give without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling_reference import params_of
from tiny_decoder import ALL_TOKENS, LAST_TOKEN, Runner, Walk, i32, random_weights
from tiny_gpu_decoder import Together, late_streams, make_cache, make_decoder, tiny_config

ROOM = 1 << 30  # bytes


def tokens_of(config: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config["vocab_size"], n)]


def make(kv_dtype: str = "bf16", *, biases: bool = False, **overrides: Any) -> tuple[dict[str, Any], Any, Any]:
    """A model with a decoder of it and a cache."""
    decoder_options = {name: overrides.pop(name) for name in ("deterministic", "graphs") if name in overrides}
    config = tiny_config(**overrides)
    decoder = make_decoder(config, random_weights(config, seed=1, biases=biases), **decoder_options)
    return config, decoder, make_cache(decoder, config, kv_dtype)


def decode(decoder: Any, cache: Any, prompts: list[list[int]], parts: list[list[int]]) -> list[np.ndarray]:
    """Steps through all but the last tokens of the prompts, then one token of each sequence of each part."""
    runner = Runner(decoder, cache)
    walks = [runner.admit(prompt) for prompt in prompts]
    for walk in walks:
        n_decodes = sum(walks[i] is walk for part in parts for i in part)
        runner.step([(walk, len(walk.tokens) - n_decodes)], LAST_TOKEN)
    for part in parts:
        runner.step([(walks[i], 1) for i in part], LAST_TOKEN)
    return [walk.all_logits() for walk in walks]


# ---- the same numbers --------------------------------------------------------------------------------------------

# Who decodes, step by step: sizes of their own and padded ones, and the same size for other sequences.
PARTS = [[0], [1, 2], [2, 0, 1], [3, 1], [0, 1, 2, 3, 4], [4], [4, 3, 2]]
LENGTHS = [20, 33, 5, 50, 65]


@pytest.mark.parametrize("kv_dtype", ["bf16", "s8"])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"deterministic": True, "n_heads": 4, "n_kv_heads": 2, "biases": True},
        {"n_layers": 3, "windows": [20, 0, 7], "qk_norm": True},
        {"n_layers": 1, "n_heads": 4, "n_kv_heads": 1},
    ],
    ids=["2_heads_on_1", "deterministic", "windows", "one_layer"],
)
def test_a_graph_gives_the_bits_of_the_step_that_it_repeats(model: dict[str, Any], kv_dtype: str) -> None:
    config, decoder, cache = make(kv_dtype, **model)
    prompts = [tokens_of(config, n, seed=n) for n in LENGTHS]
    want = decode(decoder, cache, prompts, PARTS)
    assert decoder.n_graph_steps == 0
    cache = make_cache(decoder, config, kv_dtype)
    decoder.capture(cache, 8, ROOM)
    assert (decoder.graphs, decoder.why_no_more_graphs) == ([1, 2, 4, 8], "")
    got = decode(decoder, cache, prompts, PARTS)
    assert decoder.n_graph_steps >= len(PARTS)
    for mine, theirs in zip(got, want, strict=True):
        assert np.array_equal(mine, theirs)
    cache.check_integrity()


@pytest.mark.parametrize("deterministic", [False, True])
def test_keys_that_are_split_are_merged_in_a_graph(deterministic: bool) -> None:
    """600 keys go to several blocks, beside sequences whose keys go to one."""
    config, decoder, cache = make(deterministic=deterministic, max_model_len=1024)
    prompts = [tokens_of(config, n, seed=n) for n in (600, 10, 300)]
    parts = [[0, 1], [0, 1, 2], [2], [0]]

    def run(cache: Any) -> list[np.ndarray]:
        runner = Runner(decoder, cache)
        walks = [runner.admit(prompt) for prompt in prompts]
        for i, walk in enumerate(walks):
            left = len(walk.tokens) - sum(part.count(i) for part in parts)
            while left:
                n = min(left, 120)
                runner.step([(walk, n)], LAST_TOKEN)
                left -= n
        for part in parts:
            runner.step([(walks[i], 1) for i in part], LAST_TOKEN)
        return [walk.all_logits() for walk in walks]

    want = run(make_cache(decoder, config, n_pages=64))
    cache = make_cache(decoder, config, n_pages=64)
    decoder.capture(cache, 4, ROOM)
    got = run(cache)
    assert decoder.n_graph_steps == len(parts)
    for mine, theirs in zip(got, want, strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("are_late", [False, True])
def test_sequences_that_come_and_go_draw_the_same_tokens_by_graph(are_late: bool) -> None:
    config = tiny_config()
    weights = random_weights(config, seed=1)

    def run(*, graphs: bool, ahead: bool) -> list[list[int]]:
        decoder = make_decoder(config, weights, graphs=graphs)
        cache = make_cache(decoder, config)
        decoder.capture(cache, 8, ROOM)
        walk = Together(decoder, cache, temperature=0.8)
        first, second = walk.admit(tokens_of(config, 9)), walk.admit(tokens_of(config, 30, seed=1))
        walk.decode(5, ahead=ahead)
        third = walk.admit(tokens_of(config, 17, seed=2))
        walk.decode(4, ahead=ahead)
        done = [walk.release(first)]
        walk.decode(4, ahead=ahead)
        assert decoder.n_graph_steps == (13 if graphs else 0)
        return [*done, walk.release(second), walk.release(third)]

    want = run(graphs=False, ahead=False)
    if are_late:
        with late_streams():
            assert run(graphs=True, ahead=True) == want
    else:
        assert run(graphs=True, ahead=False) == want


# ---- which steps -------------------------------------------------------------------------------------------------


def graph_steps(decoder: Any, step: Any) -> int:
    before = decoder.n_graph_steps
    step()
    return int(decoder.n_graph_steps - before)


def test_other_steps_go_without_a_graph() -> None:
    config, decoder, cache = make()
    decoder.capture(cache, 4, ROOM)
    runner = Runner(decoder, cache)
    walks = [runner.admit(tokens_of(config, 90, seed=s)) for s in range(5)]
    assert graph_steps(decoder, lambda: runner.step([(w, 20) for w in walks], LAST_TOKEN)) == 0
    assert graph_steps(decoder, lambda: runner.step([(walks[0], 1)], LAST_TOKEN)) == 1
    assert graph_steps(decoder, lambda: runner.step([(walks[0], 1)], ALL_TOKENS)) == 1
    assert graph_steps(decoder, lambda: runner.step([(walks[0], 1)], 0)) == 0
    assert graph_steps(decoder, lambda: runner.step([(walks[0], 2)], ALL_TOKENS)) == 0
    assert graph_steps(decoder, lambda: runner.step([(walks[0], 1), (walks[1], 2)], LAST_TOKEN)) == 0
    assert graph_steps(decoder, lambda: runner.step([(w, 1) for w in walks[:4]], LAST_TOKEN)) == 1
    assert graph_steps(decoder, lambda: runner.step([(w, 1) for w in walks], LAST_TOKEN)) == 0


@pytest.mark.parametrize(("n_forks", "n_graph_steps"), [(4, 3), (5, 0)])
def test_forks_read_their_pages_together_by_graph_up_to_64_rows(n_forks: int, n_graph_steps: int) -> None:
    """16 query heads of a KV head: 64 rows are four sequences."""
    config, decoder, cache = make(n_heads=16, n_kv_heads=1, head_dim=8)
    prompt = tokens_of(config, 70)

    def run(cache: Any) -> list[np.ndarray]:
        runner = Runner(decoder, cache)
        first = runner.admit(prompt)
        runner.step([(first, 70)], LAST_TOKEN)
        walks = [first] + [
            Walk(list(prompt), cache.fork(first.seq_id), 70, n_done=70, logits=list(first.logits))
            for _ in range(n_forks - 1)
        ]
        for i, walk in enumerate(walks):
            walk.tokens = prompt + tokens_of(config, 3, seed=i)
        for _ in range(3):
            runner.step([(walk, 1) for walk in walks], LAST_TOKEN)
        return [walk.all_logits() for walk in walks]

    want = run(make_cache(decoder, config))
    decoder.capture(cache, 8, ROOM)
    got = run(cache)
    assert decoder.n_graph_steps == n_graph_steps
    for mine, theirs in zip(got, want, strict=True):
        assert np.array_equal(mine, theirs)


def test_a_cache_that_was_not_captured_goes_without_a_graph() -> None:
    config, decoder, cache = make()
    decoder.capture(cache, 4, ROOM)
    tokens = tokens_of(config, 20)
    want = Runner(decoder, cache).run(tokens, [19, 1])
    assert decoder.n_graph_steps == 1
    del cache
    other = Runner(decoder, make_cache(decoder, config))
    assert np.array_equal(other.run(tokens, [19, 1]), want)
    assert decoder.n_graph_steps == 1
    decoder.capture(other.cache, 2, ROOM)
    assert np.array_equal(Runner(decoder, other.cache).run(tokens[::-1], [19, 1]).shape, want.shape)
    assert decoder.n_graph_steps == 2


def test_a_profile_is_made_without_graphs() -> None:
    config, decoder, cache = make()
    decoder.capture(cache, 4, ROOM)
    runner = Runner(decoder, cache)
    decoder.start_profile()
    with pytest.raises(ValueError, match="a profile waits for every part of a step; stop it first"):
        decoder.capture(cache, 4, ROOM)
    runner.run(tokens_of(config, 9), [8, 1])
    n_tokens, _, seconds = decoder.stop_profile()
    assert n_tokens.tolist() == [8, 1]
    assert (seconds[1] > 0).sum() > 8
    assert decoder.n_graph_steps == 0
    runner.run(tokens_of(config, 9, seed=1), [8, 1])
    assert decoder.n_graph_steps == 1


def test_steps_of_more_logits_between_leave_graphs_what_they_need() -> None:
    """Logits of 100 tokens do not fit where those of a graph lie, and are taken elsewhere."""
    config, decoder, cache = make()
    decoder.capture(cache, 2, ROOM)
    tokens = tokens_of(config, 100)
    runner = Runner(decoder, cache)
    walk = runner.admit(tokens)
    runner.step([(walk, 98)], ALL_TOKENS)
    runner.step([(walk, 1)], ALL_TOKENS)
    drawn = decoder.sample(i32([0]), params_of([{}]), 0)[0]
    assert drawn[0] == walk.logits[-1].argmax()
    assert decoder.hidden().shape == (1, config["hidden_size"])
    assert decoder.n_graph_steps == 1
    want = Runner(decoder, make_cache(decoder, config)).run(tokens, [98, 1, 1])
    assert np.array_equal(walk.all_logits(), want[:99])


# ---- which graphs ------------------------------------------------------------------------------------------------


def test_sizes_go_up_to_the_largest_batch() -> None:
    _, decoder, cache = make(n_layers=1)
    decoder.capture(cache, 20, ROOM)
    assert decoder.graphs == [1, 2, 4, 8, 16, 20]
    decoder.capture(cache, 1, ROOM)
    assert decoder.graphs == [1]
    before = decoder.workspace_bytes
    decoder.capture(cache, 1000, ROOM)  # more than a step's 128 tokens
    assert decoder.graphs == [1, 2, 4, 8, *range(16, 129, 8)]
    assert decoder.workspace_bytes > before


def test_the_smallest_come_first_where_memory_ends() -> None:
    config, decoder, cache = make(n_layers=1)
    decoder.capture(cache, 64, 100)
    assert decoder.graphs == []
    assert "arrays for 1 sequences need" in decoder.why_no_more_graphs
    before = decoder.workspace_bytes
    decoder.capture(cache, 64, 40_000)
    assert decoder.graphs[:2] == [1, 2]
    assert 2 <= len(decoder.graphs) < 11
    assert "may take 40000" in decoder.why_no_more_graphs
    assert decoder.workspace_bytes - before <= 40_000
    got = Runner(decoder, cache).run(tokens_of(config, 9), [8, 1])
    assert decoder.n_graph_steps == 1
    assert np.isfinite(got).all()


def test_graphs_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def why() -> str:
        _, decoder, cache = make(n_layers=1)
        decoder.capture(cache, 4, ROOM)
        return str(decoder.why_no_more_graphs)

    _, decoder, cache = make(n_layers=1, graphs=False)
    decoder.capture(cache, 4, ROOM)
    assert (decoder.graphs, decoder.why_no_more_graphs) == ([], "they are switched off")
    monkeypatch.setenv("LLM_DECODER_CUDA_GRAPHS", "0")
    assert why() == "they are switched off"
    monkeypatch.setenv("LLM_DECODER_CUDA_GRAPHS", "1")
    assert why() == ""
    monkeypatch.setenv("LLM_DECODER_CUDA_GRAPHS", "no")
    with pytest.raises(ValueError, match="LLM_DECODER_CUDA_GRAPHS must be 0 or 1, got no"):
        make(n_layers=1)


def test_heads_that_do_not_fit_a_block_have_no_graph() -> None:
    many: dict[str, Any] = {"n_layers": 1, "n_heads": 18, "n_kv_heads": 1, "head_dim": 8}
    _, decoder, cache = make(**many)
    decoder.capture(cache, 4, ROOM)
    assert decoder.graphs == []
    assert decoder.why_no_more_graphs == "18 query heads of a KV head are more than the 16 of a graph"
    _, decoder, cache = make(**many, deterministic=True)
    decoder.capture(cache, 4, ROOM)
    assert decoder.graphs == [1, 2, 4]


def test_a_deterministic_decoder_that_attends_by_wgmma_has_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_ATTENTION_PATH", "wgmma")
    _, decoder, cache = make(n_layers=1, deterministic=True)
    decoder.capture(cache, 4, ROOM)
    assert decoder.graphs == []
    assert "attends by wgmma on this device" in decoder.why_no_more_graphs


def test_what_cannot_be_captured_is_refused() -> None:
    config, decoder, cache = make(n_layers=1)
    for max_batch, max_bytes in ((0, 10), (4, -1)):
        with pytest.raises(ValueError, match="max_batch must be positive and max_bytes not negative"):
            decoder.capture(cache, max_batch, max_bytes)
    other = make_decoder(config, random_weights(config, seed=1))
    with pytest.raises(ValueError, match="the cache must have its pages on the device, of this decoder"):
        other.capture(cache, 4, ROOM)
