"""The engine one step ahead of the tokens: no answer changes, nothing leaks, and who waits for tokens gets them."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeAheadBackend, FakeBackend, make_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_decoder.errors import DeviceLostError, EngineClosedError, RequestFailedError
from llm_decoder.sampling import SamplingParams
from llm_decoder.speculation import Gain, SpeculationOptions, StepCost

EOS = ByteTokenizer.eos_token_id
PROMPTS = ("the first of three", "bad, the second one", "and a third")


def ahead(**options):
    """A desk that runs ahead, without guesses."""
    return Desk(FakeAheadBackend(**options), start_speculation=lambda: None)


def plain(**options):
    return Desk(FakeBackend(**options), start_speculation=lambda: None)


def contents(item):
    """All that a request was answered, but for its times and the way there."""
    if isinstance(item, Exception):
        return str(item).partition("] ")[2]
    return (item.outputs, item.prompt_logprobs, item.rows is None, item.metrics.n_generated_tokens)


def told(items):
    """What a stream's consumer makes of its events: of each answer all text and tokens."""
    answers = {}
    for event in items:
        if isinstance(event, Exception):
            answers["error"] = True
        elif hasattr(event, "token_ids"):
            text, token_ids = answers.get(event.index, ("", []))
            answers[event.index] = (text + event.text, token_ids + event.token_ids)
    return answers


def assert_equal_to_plain(desk, ids, asked):
    """Each got what it gets from an engine for itself that reads every token before it goes on."""
    for request_id, request in zip(ids, asked, strict=True):
        lonely = plain()
        lonely.backend.spoil = desk.backend.spoil
        alone_id = lonely.add(**request)
        lonely.run()
        assert contents(desk.last(request_id)) == contents(lonely.last(alone_id))
        assert told(desk.sent[request_id]) == told(lonely.sent[alone_id])


def ask_all(desk, asked):
    ids = [desk.add(**request) for request in asked]
    desk.run()
    desk.assert_nothing_is_held()
    return ids


def calls_of(desk):
    """The names of what is asked of the backend from here on."""
    calls = []
    for name in ("step", "begin_sample", "end_sample", "sample"):
        method = getattr(desk.backend, name)
        setattr(desk.backend, name, lambda *args, name=name, method=method: (calls.append(name), method(*args))[1])
    return calls


# -- the order of things


def test_a_step_is_launched_before_the_tokens_of_the_last_one_are_read_and_none_behind_the_last_token():
    desk = ahead()
    calls = calls_of(desk)
    desk.ask("abc", max_tokens=4, ignore_eos=True)
    step, end = ["step", "begin_sample"], ["end_sample"]
    assert calls == step + 3 * (step + end) + end


def test_an_end_token_costs_one_step_more_whose_draw_nobody_sees():
    asked = {"prompt": "abc", "max_tokens": 20, "stream": True, "logit_bias": {EOS: 6.0}, "temperature": 0.0}
    desks = {"ahead": ahead(), "plain": plain()}
    outputs = {name: desk.ask(**asked) for name, desk in desks.items()}
    stats = {name: desk.core.stats() for name, desk in desks.items()}
    assert outputs["ahead"].outputs[0].finish_reason == "stop"
    assert contents(outputs["ahead"]) == contents(outputs["plain"])
    assert stats["ahead"]["n_generated_tokens"] == stats["plain"]["n_generated_tokens"]
    assert stats["ahead"]["n_steps"] == stats["plain"]["n_steps"] + 1
    assert stats["ahead"]["n_computed_tokens"] == stats["plain"]["n_computed_tokens"] + 1
    inter_token = [stats[name]["histograms"]["inter_token"]["counts"] for name in ("ahead", "plain")]
    assert sum(inter_token[0]) == sum(inter_token[1])


def test_steps_that_draw_nothing_are_queued_behind_one_another():
    desk = ahead(max_tokens_per_step=16)
    calls = calls_of(desk)
    desk.ask("x" * 40, max_tokens=2, ignore_eos=True)
    assert calls == ["step", "step", "step", "begin_sample", "step", "begin_sample", "end_sample", "end_sample"]


