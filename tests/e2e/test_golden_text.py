"""The embedded model in float32 tells, word for word, what HF transformers tells (tools/make_golden_text.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_decoder import LLM, SamplingParams

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "storyteller.json").read_text())


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32") as loaded:
        yield loaded


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden["prompt"])
def test_greedy_text_is_that_of_transformers(llm: LLM, golden: dict) -> None:
    params = SamplingParams(max_tokens=len(golden["token_ids"]), temperature=0.0)
    (output,) = llm.generate(golden["prompt"], params)
    assert output.prompt_token_ids == golden["prompt_token_ids"]
    assert output.outputs[0].token_ids == golden["token_ids"]
    assert output.outputs[0].text == golden["text"]
