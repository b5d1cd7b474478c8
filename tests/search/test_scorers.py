"""Scorers: the order that they give to the answers of a search, what is streamed before it is known, and what becomes
of a request whose scorer fails."""

import asyncio
import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend, make_engine

from llm_decoder import (
    LLM,
    AsyncLLM,
    EngineClosedError,
    InvalidRequestError,
    RequestFailedError,
    SamplingParams,
    SearchParams,
)
from llm_decoder.chat import last_user_text
from llm_decoder.no_tokenizer import NoTokenizer

PROMPT = "once upon a time"
LONG_S = 60


def ending():
    made = FakeBackend()

    def spoil(history, logits):
        logits[256] += 5.0 * (history.sum() % 3 == 0)

    made.spoil = spoil
    return made


def ask(**params):
    return Desk(ending()).ask(PROMPT, **params)


def by_letters(prompt, candidates):
    """No beam score would order answers so."""
    return [float(sum(map(ord, candidate)) % 97) for candidate in candidates]


def worst_first(prompt, candidates):
    return list(range(len(candidates)))


METHODS = [
    {"width": 5},
    {"width": 6, "groups": 3, "diversity_penalty": 1.0},
    {"width": 6, "method": "sample", "temperature": 1.0},
]


# -- the order


@pytest.mark.parametrize("search", METHODS)
def test_with_alpha_one_the_scorer_alone_decides(search):
    plain = ask(n=search["width"], max_tokens=10, **search)
    scored = ask(n=search["width"], max_tokens=10, scorer=by_letters, alpha=1.0, **search)
    texts = [answer.text for answer in plain.outputs]
    assert [answer.text for answer in scored.outputs] == [
        text for _, text in sorted(zip(by_letters("", texts), texts, strict=True), key=lambda pair: -pair[0])
    ]
    assert [answer.index for answer in scored.outputs] == list(range(len(texts)))
    assert [texts[answer.beam_rank] for answer in scored.outputs] == [answer.text for answer in scored.outputs]


@pytest.mark.parametrize("search", METHODS)
@pytest.mark.parametrize("normalise", ["none", "sigmoid", "zscore"])
def test_the_final_score_weighs_both_scores(search, normalise):
    answers = ask(n=search["width"], max_tokens=10, scorer=by_letters, alpha=0.3, normalise=normalise, **search).outputs
    raw = np.array([answer.rerank_score for answer in answers])
    assert raw.tolist() == by_letters("", [answer.text for answer in answers])
    norm = {"none": raw, "sigmoid": 1 / (1 + np.exp(-raw)), "zscore": (raw - raw.mean()) / raw.std()}[normalise]
    expected = 0.3 * norm + 0.7 * np.array([answer.beam_score for answer in answers])
    np.testing.assert_allclose([answer.final_score for answer in answers], expected, rtol=1e-9)
    assert sorted(expected, reverse=True) == expected.tolist()


def test_the_n_best_are_chosen_among_all_answers():
    seen = []

    def scorer(prompt, candidates):
        seen.append((prompt, candidates))
        return worst_first(prompt, candidates)

    plain = ask(width=6, n=6, max_tokens=10)
    scored = ask(width=6, n=2, max_tokens=10, scorer=scorer, alpha=1.0, query="the query")
    assert seen == [("the query", [answer.text for answer in plain.outputs])]
    assert [answer.text for answer in scored.outputs] == [answer.text for answer in plain.outputs[:-3:-1]]
    assert [answer.beam_rank for answer in scored.outputs] == [5, 4]


@pytest.mark.parametrize("search", METHODS)
def test_a_scorer_without_weight_is_not_asked_and_changes_nothing(search):
    def never(prompt, candidates):
        raise AssertionError

    plain = ask(n=3, max_tokens=10, **search)
    for other in (
        ask(n=3, max_tokens=10, scorer=never, alpha=0.0, **search),
        ask(n=3, max_tokens=10, scorer="logprob", alpha=1.0, **search),
    ):
        assert other.outputs == plain.outputs
    assert [answer.rerank_score for answer in plain.outputs] == [None] * 3
    assert [answer.final_score for answer in plain.outputs] == [None] * 3
    assert [answer.beam_rank for answer in plain.outputs] == [0, 1, 2]


