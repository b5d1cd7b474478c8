"""The embedded model with tokens guessed ahead says what it says without, bit for bit; it takes fewer steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, SamplingParams
from llm_decoder.speculation import StepCost

STORY = (
    "Tom and his dog found a red ball under the old tree. They did not know whose ball it was, so they asked the bird. "
    "The bird said the ball was a gift from the sun. "
)
PROMPTS = [STORY * 3, STORY + STORY[:60], "Once upon a time", "The sun was warm and the sea was blue. " * 12]
GREEDY = SamplingParams(temperature=0, max_tokens=96, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=11, max_tokens=96, ignore_eos=True, logprobs=2)
PARAMS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "penalties": replace(SAMPLED, repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2),
    "bans": replace(GREEDY, bad_words=["ball", "the sun"], logit_bias={100: 2.0}, min_tokens=20, ignore_eos=False),
    "stop": replace(SAMPLED, stop=["tree", "bird."], ignore_eos=False, prompt_logprobs=1),
    "answers": replace(SAMPLED, n=4, temperature=0.5),
    "form": replace(SAMPLED, n=2, ignore_eos=False, structured_outputs={"json": {"type": "object"}}),
}


def contents(outputs):
    """All that is answered; floats are compared bit for bit."""
    return [(output.outputs, output.prompt_logprobs) for output in outputs]


@pytest.fixture(autouse=True)
def rows_that_cost_next_to_nothing(monkeypatch):
    """So that much is drafted, and the same on every machine."""
    monkeypatch.setattr(StepCost, "FIRST_ROWS", 64.0)
    monkeypatch.setattr(StepCost, "LIMITS", (64.0, 64.0))


@pytest.fixture(scope="module")
def plain():
    with LLM(speculation="none") as llm:
        found = {name: contents(llm.generate(PROMPTS, params)) for name, params in PARAMS.items()}
        assert llm.stats()["n_drafted_tokens"] == 0
        return found


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("speculative_tokens", [1, 7, 30])
def test_answers_are_the_same_with_tokens_guessed_ahead(plain, name, speculative_tokens):
    with LLM(speculative_tokens=speculative_tokens) as llm:
        assert contents(llm.generate(PROMPTS, PARAMS[name])) == plain[name]
        stats = llm.stats()
        assert stats["n_drafted_tokens"] > stats["n_accepted_tokens"]
        assert name != "greedy" or stats["n_accepted_tokens"] > 0
        assert stats["pages"]["n_held"] == 0
        assert contents(llm.generate(PROMPTS, PARAMS[name])) == plain[name]  # the prefixes are in the cache now


def test_answers_are_the_same_under_preemption_and_in_small_chunks(plain):
    with LLM(page_size=32) as llm:
        page_bytes = llm.stats()["backend"]["kv_cache_bytes"] // llm.stats()["pages"]["n_pages"]
    with LLM(page_size=32, kv_cache_bytes=16 * page_bytes, max_tokens_per_step=40, max_num_seqs=8) as llm:
        names = ("greedy", "sampled", "penalties")
        outputs = llm.generate(PROMPTS * 3, [PARAMS[name] for name in names for _ in PROMPTS])
        assert contents(outputs) == [answer for name in names for answer in plain[name]]
        assert llm.stats()["n_preemptions"] > 0
        assert llm.stats()["n_accepted_tokens"] > 0
        assert llm.stats()["pages"]["n_held"] == 0


def test_answers_in_float32_are_the_same():
    with LLM(dtype="float32", speculation="none") as llm:
        expected = contents(llm.generate(PROMPTS, SAMPLED))
    with LLM(dtype="float32") as llm:
        assert contents(llm.generate(PROMPTS, SAMPLED)) == expected
        assert llm.stats()["n_accepted_tokens"] > 0


def test_answers_of_a_model_with_windows_are_the_same(tmp_path):
    model = make_checkpoint(
        tmp_path / "mixed",
        "qwen3",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
        use_sliding_window=True,
        sliding_window=32,
        max_window_layers=0,
    )
    prompts = [[2 + (7 * i + n) % 40 for i in range(n)] for n in (120, 31, 75, 200, 8)]
    params = [replace(params, max_tokens=150) for params in (GREEDY, replace(SAMPLED, temperature=0.2))]
    with LLM(model, speculation="none", page_size=16) as llm:
        expected = [contents(llm.generate(prompts, own)) for own in params]
    with LLM(model, page_size=16, max_tokens_per_step=24, speculative_tokens=20) as llm:
        assert [contents(llm.generate(prompts, own)) for own in params] == expected
        assert llm.stats()["n_accepted_tokens"] > 0


def test_text_that_repeats_itself_takes_far_fewer_steps():
    with LLM() as llm:
        (output,) = llm.generate("The cat said meow. The dog said woof. " * 8, replace(GREEDY, max_tokens=256))
        metrics, stats = output.metrics, llm.stats()
        assert 2 * metrics.n_accepted_tokens > metrics.n_generated_tokens
        assert metrics.n_accepted_tokens <= metrics.n_drafted_tokens
        assert stats["n_accepted_tokens"] == metrics.n_accepted_tokens
        assert stats["n_steps"] == metrics.n_generated_tokens - metrics.n_accepted_tokens
