"""Every family against stored logits and greedy tokens of HF transformers (tools/make_goldens.py), without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, SamplingParams
from llm_decoder.convert import convert

GOLDENS = sorted((Path(__file__).parent.parent / "goldens").glob("*.npz"))
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order
CHUNK = 16  # tokens a step: the longer prompts take several


@dataclass(frozen=True)
class Golden:
    folder: Path
    prompt: list[int]
    logits: np.ndarray  # float32 [n_tokens, vocab_size]
    tokens: list[int]


@pytest.fixture(params=GOLDENS, ids=[path.stem for path in GOLDENS])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    with np.load(request.param) as stored:
        config: dict[str, Any] = json.loads(str(stored["config"]))
        family, dtype, seed = str(stored["family"]), str(stored["dtype"]), int(stored["seed"])
        prompt, logits, tokens = stored["prompt"].tolist(), stored["logits"], stored["tokens"].tolist()
    changes = {name: value for name, value in config.items() if name not in ("model_type", "torch_dtype")}
    folder = make_checkpoint(tmp_path / "model", family, seed=seed, dtype=dtype, **changes)
    return Golden(folder, prompt, logits, tokens)


def greedy(llm: LLM, golden: Golden) -> list[int]:
    params = SamplingParams(max_tokens=len(golden.tokens), temperature=0.0, ignore_eos=True)
    return list(llm.generate([golden.prompt], params)[0].outputs[0].token_ids)


def test_there_is_a_golden_of_every_family() -> None:
    names = " ".join(path.stem for path in GOLDENS)
    assert all(family in names for family in ("llama", "mistral", "qwen2", "qwen3"))


def test_float32_gives_the_logits_and_the_greedy_tokens_of_the_golden(golden: Golden) -> None:
    with LLM(golden.folder, dtype="float32", max_tokens_per_step=CHUNK) as llm:
        logits = llm.logits(golden.prompt)
        assert logits.shape == golden.logits.shape
        assert np.abs(logits - golden.logits).max() <= TOLERANCE * np.abs(golden.logits).max()
        assert greedy(llm, golden) == golden.tokens


def test_a_converted_model_gives_the_same_tokens_in_both_precisions(golden: Golden, tmp_path: Path) -> None:
    weights = convert(golden.folder, tmp_path / "weights")
    with LLM(weights, dtype="float32") as llm:
        assert greedy(llm, golden) == golden.tokens
    with LLM(golden.folder) as from_checkpoint, LLM(weights) as from_weights:
        assert greedy(from_weights, golden) == greedy(from_checkpoint, golden)
        np.testing.assert_array_equal(from_weights.logits(golden.prompt), from_checkpoint.logits(golden.prompt))


def test_int8_stays_close_to_the_golden(golden: Golden) -> None:
    """Random wide weights are the hardest case for int8; a wrong layout or scale gives a correlation near zero."""
    with LLM(golden.folder) as llm:
        correlation = np.corrcoef(llm.logits(golden.prompt).ravel(), golden.logits.ravel())[0, 1]
    assert correlation > 0.95
