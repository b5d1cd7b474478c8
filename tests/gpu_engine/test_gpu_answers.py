"""LLM(device="cuda"), whole on the host machine: what it answers is what the reference says of its tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_judge import AnswerJudge, log_softmax, open_gpu
from models_factory import make_checkpoint
from tiny_gpu_decoder import late_streams

from llm_decoder import LLM, SamplingParams, SearchParams
from llm_decoder.cuda_backend import CudaBackend
from llm_decoder.speculation import StepCost

# Each family with what sets it apart.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    "qwen3": {},
}
GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = replace(GREEDY, temperature=0.9, top_p=0.95, seed=7)
STEP = {"max_tokens_per_step": 40, "page_size": 16}  # so that prompts come in chunks, beside sequences that decode


def prompt_of(n: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(6, 331, n)]


PROMPTS = [prompt_of(n, seed=n) for n in (1, 33, 70, 18)]
REPEATING = prompt_of(9) * 5
SAYS_ONE_TOKEN = [5, 6, 7, 8] * 4  # so answers the checkpoint of seed 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_the_reference_prompts_in_chunks_beside_decodes(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, family, seed=1, dtype="BF16", **FAMILIES[family])
    judge = AnswerJudge(folder)
    with open_gpu(folder, **STEP) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        stats = llm.stats()
        judge.check_logits(PROMPTS[2], llm.logits(PROMPTS[2]))
    n_clear = 0
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        judge.check_scores(prompt, output.outputs[0])
        n_clear += judge.check_greedy(prompt, output.outputs[0])
    assert n_clear > 10
    assert stats["n_steps"] < stats["n_generated_tokens"]
    assert stats["pages"]["n_held"] == 0


@pytest.mark.parametrize(
    ("stored", "options", "seen_as"),
    [
        ("BF16", {"kv_cache_dtype": "fp8"}, ("half", "bfloat16", "fp8")),
        ("F16", {}, ("half", "float16", "f16")),
        ("F16", {"dtype": "bfloat16", "kv_cache_dtype": "int8"}, ("half", "bfloat16", "s8")),
        ("BF16", {"quantization": "int8"}, ("w8", "bfloat16", "bf16")),
        ("F16", {"quantization": "int8", "kv_cache_dtype": "int8"}, ("w8", "float16", "s8")),
        ("BF16", {"quantization": "int4", "kv_cache_dtype": "fp8"}, ("w4", "bfloat16", "fp8")),
    ],
)
def test_every_precision_answers_as_what_it_stands_for(
    stored: str, options: dict[str, str], seen_as: tuple[str, str, str], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, "llama", seed=2, dtype=stored)
    judge = AnswerJudge(folder, *seen_as)
    with open_gpu(folder, **options) as llm:
        for prompt, output in zip(PROMPTS[:3], llm.generate(PROMPTS[:3], GREEDY), strict=True):
            judge.check_scores(prompt, output.outputs[0])
            judge.check_greedy(prompt, output.outputs[0])
        judge.check_logits(PROMPTS[2], llm.logits(PROMPTS[2]))
        backend = llm.stats()["backend"]
    assert backend["layout"] == {"half": {"bfloat16": "gpu_bf16", "float16": "gpu_f16"}[seen_as[1]]}.get(
        seen_as[0], f"gpu_{seen_as[0]}"
    )
    assert backend["dtype"] == seen_as[1]
    assert backend["kv_cache_dtype"] == {"bf16": "bfloat16", "f16": "float16", "s8": "int8", "fp8": "fp8"}[seen_as[2]]


def test_the_gpu_and_the_cpu_give_the_same_answers_where_they_are_clear(folder: Path) -> None:
    with LLM(folder, device="cpu", dtype="float32") as llm:
        of_cpu = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]
    judge = AnswerJudge(folder)
    with open_gpu(folder) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
    for prompt, output, tokens in zip(PROMPTS, outputs, of_cpu, strict=True):
        answer = output.outputs[0]
        if judge.check_greedy(prompt, answer) == len(tokens):
            assert answer.token_ids == tokens


def test_a_stream_gives_the_tokens_of_generate(folder: Path) -> None:
    with open_gpu(folder, deterministic=True) as llm:
        events = list(llm.stream(PROMPTS[1], GREEDY))
        (output,) = llm.generate([PROMPTS[1]], GREEDY)
    assert [token for event in events for token in event.token_ids] == output.outputs[0].token_ids
    assert "".join(event.text for event in events) == output.outputs[0].text


def test_logits_scores_and_vectors_are_those_of_the_reference(folder: Path) -> None:
    judge, tokens = AnswerJudge(folder), prompt_of(90)
    with open_gpu(folder, **STEP) as llm:
        logits, scores, vector = llm.logits(tokens), llm.score(tokens), llm.embed([tokens])
    with LLM(folder, device="cpu", dtype="float32") as llm:
        vector_of_cpu = llm.embed([tokens])
    judge.check_logits(tokens, logits)
    want = judge.of(tokens)
    np.testing.assert_allclose(
        scores, log_softmax(want.want)[np.arange(len(tokens) - 1), tokens[1:]], rtol=0, atol=2.0 * want.most
    )
    assert vector.shape == vector_of_cpu.shape
    assert np.linalg.norm(vector - vector_of_cpu) < 0.02 * np.linalg.norm(vector_of_cpu)


# ---- searches ----------------------------------------------------------------------------------------------------


def test_beams_are_scored_as_the_reference_scores_them_and_none_that_is_better_is_missed(folder: Path) -> None:
    params = SearchParams(width=4, n=4, max_tokens=8, ignore_eos=True, logprobs=0)
    judge, prompt = AnswerJudge(folder), PROMPTS[2]
    with LLM(folder, device="cpu", dtype="float32") as llm:
        best_of_cpu = llm.search([prompt], params)[0].outputs[0]
    with open_gpu(folder, page_size=16) as llm:
        (output,) = llm.search([prompt], params)
        pages = llm.stats()["pages"]
    assert pages["n_copies"] > 0, "beams share pages until they write to them"
    assert pages["n_held"] == 0
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 4
    bound = 2.0 * max(judge.of([*prompt, *answer.token_ids]).most for answer in output.outputs)
    for answer in output.outputs:
        judge.check_scores(prompt, answer)
    best = output.outputs[0]
    assert best.beam_score is not None
    assert best_of_cpu.beam_score is not None
    assert abs(best.beam_score - best_of_cpu.beam_score) <= bound


def test_the_answers_of_one_prompt_share_its_pages_and_follow_its_logits(folder: Path) -> None:
    judge, prompt = AnswerJudge(folder), PROMPTS[2]
    with open_gpu(folder, page_size=16) as llm:
        (output,) = llm.generate([prompt], replace(SAMPLED, n=3))
        (again,) = llm.generate([prompt], replace(SAMPLED, n=3))
        stats = llm.stats()
    assert stats["n_computed_tokens"] < 2 * len(prompt), "the prompt is computed once for all, and found again"
    assert again.metrics.n_cached_tokens == 64
    for answer in output.outputs:
        judge.check_scores(prompt, answer)
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3


# ---- the same bits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Any]:
    """Answers of each prompt by itself, without speculation."""
    with open_gpu(folder, deterministic=True, speculation="none", page_size=16) as llm:
        answers = [llm.generate([prompt], SAMPLED)[0].outputs for prompt in [*PROMPTS, REPEATING]]
        assert llm.stats()["backend"]["n_graph_steps"] > 0
    return answers


def contents(outputs: list[Any]) -> list[Any]:
    return [output.outputs for output in outputs]


def test_deterministic_answers_in_a_batch_and_in_chunks_are_those_alone(folder: Path, alone: list[Any]) -> None:
    with open_gpu(folder, deterministic=True, speculation="none", **STEP) as llm:
        assert contents(llm.generate([*PROMPTS, REPEATING], SAMPLED)) == alone


def test_answers_are_the_same_where_the_device_does_everything_as_late_as_it_may(
    folder: Path, alone: list[Any]
) -> None:
    with late_streams(), open_gpu(folder, deterministic=True, speculation="none", **STEP) as llm:
        assert contents(llm.generate([*PROMPTS, REPEATING], SAMPLED)) == alone
        assert llm.stats()["backend"]["n_graph_steps"] > 0


def test_one_step_ahead_and_by_graph_answers_are_those_of_neither(
    folder: Path, alone: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaBackend, "runs_ahead", False)
    monkeypatch.setenv("LLM_DECODER_CUDA_GRAPHS", "0")
    with open_gpu(folder, deterministic=True, speculation="none", page_size=16) as llm:
        assert contents(llm.generate([*PROMPTS, REPEATING], SAMPLED)) == alone
        backend = llm.stats()["backend"]
    assert (backend["graphs"], backend["n_graph_steps"]) == ([], 0)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_deterministic_logits_do_not_depend_on_how_a_prompt_is_cut(family: str, tmp_path: Path) -> None:
    """Of more keys than a block reads, and in a window."""
    folder = make_checkpoint(tmp_path, family, dtype="BF16", num_hidden_layers=1, **FAMILIES[family])
    tokens = prompt_of(290)
    found = []
    for chunk in (290, 64, 7):
        with open_gpu(folder, deterministic=True, page_size=16, max_tokens_per_step=chunk) as llm:
            found.append(llm.logits(tokens))
    for other in found[1:]:
        assert np.array_equal(found[0], other)


def test_deterministic_answers_with_tokens_guessed_ahead_are_those_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCost, "FIRST_ROWS", 64.0)  # rows that cost next to nothing, so that much is drafted
    monkeypatch.setattr(StepCost, "LIMITS", (64.0, 64.0))
    folder = make_checkpoint(tmp_path, "llama", seed=0, dtype="BF16")
    prompts = [SAYS_ONE_TOKEN, REPEATING, PROMPTS[3]]
    one_of_two = replace(SAMPLED, max_tokens=16, logit_bias={40: 50.0, 41: 50.0})
    params = [GREEDY, SAMPLED, one_of_two]
    with open_gpu(folder, deterministic=True, page_size=16) as llm:
        guessed = contents(llm.generate(prompts, params))
        stats = llm.stats()
    assert stats["n_drafted_tokens"] > stats["n_accepted_tokens"] > 0
    with open_gpu(folder, deterministic=True, page_size=16, speculation="none") as llm:
        assert contents(llm.generate(prompts, params)) == guessed


def test_deterministic_answers_under_preemption_are_those_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen2", seed=3, dtype="BF16", num_hidden_layers=1)
    prompts, params = [prompt_of(n, seed=n) for n in (17, 18)], replace(SAMPLED, max_tokens=34)
    options = {"deterministic": True, "speculation": "none", "page_size": 16}
    with open_gpu(folder, **options) as llm:
        alone = [llm.generate([prompt], params)[0].outputs for prompt in prompts]
        page_bytes = llm.stats()["backend"]["kv_cache_bytes"] // llm.stats()["pages"]["n_pages"]
    with open_gpu(folder, **options, kv_cache_bytes=6 * page_bytes) as llm:
        assert contents(llm.generate(prompts, params)) == alone
        stats = llm.stats()
    assert stats["n_preemptions"] > 0
    assert stats["pages"]["n_held"] == 0


# ---- chats -------------------------------------------------------------------------------------------------------


def test_the_embedded_model_chats_on_a_gpu() -> None:
    messages = [{"role": "user", "content": "Tell me a story about a dog."}]
    params = SamplingParams(max_tokens=4, temperature=0.0)
    with open_gpu(None, deterministic=True) as llm:  # type: ignore[arg-type]
        told = llm.chat(messages, params).outputs[0]
    with LLM(device="cpu", dtype="float32") as llm:
        assert told.token_ids == llm.chat(messages, params).outputs[0].token_ids
    assert told.message is not None
    assert told.message.content == told.text
