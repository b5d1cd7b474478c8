import asyncio

import pytest
from fakes import ByteTokenizer, FakeBackend, alone, make_engine
from models_factory import make_checkpoint

from llm_decoder.async_llm import AsyncLLM
from llm_decoder.errors import EngineClosedError, InvalidRequestError, ModelNotFoundError, RequestFailedError
from llm_decoder.llm import LLM
from llm_decoder.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONG = SamplingParams(max_tokens=None, ignore_eos=True)


@pytest.fixture
def backend():
    return FakeBackend(max_model_len=200)


@pytest.fixture
def llm(backend):
    with LLM.over(make_engine(backend), ByteTokenizer(), "fake") as inner:
        yield AsyncLLM.over(inner)


async def idle(llm):
    """Waits until no request is open; returns the stats."""
    for _ in range(1000):
        stats = await llm.stats()
        if stats["n_requests"] == 0:
            return stats
        await asyncio.sleep(0.005)
    raise AssertionError("requests are still open")


def test_requests_of_many_tasks_get_what_they_get_alone(llm):
    async def main():
        return await asyncio.gather(*(llm.generate(f"prompt {i}", GREEDY) for i in range(20)))

    for i, (output,) in enumerate(asyncio.run(main())):
        expected = alone([257, *f"prompt {i}".encode()], temperature=0, max_tokens=12)
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids


def test_generate_keeps_the_order_of_its_prompts(llm):
    outputs = asyncio.run(llm.generate(["a", "b", "c"], GREEDY))
    assert [output.prompt for output in outputs] == ["a", "b", "c"]


def test_a_stream_gives_the_text_of_generate(llm):
    async def main():
        events = [event async for event in llm.stream("one", GREEDY)]
        return events, (await llm.generate("one", GREEDY))[0]

    events, output = asyncio.run(main())
    assert "".join(event.text for event in events) == output.outputs[0].text
    assert events[-1].output.outputs[0].token_ids == output.outputs[0].token_ids


def test_a_stream_that_is_closed_cancels_its_request(llm, backend):
    async def main():
        stream = llm.stream("one", LONG)
        await anext(stream)
        await stream.aclose()
        return await idle(llm)

    stats = asyncio.run(main())
    assert stats["n_finished"]["abort"] == 1
    assert stats["pages"]["n_held"] == 0


@pytest.mark.parametrize("verb", ["generate", "chat", "stream"])
def test_a_cancelled_task_cancels_its_requests(llm, backend, verb):
    async def follow():
        if verb == "stream":
            async for _ in llm.stream("one", LONG):
                pass
        elif verb == "chat":
            await llm.chat([{"role": "user", "content": "one"}], LONG)
        else:
            await llm.generate(["one", "two"], LONG)

    async def main():
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def before_step():
            loop.call_soon_threadsafe(started.set)
            release.wait(0.02)

        import threading

        release = threading.Event()
        backend.before_step = before_step
        task = asyncio.create_task(follow())
        await asyncio.wait_for(started.wait(), 30)
        await asyncio.sleep(0.05)  # all of its requests are in line now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await idle(llm)

    stats = asyncio.run(main())
    assert stats["n_finished"]["abort"] >= 1
    assert stats["n_finished"]["length"] == 0
    assert stats["pages"]["n_held"] == 0


def test_errors_come_out_where_they_are_awaited(llm, backend):
    backend.spoil = lambda history, logits: logits.fill(float("nan")) if history[1] == ord("!") else None

    async def main():
        with pytest.raises(InvalidRequestError):
            await llm.generate("", GREEDY)
        with pytest.raises(RequestFailedError):
            await llm.generate("!bad", GREEDY)
        with pytest.raises(RequestFailedError):
            async for _ in llm.stream("!bad", GREEDY):
                pass

    asyncio.run(main())


def test_the_other_verbs_are_there_too(llm):
    async def main():
        async with llm:
            assert (await llm.logits([1, 2])).shape == (2, 258)
            assert (await llm.score("ab")).shape == (2,)
            assert (await llm.embed("ab")).shape == (1, 4)
            texts = [event.text async for event in llm.stream_chat([{"role": "user", "content": "hi"}], GREEDY)]
            output = await llm.chat([{"role": "user", "content": "hi"}], GREEDY)
            assert "".join(texts) == output.outputs[0].text
        with pytest.raises(EngineClosedError):
            await llm.generate("x", GREEDY)

    asyncio.run(main())


def test_a_model_without_a_tokenizer_takes_token_ids_and_refuses_text(tmp_path):
    async def main():
        folder = make_checkpoint(tmp_path, tokenizer=False)
        async with AsyncLLM(folder, threads=1, kv_cache_bytes=1 << 20) as llm:
            (output,) = await llm.generate([5, 6, 7], GREEDY)
            streamed = [event async for event in llm.stream([5, 6, 7], GREEDY)][-1].output
            assert streamed.outputs[0].token_ids == output.outputs[0].token_ids
            assert output.outputs[0].text == ""
            assert (await llm.logits([5, 6])).shape == (2, 331)
            assert (await llm.score([5, 6])).shape == (1,)
            for refused in (llm.generate("text"), llm.chat([{"role": "user", "content": "x"}]), llm.score("text")):
                with pytest.raises(InvalidRequestError, match="the model has no tokenizer"):
                    await refused
            with pytest.raises(ModelNotFoundError, match="the model has no tokenizer"):
                _ = llm.tokenizer

    asyncio.run(main())