@pytest.mark.parametrize("normalise", ["none", "sigmoid", "zscore"])
def test_among_equals_the_beam_rank_decides(normalise):
    answers = ask(width=6, n=6, max_tokens=10, scorer=lambda p, c: [7] * len(c), alpha=1.0, normalise=normalise).outputs
    assert [answer.beam_rank for answer in answers] == list(range(6))
    assert {answer.rerank_score for answer in answers} == {7.0}


@pytest.mark.parametrize("normalise", ["none", "sigmoid", "zscore"])
@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_scores_of_any_size_give_finite_final_scores(normalise, size):
    answers = ask(
        width=4, n=4, max_tokens=6, scorer=lambda p, c: [-size, 0.0, size, size], alpha=1.0, normalise=normalise
    ).outputs
    assert all(math.isfinite(answer.final_score) for answer in answers)
    assert answers[-1].beam_rank == 0 or normalise == "sigmoid"


@pytest.mark.parametrize(
    "scores", [np.float32([1, 2, 3]), (1, 2, 3), [np.float64(1), 2, 3.0], [False, True, True]], ids=lambda s: type(s)
)
def test_scores_may_come_as_any_list_of_numbers(scores):
    answers = ask(width=3, n=3, max_tokens=6, scorer=lambda p, c: scores, alpha=1.0).outputs
    assert all(type(answer.rerank_score) is float for answer in answers)


def test_answers_without_a_token_are_scored_too():
    (answer,) = ask(width=3, n=1, max_tokens=0, scorer=lambda p, c: [5.0] * len(c), alpha=1.0).outputs
    assert (answer.text, answer.final_score) == ("", 5.0)


# -- streams


@pytest.mark.parametrize("scorer", [by_letters, worst_first])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("method", ["beam", "sample"])
def test_what_has_left_is_the_beginning_of_whichever_answer_wins(method, width, scorer):
    """The letters are few and the first of them nearly certain, so that the answers have something in common."""
    desk = Desk(ending())
    spoil = desk.backend.spoil

    def agreeing(history, logits):
        spoil(history, logits)
        if len(history) < len(PROMPT) + 4:
            logits[97] += 30.0

    desk.backend.spoil = agreeing
    params = {"method": method, "width": width, "n": width, "max_tokens": 24, "scorer": scorer, "alpha": 1.0}
    request_id = desk.add(PROMPT, stream=True, logprobs=0, **params)
    desk.run()
    events = desk.sent[request_id]
    output = events[-1].output
    for answer in output.outputs:
        own = [event for event in events if event.index == answer.index and event.rerank is None]
        assert "".join(event.text for event in own) == answer.text
        assert [token for event in own for token in event.token_ids] == answer.token_ids
        assert [entry for event in own for entry in event.logprobs] == answer.logprobs
        assert own[-1].finish_reason == answer.finish_reason
    (at,) = [i for i, event in enumerate(events) if event.rerank is not None]
    assert at == len(events) - len(output.outputs) - 1
    early = "".join(event.text for event in events[:at])
    assert method == "sample" or early.startswith("aaa")
    told = [(s.index, s.tree_leaf, s.beam_rank, s.beam_score, s.rerank_score, s.final_score) for s in events[at].rerank]
    assert told == [
        (a.index, a.tree_leaf, a.beam_rank, a.beam_score, a.rerank_score, a.final_score) for a in output.outputs
    ]
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("width", [2, 3, 4])
def test_nothing_is_taken_back_whatever_wins(width):
    """Letters that go on are likely and alike, ends come late and seldom: beams that cannot be the likeliest any more
    finish all the same."""
    for i in range(40):
        desk = Desk(FakeBackend())

        def spoil(history, logits):
            logits[97] += 6.5
            logits[256] += 7.0 * (history.sum() % 5 == 0)

        desk.backend.spoil = spoil
        params = {"width": width, "max_tokens": 16, "length_penalty": 0.0, "early_stopping": "never"}
        request_id = desk.add(f"prompt {i}", stream=True, scorer=worst_first, alpha=1.0, **params)
        desk.run()
        events = desk.sent[request_id]
        answer = events[-1].output.outputs[0]
        assert "".join(event.text for event in events) == answer.text
        assert [token for event in events for token in event.token_ids] == answer.token_ids


