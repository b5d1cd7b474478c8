"""The decoder of a GPU, on the host machine, against HF transformers: checkpoints in 16 bits that transformers saved,
which it computes in float32. What ours may be off by is what rounding alone takes the reference (tiny_gpu_decoder)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_judge import AnswerJudge, log_softmax, open_gpu
from models_factory import make_tokenizer
from tiny_gpu_decoder import gpu_module

from llm_decoder import LLM, SamplingParams, SearchParams, backends

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

N_NEW_TOKENS = 16
PROMPTS = [[5, 9, 200, 17], [3] * 12, list(range(40, 110))]
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 389,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.25,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("float16", {"attention_bias": True}),
    "Llama, bfloat16": ("bfloat16", {"intermediate_size": 128}),
    "Mistral": ("float16", {"sliding_window": 11}),
    "Qwen2": ("float16", {"tie_word_embeddings": True, "intermediate_size": 192}),
    "Qwen3": ("float16", {"head_dim": 32}),
}


@dataclass(frozen=True)
class Pair:
    ours: LLM
    theirs: Any  # a transformers model, float32, eval mode
    judge: AnswerJudge

    def their_logits(self, ids: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return np.asarray(self.theirs(torch.tensor([ids])).logits[0].numpy())

    def generated(self, ids: list[int], **options: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.theirs.generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=N_NEW_TOKENS,
                min_new_tokens=N_NEW_TOKENS,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(5)
    folder: Path = tmp_path_factory.mktemp("model")
    family, (dtype, changes) = request.param.partition(",")[0], CASES[request.param]
    config = getattr(transformers, f"{family}Config")(**{**COMMON, **changes})
    kind = getattr(transformers, f"{family}ForCausalLM")
    kind(config).to(getattr(torch, dtype)).save_pretrained(folder)
    make_tokenizer(folder)
    theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "load_cuda", gpu_module)
        with open_gpu(folder, page_size=16, max_tokens_per_step=48) as ours:
            yield Pair(ours, theirs, AnswerJudge(folder, "half", dtype, {"float16": "f16"}.get(dtype, "bf16")))


def test_logits_are_those_of_transformers_but_for_rounding(pair: Pair) -> None:
    for ids in PROMPTS:
        bound = pair.judge.of(ids)
        error = np.abs(pair.ours.logits(ids) - pair.their_logits(ids))
        assert error.max() <= bound.most
        assert error.mean() <= bound.mean


def test_greedy_tokens_are_those_of_transformers_where_these_are_clear(pair: Pair) -> None:
    params = SamplingParams(max_tokens=N_NEW_TOKENS, temperature=0.0, ignore_eos=True)
    n_clear = 0
    for ids, output in zip(PROMPTS, pair.ours.generate(PROMPTS, params), strict=True):
        tokens = output.outputs[0].token_ids
        rows = pair.their_logits([*ids, *tokens])[len(ids) - 1 : -1]
        second, first = np.sort(rows, axis=-1)[:, -2:].T
        is_clear = first - second > 2.0 * pair.judge.of([*ids, *tokens]).most
        assert np.array_equal(np.array(tokens)[is_clear], rows.argmax(axis=-1)[is_clear])
        if is_clear.all():
            assert tokens == pair.generated(ids).sequences[0, len(ids) :].tolist()
        n_clear += int(is_clear.sum())
    assert n_clear >= N_NEW_TOKENS // 2


def test_beams_have_the_scores_of_transformers(pair: Pair) -> None:
    """Scores are means of log probabilities, so none is off by more than one of these may be."""
    params = SearchParams(width=4, n=4, max_tokens=N_NEW_TOKENS, ignore_eos=True)
    for ids, output in zip(PROMPTS, pair.ours.search(PROMPTS, params), strict=True):
        their_best = float(pair.generated(ids, num_beams=4, num_return_sequences=4).sequences_scores[0])
        bound = 0.0
        for answer in output.outputs:
            whole = [*ids, *answer.token_ids]
            scores = log_softmax(pair.their_logits(whole))[np.arange(len(ids) - 1, len(whole) - 1), answer.token_ids]
            bound = max(bound, 2.0 * pair.judge.of(whole).most)
            assert answer.beam_score is not None
            assert abs(answer.beam_score - scores.mean()) <= bound
        assert output.outputs[0].beam_score is not None
        assert abs(output.outputs[0].beam_score - their_best) <= bound