# -- who waits


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"bad_words": ["ab"]},
        {"structured_outputs": {"regex": "[a-f]{5,40}"}},
        {"width": 3, "n": 2},
        {"width": 2, "n": 2, "method": "steps", "step_tokens": 4},
    ],
    ids=lambda params: "-".join(params),
)
def test_who_looks_at_the_tokens_so_far_has_every_token_read_first(params):
    desk = ahead()
    asked = {"prompt": "some prompt", "max_tokens": 12, "seed": 1} | params
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    assert len(desk.backend.steps) > 3
    assert desk.backend.n_ahead == 0


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"min_tokens": 6, "logit_bias": {EOS: 6.0}},
        {"stop": ["e", "xyz"]},
        {"n": 3},
        {"logprobs": 3},
        {"prompt_logprobs": 2},
        {"bad_token_ids": [97, 98]},
        {"allowed_token_ids": list(range(97, 110))},
        {"width": 3, "n": 2, "method": "sample"},
    ],
    ids=lambda params: "-".join(params) or "plain",
)
def test_who_needs_their_number_only_runs_ahead(params):
    desk = ahead()
    asked = {"prompt": "some prompt", "max_tokens": 12, "seed": 1, "temperature": 1.0} | params
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    assert desk.backend.n_ahead > 3


def test_who_waits_for_tokens_stops_the_others_as_long_as_it_is_there():
    desk = ahead()
    asked = [
        {"prompt": "long", "max_tokens": 30, "ignore_eos": True},
        {"prompt": "short", "max_tokens": 5, "ignore_eos": True, "repetition_penalty": 1.2},
    ]
    assert_equal_to_plain(desk, ask_all(desk, asked), asked)
    assert 20 < desk.backend.n_ahead < 28


@pytest.mark.parametrize(
    "params", [{"width": 3, "n": 3}, {"prompt_logprobs": 1}], ids=lambda params: next(iter(params))
)
def test_a_newcomer_that_reads_its_step_at_once_finds_nothing_unread(params):
    desk = ahead()
    asked = [
        {"prompt": "the first", "max_tokens": 30, "ignore_eos": True},
        {"prompt": "a newcomer", "max_tokens": 5, "ignore_eos": True} | params,
    ]
    ids = [desk.add(**asked[0])]
    for _ in range(3):
        desk.core.step()
    ids.append(desk.add(**asked[1]))
    desk.run()
    assert_equal_to_plain(desk, ids, asked)


@pytest.fixture
def steps_cost_the_same(monkeypatch):
    """However long they take here, so that as much is guessed each time."""
    monkeypatch.setattr(StepCost, "FIRST_ROWS", 32.0)
    monkeypatch.setattr(StepCost, "LIMITS", (32.0, 32.0))


def test_a_guess_is_made_from_tokens_that_are_read_and_where_there_is_none_the_engine_runs_ahead(steps_cost_the_same):
    def spoil(history, logits):
        logits[b"abcdefgh"[len(history) % 8] if len(history) < 60 else len(history) % 251] = 50.0

    desk = Desk(FakeAheadBackend(), start_speculation=SpeculationOptions().start)
    desk.backend.spoil = spoil
    asked = {"prompt": "bcdefghabcdefgha", "max_tokens": 90, "temperature": 0.0, "ignore_eos": True}
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    stats = desk.core.stats()
    assert stats["n_accepted_tokens"] > 20
    assert desk.backend.n_ahead > 10
    assert stats["n_steps"] < 70


def test_while_guesses_pay_no_step_is_lost_to_running_ahead(steps_cost_the_same):
    def spoil(history, logits):
        logits[b"abcdefgh"[len(history) % 8]] = 50.0

    asked = {"prompt": "bcdefghabcdefgha", "max_tokens": 60, "temperature": 0.0, "ignore_eos": True}
    n_steps = []
    for backend in (FakeAheadBackend(), FakeBackend()):
        desk = Desk(backend, start_speculation=SpeculationOptions().start)
        backend.spoil = spoil
        assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
        n_steps.append(desk.core.stats()["n_steps"])
    assert n_steps[0] == n_steps[1] < 30