def test_the_scores_of_answers_that_do_not_come_back_are_told_too():
    desk = Desk(ending())
    request_id = desk.add(PROMPT, stream=True, width=5, n=2, max_tokens=8, scorer=by_letters, alpha=1.0)
    desk.run()
    (rerank,) = [event.rerank for event in desk.sent[request_id] if event.rerank is not None]
    assert [scores.index for scores in rerank] == list(range(5))
    assert sorted(scores.beam_rank for scores in rerank) == list(range(5))
    assert [scores.final_score for scores in rerank] == sorted((s.final_score for s in rerank), reverse=True)


# -- failures


def raising(kind, *arguments):
    def scorer(prompt, candidates):
        raise kind(*arguments)

    return scorer


BROKEN = {
    "raises": (raising(ValueError, "cannot read"), "raised ValueError: cannot read"),
    "ends the thread": (raising(SystemExit, 1), "raised SystemExit"),
    "is interrupted": (raising(KeyboardInterrupt), "raised KeyboardInterrupt"),
    "too few": (lambda p, c: [1.0] * (len(c) - 1), "4 scores, one an answer, got 3"),
    "too many": (lambda p, c: [1.0] * 1000, "4 scores, one an answer, got 1000"),
    "NaN": (lambda p, c: [1.0, math.nan, 1.0, 1.0], "finite scores, got nan for answer 1"),
    "infinite": (lambda p, c: [-math.inf] * len(c), "finite scores, got -inf"),
    "nothing": (lambda p, c: None, "a list of numbers, got NoneType"),
    "a number": (lambda p, c: 3.0, "a list of numbers, got float"),
    "a text": (lambda p, c: "1234", "a list of numbers, got str"),
    "texts": (lambda p, c: ["1"] * len(c), "a list of numbers, got list"),
    "a mapping": (lambda p, c: dict.fromkeys(range(len(c)), 1.0), "a list of numbers, got dict"),
    "a generator": (lambda p, c: (1.0 for _ in c), "a list of numbers, got generator"),
    "a table": (lambda p, c: np.ones((len(c), 1)), "a list of numbers, got ndarray"),
    "no arguments": (lambda: [1.0], "raised TypeError"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["beam", "sample"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_scorer_that_fails_ends_its_request_alone(name, method, stream):
    scorer, said = BROKEN[name]
    desk = Desk(ending())
    search = desk.add(PROMPT, stream=stream, method=method, width=4, max_tokens=6, scorer=scorer)
    other = desk.add("another", max_tokens=9, ignore_eos=True)
    desk.run()
    error = desk.last(search)
    assert isinstance(error, RequestFailedError)
    assert "[scorer of a test]" in str(error)
    assert said in str(error)
    assert error.param == "scorer"
    assert len(desk.last(other).outputs[0].token_ids) == 9
    desk.assert_nothing_is_held()


def test_a_scorer_that_changes_its_list_changes_no_answer():
    def scorer(prompt, candidates):
        scores = by_letters(prompt, candidates)
        candidates.clear()
        return scores

    assert ask(width=3, max_tokens=6, scorer=scorer).outputs == ask(width=3, max_tokens=6, scorer=by_letters).outputs


# -- while it is scored


class Later:
    """An Aside whose jobs wait until they are told to run."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job, done):
        self.jobs.append((job, done))

    def run(self):
        while self.jobs:
            job, done = self.jobs.pop(0)
            done(job())


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_no_page_is_held_while_the_answers_are_scored_and_others_go_on(method):
    later = Later()
    desk = Desk(ending(), aside=later)
    search = desk.add(PROMPT, method=method, width=4, max_tokens=6, scorer=by_letters)
    while desk.core.step():
        pass
    assert desk.core.n_scored == 1
    desk.assert_nothing_is_held()
    other = desk.add("another", max_tokens=9, ignore_eos=True)
    while desk.core.step():
        pass
    assert desk.last(search) is None
    assert len(desk.last(other).outputs[0].token_ids) == 9
    later.run()
    desk.run()
    assert desk.last(search).outputs[0].final_score is not None
    assert desk.core.n_scored == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["beam", "sample"])
def test_a_search_that_is_cancelled_while_it_is_scored_gives_its_answers_as_they_are(method, stream):
    later = Later()
    desk = Desk(ending(), aside=later)
    params = {"method": method, "width": 4, "n": 2, "max_tokens": 6}
    search = desk.add(PROMPT, stream=stream, scorer=worst_first, **params)
    while desk.core.step():
        pass
    desk.core.cancel(search)
    answers = desk.last(search).outputs
    n_sent = len(desk.sent[search])
    assert answers == ask(**params).outputs
    later.run()
    desk.core.cancel(search)
    assert len(desk.sent[search]) == n_sent
    assert not desk.core.requests
    desk.assert_nothing_is_held()


def test_a_search_that_is_cancelled_before_its_end_is_not_scored():
    desk = Desk(ending())
    search = desk.add(PROMPT, width=4, max_tokens=50, ignore_eos=True, scorer=raising(AssertionError))
    for _ in range(3):
        desk.core.step()
    desk.core.cancel(search)
    assert desk.last(search).outputs[0].finish_reason == "abort"
    assert desk.last(search).outputs[0].final_score is None


# -- the library's own door


def fake_llm(backend=None, reranker=None, **options):
    return LLM.over(make_engine(backend or FakeBackend(), **options), ByteTokenizer(), "fake", reranker=reranker)


@pytest.fixture
def llm():
    with fake_llm() as llm:
        yield llm
        assert llm.stats()["pages"]["n_held"] == 0


class Gate:
    """A scorer that waits until it is let go on."""

    def __init__(self):
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.threads = []

    def __call__(self, prompt, candidates):
        self.threads.append(threading.current_thread())
        self.has_begun.set()
        self.may_end.wait(LONG_S)
        return by_letters(prompt, candidates)


def test_every_door_gives_the_same_answers(llm):
    params = SearchParams(width=4, n=2, max_tokens=6, scorer=by_letters, alpha=1.0)
    (searched,) = llm.search("one", params)
    (generated,) = llm.generate("one", params)
    with llm.stream_search("one", params) as stream:
        *_, last = stream

    async def ask_async():
        async_llm = AsyncLLM.over(llm)
        (output,) = await async_llm.search("one", params)
        events = [event async for event in async_llm.stream_search("one", params)]
        return output, events[-1].output

    for other in (generated, last.output, *asyncio.run(ask_async())):
        assert other.outputs == searched.outputs


def test_neither_the_engine_nor_other_requests_wait_for_a_scorer(llm):
    gate = Gate()
    handle = llm.submit("one", SearchParams(width=3, max_tokens=4, scorer=gate))
    assert gate.has_begun.wait(LONG_S)
    (other,) = llm.generate("two", SamplingParams(max_tokens=5, ignore_eos=True))
    assert len(other.outputs[0].token_ids) == 5
    assert llm.stats()["pages"]["n_held"] == 0
    gate.may_end.set()
    assert handle.result().outputs[0].final_score is not None
    assert [thread.name for thread in gate.threads] == ["llm_decoder-scoring"]


def test_a_search_that_was_cancelled_in_the_queue_of_the_scorer_costs_it_nothing(llm):
    gate, behind = Gate(), Gate()
    first = llm.submit("one", SearchParams(width=3, max_tokens=4, scorer=gate))
    assert gate.has_begun.wait(LONG_S)
    second = llm.submit("two", SearchParams(width=3, max_tokens=4, scorer=behind))
    while (stats := llm.stats())["n_running"] + stats["n_waiting"]:
        pass
    second.cancel()
    assert second.result().outputs[0].final_score is None
    gate.may_end.set()
    assert first.result().outputs[0].final_score is not None
    llm.search("three", SearchParams(width=3, max_tokens=4, scorer=by_letters))
    assert not behind.threads


def test_a_hung_scorer_keeps_no_cancelled_request_and_no_closing_waiting():
    gate = Gate()
    llm = fake_llm()
    hung = llm.submit("one", SearchParams(width=3, max_tokens=4, scorer=gate))
    assert gate.has_begun.wait(LONG_S)
    behind = llm.submit("two", SearchParams(width=3, max_tokens=4, scorer=by_letters))
    hung.cancel()
    assert hung.result().outputs[0].final_score is None
    llm.close()
    with pytest.raises(EngineClosedError):
        behind.result()
    gate.may_end.set()
    gate.threads[0].join(LONG_S)
    assert not gate.threads[0].is_alive()


@pytest.mark.parametrize("drain_s", [0.0, 0.1])
def test_a_search_that_is_being_scored_when_the_engine_closes_ends_with_that(drain_s):
    gate = Gate()
    llm = fake_llm()
    handle = llm.submit("one", SearchParams(width=3, max_tokens=4, scorer=gate))
    assert gate.has_begun.wait(LONG_S)
    closing = ThreadPoolExecutor(1).submit(llm.close, drain_s)
    closing.result(timeout=LONG_S / 2)
    with pytest.raises(EngineClosedError):
        handle.result()
    gate.may_end.set()


@pytest.mark.parametrize("scorer", ["gate", "likelihood"])
def test_closing_waits_for_scorers_while_it_drains(scorer):
    gate = Gate()
    llm = fake_llm()
    params = SearchParams(width=3, max_tokens=4, alpha=1.0)
    gated = llm.submit("one", SearchParams(width=3, max_tokens=4, alpha=1.0, scorer=gate))
    scored = llm.submit("two", SearchParams(width=3, max_tokens=4, scorer=gate if scorer == "gate" else "likelihood"))
    assert gate.has_begun.wait(LONG_S)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(llm.close, drain_s=LONG_S)
        while not llm.is_closed:
            pass
        with pytest.raises(EngineClosedError):
            llm.generate("three", params)
        gate.may_end.set()
        closing.result()
    assert gated.result().outputs[0].final_score is not None
    assert scored.result().outputs[0].final_score is not None


def test_a_task_that_is_cancelled_while_its_search_is_scored_ends_it(llm):
    gate = Gate()

    async def ask_and_leave():
        asking = asyncio.create_task(AsyncLLM.over(llm).search("one", SearchParams(width=3, max_tokens=4, scorer=gate)))
        await asyncio.to_thread(gate.has_begun.wait, LONG_S)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(ask_and_leave())
    stats = llm.stats()
    gate.may_end.set()
    assert (stats["n_requests"], stats["n_finished"]["abort"]) == (0, 1)


def test_a_failure_reaches_every_door_and_the_next_search_goes_well(llm):
    broken = SearchParams(width=3, max_tokens=4, scorer=raising(ValueError, "cannot read"))
    with pytest.raises(RequestFailedError, match="cannot read"):
        llm.search("one", broken)
    with llm.stream_search("one", broken) as stream, pytest.raises(RequestFailedError, match="cannot read"):
        list(stream)
    with pytest.raises(RequestFailedError, match="cannot read"):
        asyncio.run(AsyncLLM.over(llm).search("one", broken))
    assert llm.search("one", SearchParams(width=3, max_tokens=4, scorer=by_letters))[0].outputs[0].final_score


def test_a_scorer_may_ask_the_same_llm_but_not_for_what_waits_for_it(llm):
    def asking(**params):
        def scorer(prompt, candidates):
            return [answer.beam_score for answer in llm.search("two", SearchParams(width=3, n=3, **params))[0].outputs]

        return SearchParams(width=3, max_tokens=4, scorer=scorer)

    (output,) = llm.search("one", asking(max_tokens=2))
    assert output.outputs[0].final_score is not None
    with pytest.raises(RequestFailedError, match="would wait for it"):
        llm.search("one", asking(max_tokens=2, scorer=by_letters))


@pytest.mark.parametrize("method", ["beam", "steps"])
def test_a_scorer_gets_the_answers_that_others_get(llm, method):
    """From the LLM that waits for it, and from an event loop of its own."""
    greedy = SamplingParams(max_tokens=5, temperature=0.0, logprobs=0)
    inner = AsyncLLM.over(llm)

    def logprobs_of(outputs):
        return [output.outputs[0].cumulative_logprob for output in outputs]

    def scorer(prompt, candidates):
        texts = [prompt + candidate for candidate in candidates]
        scores = logprobs_of(llm.generate(texts, greedy))
        assert scores == logprobs_of(asyncio.run(inner.generate(texts, greedy)))
        return scores

    params = SearchParams(method=method, width=3, n=3, max_tokens=4, step_tokens=2, seed=1, scorer=scorer, alpha=1.0)
    (output,) = llm.search("one", params)
    alone = llm.generate(["one" + answer.text for answer in output.outputs], greedy)
    assert [answer.rerank_score for answer in output.outputs] == logprobs_of(alone)


SCORED = SearchParams(width=3, max_tokens=2, scorer=by_letters)


@pytest.mark.parametrize("asked", ["search", "stream"])
def test_a_scorer_with_an_event_loop_is_refused_what_would_wait_for_it(llm, asked):
    async def ask():
        if asked == "search":
            return await AsyncLLM.over(llm).search("two", SCORED)
        return [event async for event in AsyncLLM.over(llm).stream_search("two", SCORED)]

    def scorer(prompt, candidates):
        asyncio.run(asyncio.wait_for(ask(), LONG_S))

    with pytest.raises(RequestFailedError, match=r"InvalidRequestError.*would wait for it"):
        llm.search("one", SearchParams(width=3, max_tokens=4, scorer=scorer))


def test_a_scorer_is_refused_it_in_the_event_loop_of_who_waits_for_it_too(llm):
    """And there alone: another task of that loop has its search scored, behind this one."""
    gate = Gate()

    async def ask():
        loop, async_llm = asyncio.get_running_loop(), AsyncLLM.over(llm)

        def scorer(prompt, candidates):
            gate("", [])
            asyncio.run_coroutine_threadsafe(async_llm.search("two", SCORED), loop).result(LONG_S)

        params = SearchParams(width=3, max_tokens=4, scorer=scorer)
        asking = asyncio.create_task(async_llm.search("one", params))
        await asyncio.to_thread(gate.has_begun.wait, LONG_S)
        beside = asyncio.create_task(async_llm.search("three", SCORED))
        gate.may_end.set()
        with pytest.raises(RequestFailedError, match=r"InvalidRequestError.*would wait for it"):
            await asking
        return await beside

    assert asyncio.run(ask())[0].outputs[0].final_score is not None


def test_scorers_of_two_llms_cannot_wait_for_each_other(llm):
    with fake_llm() as other:

        def scorer(prompt, candidates):
            other.search("two", SCORED)

        with pytest.raises(RequestFailedError, match=r"InvalidRequestError.*would wait for it"):
            llm.search("one", SearchParams(width=3, max_tokens=4, scorer=scorer))


def test_ctrl_c_ends_a_search_whose_scorer_hangs_and_the_program_can_leave():
    program = """
        import signal, threading
        from fakes import ByteTokenizer, make_engine
        from llm_decoder import LLM, SamplingParams, SearchParams
        llm = LLM.over(make_engine(), ByteTokenizer(), "fake")
        def hang(prompt, answers):
            print("scoring", flush=True)
            threading.Event().wait()
        try:
            llm.search("one", SearchParams(width=3, max_tokens=4, scorer=hang))
        except KeyboardInterrupt:
            print(llm.generate("three", SamplingParams(max_tokens=2))[0].outputs[0].finish_reason)
            print(llm.stats()["n_finished"]["abort"], llm.stats()["pages"]["n_held"])
    """
    paths = [str(Path(__file__).parents[1]), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "scoring\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=LONG_S)
    assert (child.returncode, out, err) == (0, "length\n1 0\n", "")


@pytest.mark.parametrize("scorer", [by_letters, "likelihood", "reranker"])
def test_an_llm_that_nobody_holds_is_not_held_by_its_last_search(scorer):
    llm = fake_llm(reranker=Overlap())
    llm.search("one", SearchParams(width=3, max_tokens=4, scorer=scorer))
    held = weakref.ref(llm)
    del llm
    end_s = time.monotonic() + LONG_S
    while held() is not None and time.monotonic() < end_s:  # the scoring thread may be on its way back
        gc.collect()
    assert held() is None


# -- what a scorer gets


def test_the_query_is_the_prompt_unless_another_is_given(llm):
    queries = []

    def scorer(prompt, candidates):
        queries.append(prompt)
        return [0.0] * len(candidates)

    params = SearchParams(width=2, max_tokens=3, scorer=scorer)
    chat = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
        {"role": "system", "content": "be kind"},
    ]
    assert last_user_text(chat) == "second"
    plain_chat = [{"role": "user", "content": "only"}]
    llm.search(["a text", list(b"bytes")], params)
    llm.chat(plain_chat, params)
    llm.search([plain_chat], params)
    with pytest.raises(InvalidRequestError) as error:
        llm.chat([{"role": "system", "content": "be kind"}], params)
    assert error.value.param == "query"
    llm.search("a text", SearchParams(width=2, max_tokens=3, scorer=scorer, query="another"))
    assert queries == ["a text", "bytes", "only", "only", "another"]


def test_an_answer_of_a_chat_is_taken_apart_after_it_was_ranked(llm):
    messages = [{"role": "user", "content": "hello"}]
    output = llm.chat(messages, SearchParams(width=3, n=2, max_tokens=4, scorer=by_letters))
    assert [answer.message.content for answer in output.outputs] == [answer.text for answer in output.outputs]
    with llm.stream_search(messages, SearchParams(width=3, n=2, max_tokens=4, scorer=by_letters)) as stream:
        *_, last = stream
    assert last.output.outputs == output.outputs


class Overlap:
    """A reranker: how many letters of the query a document has."""

    def score(self, query, documents):
        return np.float32([len(set(query) & set(document)) for document in documents])


def test_the_reranker_reads_the_query_and_every_answer():
    with fake_llm(reranker=Overlap()) as llm:
        params = {"width": 4, "n": 4, "max_tokens": 6, "query": "etaoin"}
        (output,) = llm.search("one", SearchParams(scorer="reranker", alpha=1.0, **params))
    for answer in output.outputs:
        assert answer.rerank_score == len(set("etaoin") & set(answer.text))


def test_an_llm_without_a_reranker_says_so(llm, monkeypatch, tmp_path):
    monkeypatch.setattr("llm_decoder.embedded.__file__", str(tmp_path / "embedded.py"))
    with pytest.raises(InvalidRequestError, match="reranker") as error:
        llm.search("one", SearchParams(scorer="reranker"))
    assert error.value.param == "scorer"


@pytest.mark.parametrize("prompt", ["one", list(b"one"), [{"role": "user", "content": "one"}]])
@pytest.mark.parametrize("query", [None, "the query"])
def test_likelihood_is_the_models_own_view_of_each_answer_behind_the_query(prompt, query):
    letters = list(range(97, 110))
    with fake_llm(max_requests=1) as llm:
        params = SearchParams(
            width=4, n=4, max_tokens=6, allowed_token_ids=letters, scorer="likelihood", query=query, alpha=1.0
        )
        output = llm.search([prompt], params)[0]
        before = [257, *(query or "one").encode()]
        if isinstance(prompt, list) and isinstance(prompt[0], dict):
            before = [257, *f"<user>{query or 'one'}\n<assistant>".encode()]
        elif isinstance(prompt, list) and query is None:
            before = prompt
        for answer in output.outputs:
            scores = llm.score([*before, *answer.text.encode()])[-len(answer.text) :]
            assert answer.rerank_score == pytest.approx(float(scores.mean()), rel=1e-5)
    assert [a.rerank_score for a in output.outputs] == sorted((a.rerank_score for a in output.outputs), reverse=True)


def test_likelihood_leaves_pages_to_those_of_the_same_salt_alone(llm):
    query = "a query of several pages " * 4
    params = SearchParams(width=2, max_tokens=3, scorer="likelihood", query=query, cache_salt="hers")
    llm.search("one", params)

    def n_cached(**salt):
        return llm.generate(query, SamplingParams(max_tokens=1, **salt))[0].metrics.n_cached_tokens

    assert n_cached() == 0
    assert n_cached(cache_salt="hers") >= 90


def test_an_empty_answer_is_as_likely_as_a_blind_draw():
    backend = FakeBackend()

    def end(history, logits):
        logits[256] += 100.0

    backend.spoil = end
    with fake_llm(backend) as llm:
        (output,) = llm.search("one", SearchParams(method="sample", width=2, n=2, scorer="likelihood", seed=1))
    assert [answer.text for answer in output.outputs] == ["", ""]
    assert [answer.rerank_score for answer in output.outputs] == [-math.log(258)] * 2


def test_a_query_that_the_context_cannot_hold_fails_the_request_by_name(llm):
    with pytest.raises(RequestFailedError, match=r"scorer likelihood.*n_ctx"):
        llm.search("one", SearchParams(width=2, max_tokens=3, scorer="likelihood", query="x" * 400))


def test_answers_without_text_cannot_be_scored(tmp_path):
    tokenizer = NoTokenizer(tmp_path)
    with (
        LLM.over(make_engine(FakeBackend()), tokenizer, "ids") as llm,
        pytest.raises(InvalidRequestError, match="tokenizer") as error,
    ):
        llm.search([[1, 2]], SearchParams(scorer=by_letters))
    assert error.value.param == "scorer"
