"""A model whose layers see differently far: pages left of a window are let go, and nobody's tokens change by it."""

from __future__ import annotations

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, SamplingParams
from llm_decoder.fit import kv_bytes_per_token
from llm_decoder.loading import open_checkpoint

WINDOW = 32
GREEDY = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
PROMPTS = [[2 + (7 * i + n) % 300 for i in range(n)] for n in (120, 31, 75, 200, 8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    types = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return make_checkpoint(
        tmp_path_factory.mktemp("model") / "mixed",
        "qwen3",
        num_hidden_layers=4,
        layer_types=types,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=0,
    )


def tokens(outputs) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_a_small_pool_gives_the_tokens_of_a_large_one(model):
    with LLM(model) as llm:
        alone = [tokens(llm.generate([prompt], GREEDY))[0] for prompt in PROMPTS]
        whole_bytes = llm.stats()["backend"]["kv_cache_bytes"]
        assert tokens(llm.generate(PROMPTS, GREEDY)) == alone
    # Room for two or three contexts of 512 tokens, where the large pool has 64.
    with LLM(model, kv_cache_bytes=whole_bytes // 64, max_tokens_per_step=24, page_size=32) as llm:
        assert tokens(llm.generate(PROMPTS * 2, GREEDY)) == alone * 2
        assert llm.stats()["pages"]["n_evictions"] > 0
        assert llm.stats()["pages"]["n_held"] == 0


def test_a_second_turn_finds_the_first_and_goes_on_from_it(model):
    prompt = PROMPTS[3]
    with LLM(model) as llm:
        (first,) = llm.generate([prompt], GREEDY)
        longer = prompt + first.outputs[0].token_ids + [9, 8, 7]
        (warm,) = llm.generate([longer], GREEDY)
        assert warm.metrics.n_cached_tokens >= 224
    with LLM(model) as cold:
        assert tokens(cold.generate([longer], GREEDY)) == tokens([warm])


def test_windows_let_a_pool_hold_a_longer_context(model):
    every_layer = 512 * kv_bytes_per_token(open_checkpoint(model).config, "int8")
    ids = [2 + i % 300 for i in range(500)]
    # A full context in one layer, and the window and a step in the other three: 16 + 3 * 3 pages of a layer, not 64.
    with LLM(model, kv_cache_bytes=every_layer // 2, max_tokens_per_step=32, page_size=32) as llm:
        assert llm.max_model_len == 512
        small = llm.logits(ids)
    with LLM(model, page_size=32) as llm:
        np.testing.assert_array_equal(small, llm.logits(ids))
