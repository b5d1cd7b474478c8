"""A model is bitwise reproducible: what a sequence gets never depends on what happens to it or around it."""

from dataclasses import replace

import numpy as np
import pytest

from llm_decoder import LLM, SamplingParams, devices

PROMPTS = [
    "Once upon a time there was a little girl who lived near a big forest. Every day she",
    "Tom and his dog found a red ball under the old tree. They did not know whose ball it was, so they asked the bird.",
    "Hi",
    "The sun was warm and the sea was blue. " * 12,
]
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=48, ignore_eos=True, logprobs=2)


def answers(llm, prompts=PROMPTS, params=(GREEDY, SAMPLED)):
    """Tokens and log probabilities of every prompt, one request at a time; floats are compared bit for bit."""
    return [contents(llm.generate(prompt, own)[0]) for prompt in prompts for own in params]


def contents(output):
    return [(completion.token_ids, completion.cumulative_logprob, completion.logprobs) for completion in output.outputs]


INTEGERS = {"int8": {"quantization": "int8"}, "int4": {"quantization": "int4"}}
FLOATS = {"bfloat16": {"dtype": "bfloat16"}}  # its pages too
PRECISIONS = INTEGERS | FLOATS


@pytest.fixture(scope="module", params=PRECISIONS)
def precision(request):
    return PRECISIONS[request.param]


@pytest.fixture(scope="module")
def alone(precision):
    """Each request in a fresh cache, its prompt in one piece, on one thread."""
    with LLM(**precision, threads=1, max_tokens_per_step=1024, max_num_seqs=1) as llm:
        found = []
        for prompt in PROMPTS:
            for params in (GREEDY, SAMPLED):
                llm._engine.call(lambda backend: backend.cache.clear_prefix_index())
                (output,) = llm.generate(prompt, params)
                assert output.metrics.n_cached_tokens == 0
                found.append(contents(output))
        return found


def test_answers_differ_from_each_other(alone):
    assert len({tuple(completion[0][0]) for completion in alone}) == len(alone)


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_any_chunking_of_the_prompt_gives_the_same(alone, chunk, precision):
    with LLM(**precision, max_tokens_per_step=chunk, max_num_seqs=1) as llm:
        assert answers(llm) == alone


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same(alone, threads, precision):
    with LLM(**precision, threads=threads) as llm:
        assert answers(llm) == alone


@pytest.mark.parametrize("isa", devices()[0].isas)
@pytest.mark.parametrize("precision", INTEGERS, indirect=True)
def test_every_isa_gives_the_same_bits_of_integers(alone, isa, precision):
    with LLM(**precision, isa=isa) as llm:
        assert llm.stats()["backend"]["isa"] == isa
        assert answers(llm, PROMPTS[:2]) == alone[:4]


@pytest.mark.parametrize("isa", devices()[0].isas)
@pytest.mark.parametrize("precision", FLOATS, indirect=True)
def test_within_an_isa_threads_chunks_and_a_batch_give_the_same_bits_of_floats(isa, precision):
    with LLM(**precision, isa=isa, threads=1) as llm:
        whole = answers(llm, PROMPTS[:2])
    with LLM(**precision, isa=isa, threads=2, max_tokens_per_step=5) as llm:
        outputs = llm.generate([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], [GREEDY, SAMPLED] * 2)
    assert [contents(output) for output in outputs] == whole


@pytest.mark.parametrize("page_size", [16, 64])
def test_chunks_and_hits_agree_for_every_page_size(page_size, precision):
    with LLM(**precision, page_size=page_size) as whole:
        expected = answers(whole)
    with LLM(**precision, page_size=page_size, max_tokens_per_step=9) as cut:
        assert answers(cut) == expected
        assert answers(cut) == expected


def test_answers_of_one_prompt_are_those_of_their_seeds(alone, precision):
    four = replace(SAMPLED, n=4)
    with LLM(**precision) as llm:
        (output,) = llm.generate(PROMPTS[0], four)
        assert contents(output)[0] == alone[1][0]
        (again,) = llm.generate(PROMPTS[0], four)
    assert contents(output) == contents(again)
    assert len({tuple(found[0]) for found in contents(output)}) == 4


def test_logits_are_bitwise_the_same_in_any_chunks(precision):
    with (
        LLM(**precision, max_tokens_per_step=512) as whole,
        LLM(**precision, max_tokens_per_step=5) as cut,
    ):
        ids = whole.tokenizer.encode(PROMPTS[1])
        np.testing.assert_array_equal(whole.logits(ids), cut.logits(ids))
        np.testing.assert_array_equal(whole.score(ids), cut.score(ids))


def test_a_stream_and_a_chat_give_the_text_of_the_whole_answer(precision):
    messages = [{"role": "user", "content": "Tell me a story about a dog and a red ball."}]
    params = SamplingParams(max_tokens=60, seed=5)
    with LLM(**precision) as llm:
        assert "".join(event.text for event in llm.stream(PROMPTS[0], SAMPLED)) == (
            llm.generate(PROMPTS[0], SAMPLED)[0].outputs[0].text
        )
        assert "".join(event.text for event in llm.stream_chat(messages, params)) == (
            llm.chat(messages, params).outputs[0].text
        )
