"""The embedded model in a pool far too small for what is asked of it, by people who come and go."""

import asyncio
from functools import partial

import numpy as np
import pytest

from llm_decoder import LLM, AsyncLLM, ContextLengthExceededError, InvalidRequestError, SamplingParams, backends
from llm_decoder.engine import Engine
from llm_decoder.kv_tier import KvTier

WORDS = ["dog", "cat", "ball", "tree", "moon", "boat", "king", "fish"]


@pytest.fixture(scope="module")
def page_bytes():
    with LLM() as llm:
        stats = llm.stats()
    return stats["backend"]["kv_cache_bytes"] // stats["pages"]["n_pages"]


SHORT = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


def long_prompt(i):
    return f"Once upon a time there was a {WORDS[i]}. " * 16


def request(i):
    prompt = f"Once upon a time there was a {WORDS[i % 8]}. " * (1 + i % 3)
    n_tokens = 10 + 7 * (i % 9)
    return prompt, SamplingParams(max_tokens=n_tokens, seed=i, n=1 + (i % 5 == 0), temperature=0.8, ignore_eos=True)


@pytest.mark.parametrize(("n_tier_slots", "is_worth_loading"), [(0, True), (40, True), (40, False)])
def test_everybody_gets_what_he_gets_alone_while_others_come_and_go(
    page_bytes, n_tier_slots, is_worth_loading, monkeypatch
):
    monkeypatch.setattr(backends, "KvCache", partial(backends.KvCache, n_tier_slots=n_tier_slots))
    monkeypatch.setattr(KvTier, "is_worth_loading", is_worth_loading)
    with LLM(max_num_seqs=1) as llm:
        expected = [llm.generate(*request(i))[0] for i in range(24)]

    async def main():
        llm = AsyncLLM.over(LLM(kv_cache_bytes=7 * page_bytes, max_tokens_per_step=40, max_num_seqs=9))
        rng = np.random.default_rng(0)

        async def ask(i):
            await asyncio.sleep(float(rng.uniform(0, 0.05)))
            return (await llm.generate(*request(i)))[0]

        async def leave(i):
            stream = llm.stream(request(i)[0], SamplingParams(max_tokens=None, ignore_eos=True))
            await anext(stream)
            await stream.aclose()

        *outputs, _, _, _, _ = await asyncio.gather(*map(ask, range(24)), *map(leave, range(4)))
        # Two that do not fit the pool together: the second pushes the first out.
        first, _, again = [(await llm.generate(long_prompt(i), SHORT))[0] for i in (0, 1, 0)]
        assert again.outputs[0].token_ids == first.outputs[0].token_ids
        stats = await llm.stats()
        await asyncio.to_thread(llm._llm._engine.call, lambda backend: backend.cache.check_integrity())
        await llm.close()
        return outputs, stats

    outputs, stats = asyncio.run(main())
    assert stats["n_preemptions"] > 0
    assert stats["pages"]["n_held"] == 0
    assert (stats["pages"]["n_stored"] > 0) == (n_tier_slots > 0)
    assert (stats["pages"]["n_loaded"] > 0) == (n_tier_slots > 0 and is_worth_loading)
    assert stats["n_swapped"] == 0 or (n_tier_slots > 0 and is_worth_loading)
    assert stats["n_swapped"] + stats["n_recomputed"] <= stats["n_preemptions"]
    for output, alone in zip(outputs, expected, strict=True):
        assert [completion.token_ids for completion in output.outputs] == [c.token_ids for c in alone.outputs]
        assert [completion.text for completion in output.outputs] == [c.text for c in alone.outputs]


def test_a_chat_that_outgrows_the_context_goes_on_with_its_last_turns():
    params = SamplingParams(max_tokens=20, temperature=0)
    with LLM(max_model_len=160) as llm:
        messages, dropped = [], []
        for i in range(8):
            messages.append({"role": "user", "content": f"Tell me a story about a {WORDS[i]} and a red ball."})
            output = llm.chat(messages, params)
            dropped.append(output.dropped_messages)
            messages.append({"role": "assistant", "content": output.outputs[0].text})
        assert dropped[0] == 0 < dropped[-1] < len(messages) - 1
        assert dropped == sorted(dropped)
        kept = messages[dropped[-1] : -1]
        assert llm.chat(kept, params).outputs[0].token_ids == output.outputs[0].token_ids
        with pytest.raises(ContextLengthExceededError, match="n_ctx = 160"):
            llm.chat([{"role": "user", "content": "a long question " * 100}], params)
        assert llm.chat(messages[:1], params).outputs[0].text


def test_what_cannot_be_served_is_refused_and_the_next_request_is_served():
    with LLM(max_model_len=64) as llm:
        vocab_size = llm.vocab_size
        for prompt, message in [
            ("", "needs some text"),
            ([], "at least one"),
            ([vocab_size], f"0 to {vocab_size - 1}"),
            ("word " * 200, "n_ctx = 64"),
            ("\ud800", "surrogate"),
        ]:
            with pytest.raises(InvalidRequestError, match=message):
                llm.generate(prompt)
        assert llm.generate([vocab_size - 1], SamplingParams(max_tokens=2, ignore_eos=True))[0].outputs[0].token_ids
        assert llm.stats()["pages"]["n_held"] == 0


def test_a_failed_load_leaves_no_thread_behind():
    import threading

    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        Engine(lambda: 1 // 0, None)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before
