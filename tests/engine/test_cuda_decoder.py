"""CUDADecoder, on the host machine that stands for a GPU, against the NumPy reference and the CPU's sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder
from models_factory import make_checkpoint
from sampling_reference import params_of
from tiny_decoder import ALL_TOKENS, LAST_TOKEN, NO_TOKEN, Runner, Weights, i32, random_weights
from tiny_gpu_decoder import Judge, as_seen, gpu_module, make_cache, make_decoder, set_weight, tiny_config

from llm_decoder import _core, backends
from llm_decoder.model_config import weight_shapes
from llm_decoder.packed_tensor import MatrixLayout
from llm_decoder.quantize import pack_in_memory
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

# Each knob of the layer loop.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "2_heads_on_1": ({}, {}),
    "a_kv_head_each": ({"n_kv_heads": 2, "head_dim": 24}, {}),
    "biases": ({"n_heads": 4, "n_kv_heads": 2}, {"biases": True}),
    "own_lm_head": ({"vocab_size": 333}, {"tied": False}),
    "qk_norm": ({"qk_norm": True, "norm_eps": 1e-6}, {}),
    "windows": ({"n_layers": 3, "windows": [20, 0, 7]}, {}),
    "scaled_rope": ({"rope_attention_factor": 1.3, "attention_scale": 0.11}, {}),
    "rope_on_some_channels": ({"rope_inv_freq": [1.0, 0.5, 0.25, 0.125, 0.01]}, {}),
    "one_layer": ({"n_layers": 1}, {}),
    "gate_and_up_share_a_brick": ({"intermediate_size": 88}, {"biases": True}),
    "three_bricks_of_each": ({"intermediate_size": 192}, {"biases": True}),
}


def tokens_of(config: dict[str, Any], n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, config["vocab_size"], n)]


def make_model(name: str = "2_heads_on_1") -> tuple[dict[str, Any], Weights]:
    config = tiny_config(**MODELS[name][0])
    return config, random_weights(config, seed=1, **MODELS[name][1])


# ---- logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[75], [37, 1, 37]])
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_the_reference_but_for_rounding(model: str, chunks: list[int]) -> None:
    """75 rows at once are products of many rows, 37 of few."""
    config, weights = make_model(model)
    tokens = tokens_of(config, 75)
    decoder = make_decoder(config, weights)
    got = Runner(decoder, make_cache(decoder, config)).run(tokens, chunks)
    Judge(config, weights, tokens).check(got)


@pytest.mark.parametrize("layout", ["half", "w8", "w4", "f8"])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [("bfloat16", "bf16"), ("bfloat16", "fp8"), ("bfloat16", "s8"), ("float16", "f16"), ("float16", "s8")],
)
def test_every_layout_and_every_page_gives_the_logits_of_what_it_stands_for(
    layout: str, dtype: str, kv_dtype: str
) -> None:
    config, weights = make_model("biases")
    tokens = tokens_of(config, 70)
    decoder = make_decoder(config, weights, layout, dtype=dtype)
    assert decoder.dtype == dtype
    got = Runner(decoder, make_cache(decoder, config, kv_dtype)).run(tokens, [66, 3, 1])
    Judge(config, weights, tokens, layout=layout, dtype=dtype, kv_dtype=kv_dtype).check(got)


# Each family with what sets it apart: an output layer of its own, a window, biases, normed heads on a tied table.
# Gate and up of half of them are whole bricks.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 128},
    "mistral": {"sliding_window": 24},
    "qwen2": {"intermediate_size": 192},
    "qwen3": {},
}


@pytest.mark.parametrize(
    ("layout", "seen"), [("gpu_bf16", "half"), ("gpu_w8", "w8"), ("gpu_w4", "w4"), ("gpu_f8", "f8")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_of_every_family_give_the_tokens_of_the_reference(
    family: str, layout: MatrixLayout, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "load_cuda", gpu_module)
    checkpoint = SafetensorsCheckpoint(make_checkpoint(tmp_path, family, dtype="BF16", **FAMILIES[family]))
    config = checkpoint.config.to_core()
    decoder = gpu_module().CUDADecoder(config)
    for name, weight in pack_in_memory(checkpoint, layout).items():
        decoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)
    decoder.finalize(128)
    tokens = tokens_of(config, 70)
    window = FAMILIES[family].get("sliding_window", 0)
    got = Runner(decoder, make_cache(decoder, config, window=window)).run(tokens, [65, 4, 1])
    weights = {name: checkpoint.read(name) for name in weight_shapes(checkpoint.config)}
    Judge(config, weights, tokens, layout=seen).check(got)


def test_windows_let_pages_go_in_groups_of_their_own() -> None:
    config, weights = make_model("windows")
    decoder = make_decoder(config, weights)
    cache = make_cache(decoder, config, n_pages=[4, 8, 3], window=[20, 0, 7], layers=[0, 1, 2])
    tokens = tokens_of(config, 100)
    got = Runner(decoder, cache).run(tokens, [20] * 5)
    Judge(config, weights, tokens).check(got)
    cache.check_integrity()


def test_a_window_may_be_smaller_than_what_the_cache_keeps() -> None:
    config, weights = make_model("windows")
    decoder = make_decoder(config, weights)
    tokens = tokens_of(config, 60)
    got = Runner(decoder, make_cache(decoder, config)).run(tokens, [50, 10])
    Judge(config, weights, tokens).check(got)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_chunks_decodes_and_whole_prompts_go_together() -> None:
    config, weights = make_model()
    prompts = [tokens_of(config, n, seed=n) for n in (1, 33, 50, 61)]
    decoder = make_decoder(config, weights)
    runner = Runner(decoder, make_cache(decoder, config))
    walks = [runner.admit(prompt) for prompt in prompts]
    runner.step([(walks[1], 30), (walks[2], 17)])
    runner.step([(walks[3], 40), (walks[1], 1), (walks[2], 1)])
    runner.step([(walks[2], 32), (walks[0], 1), (walks[1], 2), (walks[3], 21)])
    for walk, prompt in zip(walks, prompts, strict=True):
        Judge(config, weights, prompt).check(walk.all_logits())


@pytest.mark.parametrize("layout", ["half", "w8", "w4"])
def test_a_deterministic_decoder_gives_a_sequence_the_same_bits_alone_and_in_any_batch(layout: str) -> None:
    config, weights = make_model("biases")
    prompts = [tokens_of(config, n, seed=n) for n in (2, 40, 33, 50)]
    parts = [[1, 1], [40], [30, 3], [49, 1]]
    decoder = make_decoder(config, weights, layout, deterministic=True)
    alone = [Runner(decoder, make_cache(decoder, config)).run(p, cut) for p, cut in zip(prompts, parts, strict=True)]
    runner = Runner(decoder, make_cache(decoder, config))
    walks = [runner.admit(prompt) for prompt in prompts]
    runner.step([(walks[0], 1), (walks[2], 30), (walks[3], 49)])
    runner.step([(walks[3], 1), (walks[1], 40), (walks[0], 1), (walks[2], 3)])
    for walk, want in zip(walks, alone, strict=True):
        assert np.array_equal(walk.all_logits(), want)


def test_a_deterministic_decoder_gives_those_that_share_a_prefix_the_same_bits_alone_and_together() -> None:
    config, weights = make_model()
    shared = tokens_of(config, 64)  # enough to be read once for all of them
    prompts = [shared + tokens_of(config, 12, seed=n) for n in (1, 2, 3)]
    decoder = make_decoder(config, weights, deterministic=True)
    alone = [Runner(decoder, make_cache(decoder, config)).run(prompt, [64, 11, 1]) for prompt in prompts]
    runner = Runner(decoder, make_cache(decoder, config))
    runner.run(shared)
    walks = [runner.admit(prompt) for prompt in prompts]
    assert [walk.n_cached for walk in walks] == [64] * 3
    runner.step([(walk, 11) for walk in walks])
    runner.step([(walk, 1) for walk in walks])
    for walk, want in zip(walks, alone, strict=True):
        assert np.array_equal(walk.all_logits(), want[64:])


def test_steps_give_logits_of_the_tokens_that_are_wanted_alone() -> None:
    config, weights = make_model()
    tokens = tokens_of(config, 24)
    decoder = make_decoder(config, weights)
    cache = make_cache(decoder, config)
    judge = Judge(config, weights, tokens)
    ids = np.array([cache.admit(i32(tokens))[0] for _ in range(3)], np.int64)
    counts = i32([24, 24, 24])
    for want in ([NO_TOKEN] * 3, [NO_TOKEN, LAST_TOKEN, ALL_TOKENS], [LAST_TOKEN, NO_TOKEN, NO_TOKEN]):
        assert cache.reserve(ids, counts)
        n_rows = decoder.step(cache, i32(tokens * 3), ids, counts, np.array(want, np.uint8))
        logits, row = decoder.logits(), 0
        assert len(logits) == len(decoder.hidden()) == n_rows
        for n in (len(tokens) if w == ALL_TOKENS else w for w in want):
            if n:
                judge.check(logits[row : row + n], begin=len(tokens) - n)
            row += n
        assert row == n_rows


def test_hidden_times_the_output_layer_gives_the_logits() -> None:
    config, weights = make_model("own_lm_head")
    decoder = make_decoder(config, weights)
    runner = Runner(decoder, make_cache(decoder, config))
    got = runner.run(tokens_of(config, 9))
    hidden = decoder.hidden()
    assert hidden.shape == (9, config["hidden_size"])
    want = hidden.astype(np.float64) @ as_seen(weights, "half", "bfloat16")["lm_head"].T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# ---- shared pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", ["bf16", "s8"])
def test_forks_read_shared_pages_and_write_their_own(kv_dtype: str) -> None:
    """72 tokens are four full pages, shared by all and read once for them, and one that is copied when it is written
    to."""
    config, weights = make_model("qk_norm")
    decoder = make_decoder(config, weights)
    runner = Runner(decoder, make_cache(decoder, config, kv_dtype))
    prompt = tokens_of(config, 72)
    first = runner.admit(prompt)
    runner.step([(first, 72)])
    walks = [first]
    for _ in range(3):
        walks.append(tiny_decoder.Walk(list(prompt), runner.cache.fork(first.seq_id), 72, n_done=72))
    for i, walk in enumerate(walks):
        walk.tokens = prompt + tokens_of(config, 5, seed=10 + i)
        walk.logits.clear()
    for n in (1, 3, 1):
        runner.step([(walk, n) for walk in walks])
    assert runner.cache.stats()["n_copies"] == 3
    for walk in walks:
        Judge(config, weights, walk.tokens, kv_dtype=kv_dtype).check(walk.all_logits(), begin=72)
    runner.cache.check_integrity()


def test_a_prefix_that_is_found_again_gives_the_logits_of_its_own_pages() -> None:
    config, weights = make_model()
    decoder = make_decoder(config, weights)
    runner = Runner(decoder, make_cache(decoder, config))
    tokens = tokens_of(config, 80)
    runner.run(tokens[:70])
    walks = [runner.admit(tokens), runner.admit(tokens)]
    assert [walk.n_cached for walk in walks] == [64, 64]
    runner.step([(walk, 16) for walk in walks])
    for walk in walks:
        Judge(config, weights, tokens).check(walk.all_logits(), begin=64)


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8", "s8"])
def test_pages_that_gave_way_come_back_from_the_second_tier(kv_dtype: str) -> None:
    config, weights = make_model("windows")
    decoder = make_decoder(config, weights)
    groups: dict[str, Any] = {"n_pages": [6, 6], "window": [20, 0], "layers": [0, 1, 0], "n_tier_slots": 8}
    runner = Runner(decoder, make_cache(decoder, config, kv_dtype, **groups))
    tokens = tokens_of(config, 80)
    runner.run(tokens[:70], [32, 32, 6])
    runner.run(tokens_of(config, 90, seed=1), [32, 32, 26])
    walk = runner.admit(tokens)
    assert walk.n_cached == 64
    runner.step([(walk, 16)])
    assert runner.cache.stats()["n_loaded"] > 0
    Judge(config, weights, tokens, kv_dtype=kv_dtype).check(walk.all_logits(), begin=64)
    runner.cache.check_integrity()


# ---- sampling ----------------------------------------------------------------------------------------------------

HISTORY = {"prompt": [1, 2, 2, 9], "output": [2, 5, 5, 5, 0]}
DRAWS: dict[str, list[dict[str, Any]]] = {
    "greedy": [{}, {}, {}],
    "greedy beside a draw": [{}, {"temperature": 0.7, "seed": 3, "position": 5}, {"temperature": 1.5, "top_k": 4}],
    "cuts": [{"temperature": 1.3, "top_p": 0.8, "seed": 1}, {"temperature": 2.0, "min_p": 0.1, "seed": 2}, {}],
    "penalties": [
        {"repetition_penalty": 1.7, **HISTORY},
        {"temperature": 0.8, "presence_penalty": 2.0, "frequency_penalty": 0.5, "seed": 4, **HISTORY},
        {},
    ],
    "bias, bans and allowed": [{"bias": {3: 8.0, 11: 6.5}}, {"banned": [3, 7]}, {"allowed": [4, 9, 30, 2]}],
    "nothing is left": [{"allowed": [7], "banned": [7]}, {}, {"temperature": 1.0}],
}


def stepped(model: str = "2_heads_on_1", n: int = 12) -> tuple[Any, np.ndarray]:
    config, weights = make_model(model)
    decoder = make_decoder(config, weights)
    return decoder, Runner(decoder, make_cache(decoder, config)).run(tokens_of(config, n))


def check_same(got: Any, want: Any) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        if mine.dtype == np.float32:
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        else:
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("n_top", [0, 5])
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_of_the_cpu_on_the_same_logits(draws: list[dict[str, Any]], n_top: int) -> None:
    decoder, logits = stepped()
    rows, params = i32([3, 0, 3]), params_of(draws)
    check_same(decoder.sample(rows, params, n_top), _core.sample(logits, rows, params, n_top))


def test_masks_are_those_of_the_cpu() -> None:
    decoder, logits = stepped()
    words = np.random.default_rng(0).integers(0, 1 << 32, (2, 13), dtype=np.uint64).astype(np.uint32)
    params = params_of([{}, {"temperature": 1.0}, {}]) | {"mask_of_draw": i32([1, -1, 0]), "masks": words}
    check_same(decoder.sample(i32([0, 1, 2]), params, 3), _core.sample(logits, i32([0, 1, 2]), params, 3))


def test_log_probs_and_continuations_are_those_of_the_cpu() -> None:
    decoder, logits = stepped()
    targets = i32(range(len(logits)))
    check_same(decoder.log_probs(targets, 4), _core.log_probs(logits, targets, 4))
    rows, params = i32([2, 5]), params_of([{}, {"temperature": 1.1, "seed": 9}])
    for n, n_top in ((6, -1), (6, 2), (128, 0), (331, 331)):
        check_same(decoder.continuations(rows, params, n, n_top), _core.continuations(logits, rows, params, n, n_top))


@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_continuations_of_draws_are_those_of_the_cpu(draws: list[dict[str, Any]]) -> None:
    decoder, logits = stepped()
    rows, params = i32([3, 0, 3]), params_of(draws)
    check_same(decoder.continuations(rows, params, 40, 4), _core.continuations(logits, rows, params, 40, 4))


def test_all_tokens_may_be_asked_for_and_a_token_may_have_several_biases() -> None:
    decoder, logits = stepped()
    biases = {
        "bias_offsets": np.array([0, 3], np.int64),
        "bias_ids": i32([4, 8, 4]),
        "bias_values": np.array([30.0, 40.0, 30.0], np.float32),
    }
    params = params_of([{}]) | biases
    got = decoder.sample(i32([2]), params, 331)
    assert got[0] == [4]
    check_same(got, _core.sample(logits, i32([2]), params, 331))


def test_no_draws_give_empty_arrays() -> None:
    decoder, _ = stepped()
    assert [len(array) for array in decoder.sample(i32([]), params_of([]), 2)] == [0] * 5
    assert [len(array) for array in decoder.continuations(i32([]), params_of([]), 3, 2)] == [0] * 7


@pytest.mark.parametrize(
    ("change", "n_top", "match"),
    [
        ({"temperature": np.array([-1.0], np.float32)}, 0, "temperature must be finite and not negative"),
        ({"top_p": np.array([0.0], np.float32)}, 0, r"top_p must be in \(0, 1\]"),
        ({}, 332, r"n_top must be in \[0, 331\]"),
    ],
)
def test_parameters_out_of_range_are_refused(change: dict[str, np.ndarray], n_top: int, match: str) -> None:
    decoder, _ = stepped()
    with pytest.raises(ValueError, match=match):
        decoder.sample(i32([0]), params_of([{}]) | change, n_top)
    with pytest.raises(ValueError, match="rows must be in"):
        decoder.sample(i32([12]), params_of([{}]), 0)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"hidden_size": 60}, "hidden_size must be a multiple of 8 on a GPU, got 60"),
        ({"intermediate_size": 91}, "intermediate_size must be a multiple of 8 on a GPU, got 91"),
        ({"head_dim": 20}, "head_dim must be a multiple of 8 on a GPU, got 20"),
        ({"head_dim": 264}, "head_dim must be at most 256 on a GPU, got 264"),
        ({"n_heads": 3, "n_kv_heads": 2}, "n_heads must be a multiple of n_kv_heads"),
        ({"vocab_size": 1 << 20}, "vocab_size must be at most"),
    ],
)
def test_models_that_no_kernel_takes_are_refused(overrides: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gpu_module().CUDADecoder(tiny_config(**overrides))


def test_dtypes_and_devices_that_are_not_there_are_refused() -> None:
    for dtype in ("float32", "int8"):
        with pytest.raises(ValueError, match="dtype must be bfloat16 or float16"):
            gpu_module().CUDADecoder(tiny_config(), dtype=dtype)
    with pytest.raises(ValueError, match=r"device must be in \[0, 1\), got 1"):
        gpu_module().CUDADecoder(tiny_config(), device=1)


def test_weights_that_are_missing_unknown_or_of_a_wrong_shape_are_named() -> None:
    config, weights = make_model()
    decoder = gpu_module().CUDADecoder(config)
    set_weight(decoder, "embedding", weights["embedding"], "half")
    with pytest.raises(ValueError, match="layer_0/ln1 is missing"):
        decoder.finalize(8)
    matrix = gpu_module().pack_gpu_half(np.zeros((8, 8), np.uint16))
    with pytest.raises(ValueError, match=r"layout of x must be 'vector', 'gpu_bf16', .* got 'bf16'"):
        decoder.set_weight("x", "bf16", (8, 8), matrix)
    with pytest.raises(ValueError, match="x must be of the decoder's dtype, bfloat16, or quantised, got gpu_f16"):
        decoder.set_weight("x", "gpu_f16", (8, 8), matrix)
    with pytest.raises(ValueError, match="gpu_w8 needs scales, got none for x"):
        decoder.set_weight("x", "gpu_w8", (8, 8), matrix)
    with pytest.raises(ValueError, match="gpu_bf16 has no scales, got some for x"):
        decoder.set_weight("x", "gpu_bf16", (8, 8), matrix, np.ones(8, np.float32))
    set_weight(decoder, "layer_0/ln1", weights["final_norm"][:-1], "half")
    with pytest.raises(ValueError, match=r"layer_0/ln1 must be a vector \[64\], got vector \[63\]"):
        decoder.finalize(8)


def test_weights_and_steps_come_in_their_order() -> None:
    config, weights = make_model()
    decoder = gpu_module().CUDADecoder(config)
    with pytest.raises(ValueError, match="needs finalize first"):
        step_one(decoder, make_cache(decoder, config))
    decoder = make_decoder(config, weights)
    with pytest.raises(ValueError, match="weights cannot change after finalize"):
        set_weight(decoder, "final_norm", weights["final_norm"], "half")
    with pytest.raises(ValueError, match="needs to be called once"):
        decoder.finalize(8)


def step_one(decoder: Any, cache: Any) -> Any:
    ids = np.array([cache.admit(i32([5]))[0]], np.int64)
    assert cache.reserve(ids, i32([1]))
    return decoder.step(cache, i32([5]), ids, i32([1]), np.ones(1, np.uint8))


def test_a_cache_that_is_not_of_the_decoder_is_refused() -> None:
    config, weights = make_model()
    decoder, other = make_decoder(config, weights), make_decoder(config, weights)
    for cache in (tiny_decoder.make_cache(config), make_cache(other, config)):
        with pytest.raises(ValueError, match="the cache must have its pages on the device, of this decoder"):
            step_one(decoder, cache)
    with pytest.raises(ValueError, match="pages must be bfloat16 like the decoder's rows, fp8 or int8, got float16"):
        step_one(decoder, make_cache(decoder, config, "f16"))
    with pytest.raises(ValueError, match="pages of a device must be bfloat16, float16, fp8 or int8, got float32"):
        make_cache(decoder, config, "f32")
    assert step_one(decoder, make_cache(decoder, config)) == 1


def test_a_batch_that_does_not_fit_leaves_everything_as_it_was() -> None:
    config, weights = make_model()
    decoder = make_decoder(config, weights, max_tokens=8)
    runner = Runner(decoder, make_cache(decoder, config))
    tokens = tokens_of(config, 9)
    with pytest.raises(ValueError, match=r"\[CUDADecoder.step\] takes at most max_tokens_per_step = 8 tokens, got 9"):
        runner.run(tokens)
    Judge(config, weights, tokens).check(runner.run(tokens, [8, 1]))


# ---- what it tells -----------------------------------------------------------------------------------------------


def test_a_profile_has_the_parts_of_each_step() -> None:
    config, weights = make_model()
    decoder = make_decoder(config, weights)
    runner = Runner(decoder, make_cache(decoder, config))
    with pytest.raises(ValueError, match="needs start_profile first"):
        decoder.stop_profile()
    decoder.start_profile()
    runner.run(tokens_of(config, 9), [8, 1])
    n_tokens, n_sequences, seconds = decoder.stop_profile()
    assert n_tokens.tolist() == [8, 1]
    assert n_sequences.tolist() == [1, 1]
    parts = dict(zip(gpu_module().STEP_PARTS, seconds.T, strict=True))
    assert all((parts[name] > 0).all() for name in ("embed", "attn_qkv", "attention", "mlp_down", "lm_head"))


def test_bytes_of_weights_pages_and_scratch_are_told() -> None:
    config, weights = make_model()
    decoder = make_decoder(config, weights)
    cache = make_cache(decoder, config, n_pages=4)
    row = config["n_kv_heads"] * config["head_dim"]
    assert cache.page_bytes() == [2 * config["n_layers"] * 16 * row * 2]
    assert cache.stats()["pool_bytes"] == 4 * cache.page_bytes()[0]
    assert decoder.weight_bytes >= sum(2 * w.size for w in weights.values() if w.ndim == 2)
    assert decoder.workspace_bytes > 0
    assert decoder.gemm == "ours"
