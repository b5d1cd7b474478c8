"""What fewer bits cost in quality: perplexity of the embedded model on stories that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_decoder import LLM

STORIES = (Path(__file__).parent / "held_out_stories.txt").read_text().strip().split("\n\n")
MAX_LOSS_BFLOAT16 = 1.005
MAX_LOSS_INT8_WEIGHTS = 1.01
MAX_LOSS_INT8_WEIGHTS_AND_KV = 1.015
MAX_LOSS_INT4_WEIGHTS_AND_KV = 1.06


def perplexity(**options: object) -> float:
    """exp of the mean negative log probability of every token after the first of each story."""
    with LLM(**options) as llm:  # type: ignore[arg-type]
        log_probs = np.concatenate([llm.score(story) for story in STORIES])
    return float(np.exp(-log_probs.mean(dtype=np.float64)))


@pytest.fixture(scope="module")
def reference() -> float:
    return perplexity(dtype="float32")


def test_the_embedded_model_predicts_simple_stories(reference: float) -> None:
    assert 1 < reference < 60


def test_bfloat16_weights_and_kv_cost_at_most_half_a_percent(reference: float) -> None:
    assert perplexity(dtype="bfloat16") <= reference * MAX_LOSS_BFLOAT16


def test_int8_weights_cost_at_most_one_percent(reference: float) -> None:
    assert perplexity(quantization="int8", kv_cache_dtype="float32") <= reference * MAX_LOSS_INT8_WEIGHTS


def test_int8_weights_and_kv_cost_at_most_one_and_a_half_percent(reference: float) -> None:
    assert perplexity(quantization="int8", kv_cache_dtype="int8") <= reference * MAX_LOSS_INT8_WEIGHTS_AND_KV


def test_int4_weights_and_int8_kv_cost_at_most_six_percent(reference: float) -> None:
    assert perplexity(quantization="int4", kv_cache_dtype="int8") <= reference * MAX_LOSS_INT4_WEIGHTS_AND_KV