def test_where_nothing_is_guessed_right_the_engine_soon_runs_ahead(steps_cost_the_same):
    desk = Desk(FakeAheadBackend(), start_speculation=SpeculationOptions().start)
    asked = {"prompt": "some prompt", "max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "seed": 1}
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    assert desk.backend.n_ahead > 35


@pytest.mark.parametrize(("n_accepted", "pays"), [(0, False), (1, False), (2, True), (40, True)])
def test_guesses_pay_that_give_a_tenth_of_the_sequences_a_token(n_accepted, pays):
    gain = Gain()
    for _ in range(40):
        gain.learn(n_accepted, 16)
    assert gain.is_worth_waiting == pays
    for _ in range(20):
        gain.learn(0, 16)
    assert not gain.is_worth_waiting


# -- who ends


def test_a_cancel_at_any_point_ends_one_and_leaves_the_other_as_it_is():
    asked = [
        {"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "seed": i, "stream": True, "n": 1 + i}
        for i, prompt in enumerate(("x" * 40, "another prompt"))
    ]
    for victim in (0, 1):
        for n_steps in range(12):
            desk = ahead(max_tokens_per_step=16)
            ids = [desk.add(**request) for request in asked]
            for _ in range(n_steps):
                desk.core.step()
            desk.core.cancel(ids[victim])
            n_sent = len(desk.sent[ids[victim]])
            desk.run()
            desk.assert_nothing_is_held()
            assert len(desk.sent[ids[victim]]) == n_sent
            assert_equal_to_plain(desk, [ids[1 - victim]], [asked[1 - victim]])


def test_everybody_cancelled_leaves_nothing_behind():
    desk = ahead()
    ids = [desk.add(prompt, max_tokens=20, ignore_eos=True) for prompt in PROMPTS]
    for _ in range(3):
        desk.core.step()
    for request_id in ids:
        desk.core.cancel(request_id)
    desk.assert_nothing_is_held()
    assert desk.core.step()  # a draw is read that is nobody's any more
    assert not desk.core.step()
    assert desk.ask("next", max_tokens=3, ignore_eos=True).outputs[0].finish_reason == "length"


def test_one_of_several_answers_ends_and_the_others_go_on_without_its_draws():
    asked = {"prompt": "abc", "n": 4, "max_tokens": 30, "logit_bias": {EOS: 2.5}, "seed": 5, "stream": True}
    desk = ahead()
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    reasons = [(len(c.token_ids), c.finish_reason) for c in desk.last("request-0").outputs]
    assert len({n for n, reason in reasons if reason == "stop"}) > 1


def test_who_gives_way_has_every_token_read_and_computes_them_again():
    asked = [{"prompt": prompt * 2, "max_tokens": 30, "ignore_eos": True, "seed": 3} for prompt in PROMPTS]
    desk = ahead(n_pages=9, max_model_len=80)
    assert_equal_to_plain(desk, ask_all(desk, asked), asked)
    assert desk.core.stats()["n_preemptions"] > 0
    assert desk.backend.n_ahead > 10


def test_answers_without_a_place_wait_with_their_first_token():
    asked = {"prompt": "a prompt", "n": 5, "max_tokens": 8, "ignore_eos": True, "seed": 2}
    desk = Desk(FakeAheadBackend(), max_num_seqs=2, start_speculation=lambda: None)
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])


def test_an_answer_that_finds_a_place_before_its_first_token_is_read_waits_for_that():
    asked = {"prompt": "a prompt", "n": 3, "max_tokens": 8, "ignore_eos": True, "seed": 2}
    desk = Desk(FakeAheadBackend(), max_num_seqs=2, start_speculation=lambda: None)
    other = desk.add("another prompt", max_tokens=20, ignore_eos=True)
    several = desk.add(**asked)
    desk.core.step()
    assert any(sequence.n_unread for sequence in desk.core.scheduler.waiting)
    desk.core.cancel(other)
    desk.run()
    desk.assert_nothing_is_held()
    assert_equal_to_plain(desk, [several], [asked])


# -- what goes wrong


def test_an_end_that_raises_ends_who_drew_and_nobody_else():
    desk = ahead()
    calls = iter(range(100))

    def break_down():
        if next(calls) == 3:
            raise RuntimeError("the copy failed")

    desk.backend.before_end = break_down
    ids = [desk.add(prompt, max_tokens=20, ignore_eos=True) for prompt in PROMPTS]
    for _ in range(4):
        desk.core.step()
    newcomer = {"prompt": "a newcomer", "max_tokens": 9, "ignore_eos": True}
    late = desk.add(**newcomer)
    desk.run()
    desk.assert_nothing_is_held()
    for request_id in ids:
        assert isinstance(desk.last(request_id), RequestFailedError)
        assert "RuntimeError: the copy failed" in str(desk.last(request_id))
        assert len(desk.sent[request_id]) == 1
    assert_equal_to_plain(desk, [late], [newcomer])


