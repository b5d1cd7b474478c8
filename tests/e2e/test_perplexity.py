"""What fewer bits cost in quality: perplexity of the embedded model on stories that it has never seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_decoder import Runner
from tiny_gpu_decoder import gpu_module, make_cache

from llm_decoder import LLM, backends
from llm_decoder.loading import find_model, open_checkpoint
from llm_decoder.quantize import pack_in_memory

STORIES = (Path(__file__).parent / "held_out_stories.txt").read_text().strip().split("\n\n")
MAX_LOSS_BFLOAT16 = 1.005
MAX_LOSS_INT8_WEIGHTS = 1.01
MAX_LOSS_INT8_WEIGHTS_AND_KV = 1.015
MAX_LOSS_INT4_WEIGHTS_AND_KV = 1.06
MAX_KL_FP8_WEIGHTS = 0.015  # nats a token


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


def test_fp8_weights_on_a_gpu_predict_what_floats_do_but_for_a_hundredth_of_a_nat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "load_cuda", gpu_module)
    with LLM(dtype="float32") as llm:
        tokens = llm.tokenizer.encode(STORIES[0])[:40]
        want = log_probs(llm.logits(tokens))
    checkpoint = open_checkpoint(find_model(None), None)
    config = checkpoint.config.to_core()
    decoder = gpu_module().CUDADecoder(config)
    for name, weight in pack_in_memory(checkpoint, "gpu_f8").items():
        decoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)
    decoder.finalize(len(tokens))
    got = log_probs(Runner(decoder, make_cache(decoder, config)).run(tokens, [len(tokens)]))
    assert (np.exp(want) * (want - got)).sum(axis=1).mean() <= MAX_KL_FP8_WEIGHTS


def log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
