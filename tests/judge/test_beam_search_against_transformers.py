"""Beam search against `transformers.generate`: random small checkpoints in float32, ends likely enough to come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import make_tokenizer

from llm_decoder import LLM, SearchParams

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

VOCABULARY = 389
ENDS = [1, 7]
PROMPTS = [[5, 9, 200, 17], [3] * 12, list(range(40, 110))]


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(request.param)
    config = transformers.LlamaConfig(
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=ENDS,
        pad_token_id=0,
        initializer_range=0.25,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[ENDS] *= 1.5  # so that beams finish
    folder = Path(tmp_path_factory.mktemp("beams"))
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    make_tokenizer(folder)
    with LLM(folder, dtype="float32", threads=1) as llm:
        yield llm, model


def theirs(model: Any, ids: list[int], width: int, max_tokens: int, **options: Any) -> tuple[list[list[int]], Any]:
    import torch

    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]),
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_tokens,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    answers: list[list[int]] = []
    for row in out.sequences[:, len(ids) :].tolist():
        ends = [i for i, token in enumerate(row) if token in ENDS]
        answers.append(row[: ends[0] + 1] if ends and options.get("eos_token_id", ENDS) else row)
    return answers, out.sequences_scores.numpy()


def check(pair: Any, width: int, max_tokens: int, ours: dict[str, Any], options: dict[str, Any]) -> None:
    llm, model = pair
    params = SearchParams(width=width, n=width, max_tokens=max_tokens, **ours)
    for ids, output in zip(PROMPTS, llm.search(PROMPTS, params), strict=True):
        expected, scores = theirs(model, ids, width, max_tokens, **options)
        assert [answer.token_ids for answer in output.outputs] == expected
        np.testing.assert_allclose([answer.beam_score for answer in output.outputs], scores, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("width", [2, 4, 16])
def test_answers_and_scores(pair: Any, width: int, length_penalty: float, early_stopping: Any) -> None:
    rules = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    check(pair, width, 24, rules, rules)


@pytest.mark.parametrize("width", [3, 8])
@pytest.mark.parametrize(
    ("ours", "options"),
    [
        ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
        ({"min_tokens": 8}, {"min_new_tokens": 8}),
        ({"ignore_eos": True}, {"eos_token_id": None}),
        ({"bad_token_ids": [11, 12, 13]}, {"bad_words_ids": [[11], [12], [13]]}),
    ],
    ids=["repetition penalty", "min tokens", "no end", "bans"],
)
def test_what_changes_the_scores(pair: Any, width: int, ours: dict[str, Any], options: dict[str, Any]) -> None:
    check(pair, width, 20, ours, options)


def test_beams_do_finish(pair: Any) -> None:
    llm, _ = pair
    outputs = llm.search(PROMPTS, SearchParams(width=8, n=8, max_tokens=24))
    reasons = {answer.finish_reason for output in outputs for answer in output.outputs}
    assert reasons == {"stop", "length"} or reasons == {"stop"}