@pytest.mark.parametrize("n_good", [0, 1, 5])
def test_a_draw_that_cannot_be_begun_is_taken_alone_so_that_its_own_request_fails(n_good):
    desk = ahead()
    begin, sample = desk.backend.begin_sample, desk.backend.sample

    def raising(method):
        def called(rows, params, n_top):
            if ((params["seed"] == 1) & (params["position"] == n_good)).any():
                raise ValueError("got 0")
            return method(rows, params, n_top)

        return called

    desk.backend.begin_sample, desk.backend.sample = raising(begin), raising(sample)
    asked = [{"prompt": prompt, "max_tokens": 12, "ignore_eos": True, "seed": i} for i, prompt in enumerate(PROMPTS)]
    ids = ask_all(desk, asked)
    assert "ValueError: got 0" in str(desk.last(ids[1]))
    assert_equal_to_plain(desk, ids[::2], asked[::2])
    assert desk.core.stats()["n_finished"]["error"] == 1
    assert desk.backend.n_ahead > 5


def test_logits_that_are_not_finite_fail_their_request_and_nobody_finds_its_pages():
    desk = ahead()
    desk.backend.spoil = lambda history, logits: logits.fill(np.nan) if len(history) == 25 else None
    bad = {"prompt": "bad bad bad bad bad ", "max_tokens": 12, "ignore_eos": True}
    good = [{"prompt": prompt, "max_tokens": 5, "ignore_eos": True, "seed": 1} for prompt in PROMPTS]
    ids = ask_all(desk, [bad, *good])
    assert "not finite" in str(desk.last(ids[0]))
    assert_equal_to_plain(desk, ids, [bad, *good])
    assert desk.core.stats()["n_corrupted"] == 1
    assert desk.ask(**bad | {"max_tokens": 1}).metrics.n_cached_tokens == 0


def test_what_is_computed_behind_the_end_of_one_answer_does_not_harm_the_others():
    def spoil(history, logits):
        if history[-1] == EOS:
            logits.fill(np.nan)

    desk = ahead()
    desk.backend.spoil = spoil
    asked = {"prompt": "abc", "n": 4, "max_tokens": 30, "logit_bias": {EOS: 2.5}, "seed": 5}
    assert_equal_to_plain(desk, ask_all(desk, [asked]), [asked])
    assert desk.core.stats()["n_corrupted"] == 0


def test_what_is_computed_behind_a_draw_that_gave_no_token_is_never_found_again():
    desk = ahead()
    end = desk.backend.end_sample

    def no_token_left():
        tokens, *scores = end()
        tokens[0] = -2
        return tokens, *scores

    desk.backend.end_sample = no_token_left
    assert "needs a token to draw, got none" in str(desk.ask("fifteen tokens.", max_tokens=5, ignore_eos=True))
    desk.assert_nothing_is_held()
    assert desk.backend.cache.stats()["n_cached"] == 0


@pytest.mark.parametrize("n_failures", [1, 2])
def test_a_step_that_finds_no_memory_is_tried_again_with_every_token_read(n_failures):
    desk = ahead()
    n_left = [0]

    def find_no_memory():
        if n_left[0]:
            n_left[0] -= 1
            raise MemoryError

    desk.backend.before_step = find_no_memory
    asked = [{"prompt": prompt, "max_tokens": 9, "ignore_eos": True} for prompt in PROMPTS]
    ids = [desk.add(**request) for request in asked]
    desk.core.step()
    n_left[0] = n_failures
    desk.run()
    desk.assert_nothing_is_held()
    # The youngest gives way, when there is none for the second time.
    assert_equal_to_plain(desk, ids[: 4 - n_failures], asked[: 4 - n_failures])
    assert isinstance(desk.last(ids[2]), RequestFailedError) == (n_failures == 2)


