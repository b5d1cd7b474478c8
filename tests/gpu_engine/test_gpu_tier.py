"""Pages of a GPU that give way to others go to host memory and come back, whatever happens around them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_judge import open_gpu
from fakes import Desk
from models_factory import make_checkpoint
from tiny_gpu_decoder import gpu_module

from llm_decoder import SamplingParams
from llm_decoder.backends import Backend, BackendOptions, create_backend
from llm_decoder.kv_tier import KvTier
from llm_decoder.loading import LoadedModel, load_model

PAGE = 16


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(folder, options=BackendOptions(device="cuda", kv_cache_bytes=1 << 20))


@pytest.fixture(scope="module")
def page_bytes(model: LoadedModel) -> int:
    return int(make_backend(model, 1 << 20, 0).cache.page_bytes()[0])


def make_backend(model: LoadedModel, pool_bytes: int, tier_bytes: int, **options: Any) -> Backend:
    sizes = {"page_size": PAGE, "max_tokens_per_step": 40, "max_model_len": 6 * PAGE}
    made = BackendOptions(
        device="cuda",
        deterministic=True,
        kv_cache_bytes=pool_bytes,
        kv_tier_bytes=tier_bytes,
        **{**sizes, **options},
    )
    return create_backend(model, made)


def ids(n: int, seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(6, 250, n)]


STEMS = [ids(2 * PAGE, 100), [], ids(PAGE, 101)]


def request(i: int) -> dict[str, Any]:
    """Prompts that share stems; every third has two answers, on forked pages."""
    prompt = STEMS[i % 3] + ids(3 + i % 7, i)
    params = {"max_tokens": 12 + 8 * (i % 3), "temperature": 0.8 * (i % 2), "ignore_eos": True, "logprobs": 0}
    return {"prompt": prompt, "n": 1 + (i % 3 == 2), "seed": i, **params}


def answers(output: Any) -> list[Any]:
    return [(completion.token_ids, completion.cumulative_logprob) for completion in output.outputs]


@pytest.fixture
def _late_streams() -> Iterator[None]:
    """What is queued happens when somebody waits for it."""
    gpu_module().set_late_streams(True)
    yield
    gpu_module().set_late_streams(False)


@pytest.mark.usefixtures("_late_streams")
def test_answers_are_those_of_a_roomy_pool_bit_for_bit_while_others_come_and_go(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_requests = 8
    roomy = Desk(make_backend(model, 1 << 20, 0, kv_cache_dtype="int8"))
    wanted = [roomy.add(**request(i)) for i in range(n_requests)]
    roomy.run()

    # Now loaded, now computed again.
    turns = itertools.cycle([True, True, False])
    monkeypatch.setattr(KvTier, "is_worth_loading", property(lambda tier: next(turns)))
    each = roomy.backend.cache.page_bytes()[0]
    desk = Desk(make_backend(model, 6 * each, 5 * each, kv_cache_dtype="int8"), max_num_seqs=5)
    rng = random.Random(0)
    got, leaving, to_come = [], [], list(range(n_requests))
    while to_come or desk.core.requests:
        if to_come and rng.random() < 0.5:
            got.append(desk.add(**request(to_come.pop(0))))
            if rng.random() < 0.3:
                leaving.append(desk.add(ids(20, rng.randrange(1000)), max_tokens=30, n=2, ignore_eos=True))
        if leaving and rng.random() < 0.1:
            desk.core.cancel(leaving.pop())
        desk.core.step()
        desk.backend.cache.check_integrity()
    for have, want in zip(got, wanted, strict=True):
        assert answers(desk.last(have)) == answers(roomy.last(want))
    desk.assert_nothing_is_held()
    stats = desk.core.stats()
    assert stats["n_preemptions"] >= stats["n_swapped"] + stats["n_recomputed"]
    assert min(stats["n_swapped"], stats["n_recomputed"]) > 0
    assert min(stats["pages"][name] for name in ("n_stored", "n_loaded", "n_copies", "n_tier_used")) > 0


def test_a_prompt_that_others_pushed_out_comes_back(model: LoadedModel, page_bytes: int) -> None:
    desk = Desk(make_backend(model, 6 * page_bytes, 6 * page_bytes))
    prompt = ids(4 * PAGE + 3, 0)
    first = desk.ask(prompt, max_tokens=3, temperature=0.0, ignore_eos=True)
    desk.ask(ids(5 * PAGE, 1), max_tokens=3, ignore_eos=True)
    again = desk.ask(prompt, max_tokens=3, temperature=0.0, ignore_eos=True)
    assert answers(again) == answers(first)
    assert again.metrics.n_cached_tokens == 4 * PAGE
    assert desk.backend.cache.stats()["n_loaded"] > 0


def test_layers_with_a_window_have_slots_of_their_own(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    checkpoint = make_checkpoint(tmp_path, "qwen2", dtype="BF16", **windows)
    model = load_model(checkpoint, options=BackendOptions(device="cuda", kv_cache_bytes=1 << 20))
    sizes = {"max_tokens_per_step": 20}
    full, windowed = make_backend(model, 1 << 20, 0, **sizes).cache.page_bytes()
    pool_bytes = 6 * full + 4 * windowed  # of one sequence
    desk = Desk(make_backend(model, pool_bytes, pool_bytes, **sizes))
    prompt = ids(4 * PAGE + 3, 0)
    first = desk.ask(prompt, max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=0)
    desk.ask(ids(5 * PAGE, 1), max_tokens=3, ignore_eos=True)
    again = desk.ask(prompt, max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=0)
    assert answers(again) == answers(first)
    assert again.metrics.n_cached_tokens > 0
    assert desk.backend.cache.stats()["n_loaded"] > 0
    assert desk.backend.cache.stats()["n_tier_slots"] == 10
    desk.assert_nothing_is_held()


def test_what_loads_have_taken_is_known(model: LoadedModel, page_bytes: int) -> None:
    desk = Desk(make_backend(model, 6 * page_bytes, 6 * page_bytes))
    for i in (0, 1, 0, 1, 0):
        desk.ask(ids(5 * PAGE, i), max_tokens=2, ignore_eos=True)
    n_bytes, seconds = desk.backend.cache.load_times()
    assert 0 < n_bytes <= desk.backend.cache.stats()["n_loaded"] * page_bytes
    assert n_bytes % page_bytes == 0
    assert seconds > 0.0


def test_the_size_of_the_tier_is_an_option(folder: Path) -> None:
    for kv_tier_bytes, n_pools in ((0, 0), (1 << 19, 0.5), (None, 2)):
        with open_gpu(folder, kv_tier_bytes=kv_tier_bytes) as llm:
            stats = llm.stats()
            each = stats["backend"]["kv_cache_bytes"] // stats["pages"]["n_pages"]
            assert stats["pages"]["n_tier_slots"] == int(n_pools * stats["pages"]["n_pages"])
            assert stats["backend"]["kv_tier_bytes"] == stats["pages"]["n_tier_slots"] * each


def test_the_engine_proves_all_tiers_while_it_runs(folder: Path, page_bytes: int) -> None:
    sizes = {"kv_cache_bytes": 6 * page_bytes, "kv_tier_bytes": 4 * page_bytes}
    with open_gpu(folder, page_size=PAGE, max_model_len=6 * PAGE, **sizes) as llm:
        prompts = [ids(4 * PAGE, i) for i in range(3)]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=2, ignore_eos=True))
        llm._engine.call(lambda backend: backend.cache.check_integrity())
        assert len(outputs) == 3
        assert llm.stats()["pages"]["n_stored"] > 0
