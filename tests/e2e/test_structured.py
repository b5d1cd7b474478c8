"""Real models, embedded and random, answer in the form that is asked for, together with others that do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, SamplingParams

PET = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 20},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "friends"],
    "additionalProperties": False,
}
GRAMMAR = r"""
root  ::= "(" pair ("," pair)* ")"
pair  ::= name "=" [0-9]{1,3}
name  ::= "cat" | "dog" | "bird"
"""
N_SEEDS = 12


@pytest.fixture(scope="module", params=["embedded", "llama", "qwen3"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path | None = None
    if request.param != "embedded":
        folder = tmp_path_factory.mktemp(request.param)
        make_checkpoint(folder, request.param)
    with LLM(folder) as llm:
        yield llm


def texts_of(llm: LLM, form: dict[str, Any], **params: Any) -> list[str]:
    """The answers of many seeds, computed together with prompts that ask for no form."""
    asked = [SamplingParams(structured_outputs=form, seed=seed, max_tokens=150, **params) for seed in range(N_SEEDS)]
    plain = [SamplingParams(seed=seed, max_tokens=20) for seed in range(3)]
    outputs = llm.generate(["Once there was a pet."] * (N_SEEDS + 3), [*asked, *plain])
    whole = [output.outputs[0].text for output in outputs[:N_SEEDS] if output.outputs[0].finish_reason == "stop"]
    alone = llm.generate("Once there was a pet.", plain[1])[0].outputs[0]
    assert outputs[N_SEEDS + 1].outputs[0].token_ids == alone.token_ids
    return whole


def test_answers_are_json_of_the_schema(llm: LLM) -> None:
    texts = texts_of(llm, {"json": PET})
    assert texts
    for text in texts:
        jsonschema.validate(json.loads(text), PET)


def test_answers_match_the_expression(llm: LLM) -> None:
    texts = texts_of(llm, {"regex": r"[A-Z][a-z]{2,9}( [a-z]{1,9}){0,4}[.!]"}, temperature=1.5)
    assert texts
    for text in texts:
        assert re.fullmatch(r"[A-Z][a-z]{2,9}( [a-z]{1,9}){0,4}[.!]", text)


def test_answers_follow_the_grammar(llm: LLM) -> None:
    for text in texts_of(llm, {"grammar": GRAMMAR}):
        assert re.fullmatch(r"\((cat|dog|bird)=\d{1,3}(,(cat|dog|bird)=\d{1,3})*\)", text)


def test_a_chat_answers_with_one_of_the_choices(llm: LLM) -> None:
    if llm.tokenizer.chat_template is None:
        pytest.skip("the model has no chat template")
    messages = [{"role": "user", "content": "Is a cat a bird?"}]
    for seed in range(5):
        form = {"choice": ["yes", "no", "I do not know"]}
        output = llm.chat(messages, SamplingParams(max_tokens=20, seed=seed, structured_outputs=form))
        assert output.outputs[0].text in form["choice"]
        assert output.outputs[0].finish_reason == "stop"


def test_a_stream_in_a_form_is_the_answer_in_that_form(llm: LLM) -> None:
    params = SamplingParams(max_tokens=150, seed=3, structured_outputs={"json": PET})
    (output,) = llm.generate("A pet:", params)
    events = list(llm.stream("A pet:", params))
    assert "".join(event.text for event in events) == output.outputs[0].text
    assert [token for event in events for token in event.token_ids] == output.outputs[0].token_ids