def test_an_engine_is_closed_with_a_draw_that_nobody_read():
    backend = FakeAheadBackend()
    engine = make_engine(backend)
    expected = [1 + len(prompt) for prompt in PROMPTS]
    handles = [
        engine.submit(list(prompt.encode()), SamplingParams(max_tokens=n, ignore_eos=True), prompt=prompt)
        for prompt, n in zip(PROMPTS, expected, strict=True)
    ]
    assert [len(handle.result().outputs[0].token_ids) for handle in handles] == expected
    engine.submit([1, 2, 3], SamplingParams(max_tokens=200, ignore_eos=True))
    engine.close()
    assert backend.is_closed


@pytest.mark.parametrize("verb", ["step", "begin_sample", "end_sample"])
def test_a_device_that_is_lost_one_step_ahead_ends_the_engine(verb, monkeypatch):
    def lose(*_):
        raise DeviceLostError("[somewhere] the GPU is lost")

    backend = FakeAheadBackend()
    engine = make_engine(backend)
    handles = [
        engine.submit(list(prompt.encode()), SamplingParams(max_tokens=200, ignore_eos=True)) for prompt in PROMPTS
    ]
    for name in (verb, "sample"):
        monkeypatch.setattr(backend, name, lose)
    for handle in handles:
        with pytest.raises(EngineClosedError, match=r"its thread has died.*the GPU is lost"):
            handle.result()
    assert engine.is_closed


# -- anything at all


requests = st.fixed_dictionaries(
    {
        "prompt": st.binary(min_size=1, max_size=40).map(lambda data: bytes(byte % 4 + 97 for byte in data)),
        "max_tokens": st.integers(0, 24),
        "seed": st.integers(0, 3),
        "n": st.sampled_from([1, 1, 1, 2, 4]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "stream": st.booleans(),
        "logit_bias": st.sampled_from([{}, {EOS: 3.0}]),
        "logprobs": st.sampled_from([None, None, 2]),
    },
    optional={
        "repetition_penalty": st.just(1.3),
        "bad_words": st.just(["ab", "c"]),
        "prompt_logprobs": st.sampled_from([0, 2]),
        "stop": st.just("e"),
    },
).map(lambda request: request | {"min_tokens": request["max_tokens"] // 3})
searches = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["abca", "abcab" * 5]),
        "width": st.integers(1, 3),
        "max_tokens": st.integers(1, 8),
        "method": st.sampled_from(["beam", "sample"]),
    }
)
actions = st.lists(
    st.one_of(
        requests.map(lambda request: ("add", request)),
        requests.map(lambda request: ("add", request)),
        searches.map(lambda request: ("add", request)),
        st.integers(1, 6).map(lambda n_steps: ("step", n_steps)),
        st.integers(0, 20).map(lambda i: ("cancel", i)),
    ),
    max_size=25,
)


@settings(max_examples=100, deadline=None)
@given(
    actions=actions,
    n_pages=st.integers(6, 16),
    max_tokens_per_step=st.integers(4, 40),
    max_num_seqs=st.integers(3, 8),
    is_guessing=st.booleans(),
)
def test_whatever_comes_everybody_gets_what_he_gets_where_every_token_is_read_first(
    actions, n_pages, max_tokens_per_step, max_num_seqs, is_guessing
):
    backend = FakeAheadBackend(n_pages=n_pages, max_model_len=80, max_tokens_per_step=max_tokens_per_step)
    start_speculation = SpeculationOptions().start if is_guessing else lambda: None
    desk = Desk(backend, max_num_seqs=max_num_seqs, start_speculation=start_speculation)
    asked, cancelled = {}, set()
    for kind, value in actions:
        if kind == "add":
            asked[desk.add(**value)] = value
        elif kind == "step":
            for _ in range(value):
                desk.core.step()
        elif f"request-{value}" in asked and desk.last(f"request-{value}") is None:
            desk.core.cancel(f"request-{value}")
            cancelled.add(f"request-{value}")
    desk.run()
    desk.assert_nothing_is_held()
    whole = [request_id for request_id in asked if request_id not in cancelled]
    assert_equal_to_plain(desk, whole, [asked[request_id] for request_id in whole])
    for request_id in cancelled:
        lonely = plain()
        expected = lonely.ask(**asked[request_id])
        for got in desk.last(request_id).outputs if "width" not in asked[request_id] else ():
            answer = expected.outputs[got.index].token_ids if got.index < len(expected.outputs) else []
            assert got.token_ids == answer[: len(got.token_ids)]
