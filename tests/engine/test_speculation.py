"""Tokens guessed ahead change nothing but the number of steps, whoever guesses and however badly."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_decoder.backends import PromptLookup
from llm_decoder.errors import ConfigError, RequestFailedError
from llm_decoder.speculation import Speculation, SpeculationOptions, StepCost

EOS = ByteTokenizer.eos_token_id
NOTHING = np.zeros(0, np.int32)


class RandomDrafter:
    """Nearly always wrong."""

    def propose(self, tokens, max_tokens, min_chance):
        return np.random.default_rng(len(tokens)).integers(0, 258, max_tokens, np.int32)


class Alphabet:
    """What `chanting` is likely to say: mostly right."""

    def propose(self, tokens, max_tokens, min_chance):
        return np.array([(int(tokens[-1]) + 1 + i) % 256 for i in range(max_tokens)], np.int32)


class Unlimited(Speculation):
    """Drafts all it may in every step, whatever came of it before."""

    FIRST_CREDIT = 1e9

    def learn(self, n_drawn, n_drafted, n_accepted, n_rows, fixed_rows):
        pass


def unlimited(make_drafter, max_tokens=6):
    return lambda: Unlimited(make_drafter(), max_tokens)


def chanting(history, logits):
    """Says the byte after its last one more often than not, so that drafts are right for a while and then wrong."""
    logits[(int(history[-1]) + 1) % 256] += 5.0


def backend(**sizes):
    made = FakeBackend(**sizes)
    made.spoil = chanting
    return made


def without(made=None, **desk):
    return Desk(made or backend(), start_speculation=lambda: None, **desk)


def contents(item):
    """All that a request was answered, but for its times and the way there."""
    if isinstance(item, Exception):
        return str(item)
    return (item.prompt_token_ids, item.outputs, item.prompt_logprobs)


def told(items):
    """What a stream's consumer makes of its events: of each answer all text, tokens and log probabilities."""
    answers = {}
    for event in items:
        if isinstance(event, Exception):
            answers["error"] = str(event)
            continue
        text, token_ids, logprobs, reason = answers.get(event.index, ("", [], [], None))
        answers[event.index] = (
            text + event.text,
            token_ids + event.token_ids,
            logprobs + (event.logprobs or []),
            event.finish_reason or reason,
        )
    return answers


def test_right_drafts_save_steps_and_are_counted():
    plain = without()
    expected = plain.ask("abc", temperature=0, max_tokens=40, ignore_eos=True)
    desk = Desk(backend(), start_speculation=unlimited(Alphabet, 3))
    output = desk.ask("abc", temperature=0, max_tokens=40, ignore_eos=True)
    assert contents(output) == contents(expected)
    stats, metrics = desk.core.stats(), output.metrics
    assert 10 < metrics.n_accepted_tokens < metrics.n_drafted_tokens
    # A step draws one token and those of its drafts that are right.
    assert stats["n_steps"] == plain.core.stats()["n_steps"] - metrics.n_accepted_tokens
    assert (stats["n_drafted_tokens"], stats["n_accepted_tokens"]) == (
        metrics.n_drafted_tokens,
        metrics.n_accepted_tokens,
    )
    assert stats["n_computed_tokens"] == plain.core.stats()["n_computed_tokens"] + (
        metrics.n_drafted_tokens - metrics.n_accepted_tokens
    )
    assert (expected.metrics.n_drafted_tokens, plain.core.stats()["n_drafted_tokens"]) == (0, 0)


def test_an_answer_has_no_token_more_than_it_may():
    for max_tokens in range(1, 12):
        desk = Desk(backend(), start_speculation=unlimited(Alphabet))
        output = desk.ask("abc", temperature=0, max_tokens=max_tokens, ignore_eos=True)
        assert len(output.outputs[0].token_ids) == max_tokens
        assert sum(count for step in desk.backend.steps for _, count in step) <= 3 + max_tokens - 1 + (
            output.metrics.n_drafted_tokens - output.metrics.n_accepted_tokens
        )


def test_an_end_token_among_the_drafts_ends_the_answer_and_what_is_cached_of_it():
    class SaysItAgain:
        def propose(self, tokens, max_tokens, min_chance):
            return np.array([*b"cdef" * 10, 0, 0, 0, EOS, *b"cdef" * 20], np.int32)[len(tokens) :][:max_tokens]

    def spoil(history, logits):
        logits[SaysItAgain().propose(history, 1, 0.0)] = 50.0

    made = FakeBackend()
    made.spoil = spoil
    desk = Desk(made, start_speculation=unlimited(SaysItAgain, 60))
    output = desk.ask("cdef", temperature=0, max_tokens=100)
    assert output.outputs[0].token_ids == [*b"cdef" * 9, 0, 0, 0, EOS]
    assert (output.metrics.n_accepted_tokens, output.metrics.n_drafted_tokens) == (39, 60)
    # 43 tokens and the end token, which is drawn and never computed.
    assert made.cache.stats()["n_cached"] == 2


@pytest.mark.parametrize(
    "params",
    [
        {"bad_words": ["ef"]},
        {"bad_words": ["k", "fghi"], "temperature": 0.5},
        {"min_tokens": 9},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0, "frequency_penalty": -1.0},
        {"temperature": 0.9, "seed": 5, "logprobs": 2},
    ],
)
def test_a_row_behind_a_draft_is_drawn_from_as_if_the_draft_had_been_drawn(params):
    def spoil(history, logits):
        chanting(history, logits)
        logits[EOS] = 3.0  # drawn where nothing forbids it and the chant fails

    def run(start_speculation):
        made = FakeBackend()
        made.spoil = spoil
        desk = Desk(made, start_speculation=start_speculation)
        outputs = [desk.ask(prompt, max_tokens=60, **{"temperature": 0, **params}) for prompt in ("abc", "bcd", "xbc")]
        return [contents(output) for output in outputs], desk.core.stats()["n_accepted_tokens"]

    expected, _ = run(lambda: None)
    found, n_accepted = run(unlimited(Alphabet))
    assert found == expected
    assert n_accepted > 10


def test_an_answer_may_end_behind_drafts_that_make_it_long_enough():
    made = FakeBackend()

    def spoil(history, logits):
        logits[(int(history[-1]) + 1) % 256] = 30.0
        logits[EOS] = 50.0

    made.spoil = spoil
    output = Desk(made, start_speculation=unlimited(Alphabet, 20)).ask(
        "abc", temperature=0, max_tokens=40, min_tokens=9
    )
    assert len(output.outputs[0].token_ids) == 10
    assert output.outputs[0].finish_reason == "stop"
    assert output.metrics.n_accepted_tokens == 8


def test_a_rejected_draft_never_reaches_the_prefix_index():
    desk = Desk(backend(), start_speculation=unlimited(RandomDrafter, 40))
    prompt = list(range(40))
    output = desk.ask(prompt, temperature=0, max_tokens=60, ignore_eos=True)
    whole = prompt + output.outputs[0].token_ids
    cache = desk.backend.cache
    desk.assert_nothing_is_held()
    assert cache.stats()["n_cached"] == (len(whole) - 1) // cache.page_size
    again = desk.ask(whole, temperature=0, max_tokens=10, ignore_eos=True)
    assert again.metrics.n_cached_tokens == (len(whole) - 1) // cache.page_size * cache.page_size
    assert contents(again) == contents(without().ask(whole, temperature=0, max_tokens=10, ignore_eos=True))


def test_drafts_give_way_before_anybody_does():
    def run(start_speculation):
        desk = Desk(backend(n_pages=6, max_model_len=96), start_speculation=start_speculation)
        sizes = ((31, 4), (31, 40))  # three pages, and five when the first has let go of its own
        requests = [desk.add("x" * n, temperature=0, max_tokens=m, ignore_eos=True) for n, m in sizes]
        desk.run()
        desk.assert_nothing_is_held()
        return [contents(desk.last(request)) for request in requests], desk.core.stats()

    expected, plain = run(lambda: None)
    found, stats = run(unlimited(RandomDrafter, 40))
    assert found == expected
    assert plain["n_preemptions"] == stats["n_preemptions"] == 0
    assert stats["n_drafted_tokens"] > 0


def test_drafts_take_what_prompts_leave_of_a_step():
    desk = Desk(backend(max_tokens_per_step=16), start_speculation=unlimited(Alphabet, 6))
    desk.add("ab", temperature=0, max_tokens=40, ignore_eos=True)
    desk.core.step()
    desk.add("x" * 40, temperature=0, max_tokens=2, ignore_eos=True)
    for _ in range(3):
        desk.core.step()
    assert [[count for _, count in step] for step in desk.backend.steps] == [[2], [1, 15], [1, 15], [1 + 5, 10]]


def test_no_more_rows_are_drafted_than_a_step_has_room_for(monkeypatch):
    monkeypatch.setattr("llm_decoder.engine_core.MAX_ROWS_BYTES", 5 * 4 * 258)
    desk = Desk(backend(), start_speculation=unlimited(Alphabet, 30))
    desk.add("ab", temperature=0, max_tokens=20, ignore_eos=True)
    desk.add("cd", temperature=0, max_tokens=20, ignore_eos=True)
    desk.run()
    assert max(sum(count for _, count in step) for step in desk.backend.steps[1:]) == 5


def test_drafts_are_given_up_when_a_step_finds_no_memory_for_their_rows():
    desk = Desk(backend(), start_speculation=unlimited(Alphabet))
    calls = itertools.count()

    def before_step():
        if next(calls) == 4:
            raise MemoryError

    desk.backend.before_step = before_step
    output = desk.ask("abc", temperature=0, max_tokens=30, ignore_eos=True)
    assert contents(output) == contents(without().ask("abc", temperature=0, max_tokens=30, ignore_eos=True))


@pytest.mark.parametrize("broken_at", [6, 9, 10, 11, 12])
def test_numbers_that_break_behind_right_drafts_are_told_after_their_tokens(broken_at):
    def spoil(history, logits):
        chanting(history, logits)
        if len(history) == broken_at:
            logits[:] = np.nan

    def run(start_speculation):
        made = FakeBackend()
        made.spoil = spoil
        desk = Desk(made, start_speculation=start_speculation)
        request = desk.add("abc", temperature=0, max_tokens=30, ignore_eos=True, stream=True)
        desk.run()
        desk.assert_nothing_is_held()
        assert isinstance(desk.last(request), RequestFailedError)
        return told(desk.sent[request])

    assert run(unlimited(Alphabet)) == run(lambda: None)


def test_numbers_that_break_behind_a_wrong_draft_are_nobodys():
    made = backend()

    def spoil(history, logits):
        chanting(history, logits)
        if 255 in history.tolist():
            logits[:] = np.nan

    class Poison:
        def propose(self, tokens, max_tokens, min_chance):
            return np.array([255] * max_tokens, np.int32)

    made.spoil = spoil
    params = {"temperature": 0, "max_tokens": 20, "ignore_eos": True, "bad_token_ids": [255]}
    output = Desk(made, start_speculation=unlimited(Poison)).ask("abc", **params)
    assert contents(output) == contents(without().ask("abc", **params))


def test_a_request_cancelled_between_drafts_leaves_no_page_behind():
    desk = Desk(backend(), start_speculation=unlimited(Alphabet, 20))
    request = desk.add("hello " * 5, seed=1, max_tokens=100, n=3, ignore_eos=True)
    other = desk.add("other", temperature=0, max_tokens=30, ignore_eos=True)
    for _ in range(4):
        desk.core.step()
    assert desk.core.stats()["n_drafted_tokens"] > 0
    desk.core.cancel(request)
    desk.run()
    desk.assert_nothing_is_held()
    expected = without().ask("other", temperature=0, max_tokens=30, ignore_eos=True)
    assert contents(desk.last(other)) == contents(expected)


def test_what_sampling_raises_for_one_request_hurts_nobody_else():
    made = backend()
    sample = made.sample

    def failing(rows, params, n_top):
        if 7 in params["seed"] and (params["position"] > 8).any():
            raise RuntimeError("broken")
        return sample(rows, params, n_top)

    made.sample = failing
    desk = Desk(made, start_speculation=unlimited(Alphabet))
    desk.backend.sample = failing
    seeds = {}
    for seed in (5, 6):
        seeds[seed] = desk.add("abc", seed=seed, max_tokens=30, ignore_eos=True)
    desk.core.requests[seeds[6]].sequences[0].seed = 7
    desk.run()
    assert isinstance(desk.last(seeds[6]), RequestFailedError)
    assert contents(desk.last(seeds[5])) == contents(without().ask("abc", seed=5, max_tokens=30, ignore_eos=True))
    desk.assert_nothing_is_held()


REQUEST = st.fixed_dictionaries(
    {"prompt": st.integers(1, 60), "max_tokens": st.integers(1, 40)},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "seed": st.integers(0, 3),
        "n": st.integers(1, 3),
        "top_k": st.sampled_from([0, 4]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.7]),
        "frequency_penalty": st.sampled_from([0.0, -0.5]),
        "min_tokens": st.integers(0, 1),
        "stop": st.sampled_from([["k"], ["st", "rs"], ["hij"]]),
        "stop_token_ids": st.sampled_from([[ord("m")], [ord("z")]]),
        "bad_words": st.sampled_from([["ef"], ["g", "jkl"]]),
        "logit_bias": st.just({ord("q"): 4.0, ord("r"): -2.0}),
        "allowed_token_ids": st.just(list(range(90, 130))),
        "logprobs": st.integers(0, 2),
        "prompt_logprobs": st.just(1),
        "stream": st.booleans(),
        "ignore_eos": st.booleans(),
    },
)


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=4),
    drafter=st.sampled_from([RandomDrafter, Alphabet, PromptLookup]),
    max_tokens=st.integers(1, 20),
    has_limits=st.booleans(),
    n_pages=st.sampled_from([12, 16, 64]),
    chunk=st.sampled_from([5, 17, 64]),
    max_num_seqs=st.sampled_from([2, 8]),
    more_groups=st.sampled_from([(), ((24, 20),)]),
)
def test_answers_are_the_same_with_any_drafter(
    requests, drafter, max_tokens, has_limits, n_pages, chunk, max_num_seqs, more_groups
):
    def run(start_speculation):
        made = backend(n_pages=n_pages, max_tokens_per_step=chunk, more_groups=more_groups)
        desk = Desk(made, min(max_num_seqs, chunk), start_speculation=start_speculation)
        draw = random.Random(0)
        for request in requests:
            length = request["prompt"]
            prompt = [97 + draw.randrange(26) for _ in range(length // 2)] + [97 + i % 9 for i in range(length)]
            desk.add(prompt, **{name: value for name, value in request.items() if name != "prompt"})
        desk.run()
        desk.assert_nothing_is_held()
        return [
            (contents(desk.last(name)), told(desk.sent[name]) if stream else None) for name, stream in streams(desk)
        ]

    def streams(desk):
        return [(name, request.get("stream")) for name, request in zip(desk.sent, requests, strict=True)]

    kind = Speculation if has_limits else Unlimited
    assert run(lambda: kind(drafter(), max_tokens)) == run(lambda: None)


# -- how much is drafted


class Never:
    """Counts what it is asked for."""

    def __init__(self):
        self.n_asked = 0

    def propose(self, tokens, max_tokens, min_chance):
        self.n_asked += max_tokens
        return np.zeros(max_tokens, np.int32)


@pytest.mark.parametrize("fixed_rows", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("n_rows", [1, 4, 32, 500])
def test_drafts_that_are_never_right_cost_a_small_share_of_the_steps(n_rows, fixed_rows):
    speculation = Speculation(drafter := Never(), 7)
    for _ in range(2000):
        draft = speculation.draft(NOTHING, 100)
        speculation.learn(1, 0 if draft is None else len(draft), 0, n_rows, fixed_rows)
    # In rows; a step costs n_rows and fixed_rows, of which each of its sequences pays its part.
    cost_of_steps = 2000 * (n_rows + fixed_rows) / n_rows
    assert 0 < drafter.n_asked <= Speculation.FIRST_CREDIT + Speculation.SHARE * cost_of_steps


@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 80)), max_size=80),
    max_tokens=st.integers(1, 16),
    fixed_rows=st.floats(1, 64),
)
def test_what_wrong_drafts_cost_has_been_saved_or_earned_before(steps, max_tokens, fixed_rows):
    speculation = Speculation(Never(), max_tokens)
    allowed = Speculation.FIRST_CREDIT
    for n_right, n_rows in steps:
        draft = speculation.draft(NOTHING, 100)
        n_drafted = 0 if draft is None else len(draft)
        assert n_drafted <= min(allowed, max_tokens)
        n_accepted = min(n_right, n_drafted)
        saved = fixed_rows / n_rows
        allowed += Speculation.SHARE * (1 + saved) * (1 + n_accepted) + saved * n_accepted - (n_drafted - n_accepted)
        speculation.learn(1 + n_accepted, n_drafted, n_accepted, n_rows, fixed_rows)


def asked_chance(n_rows, fixed_rows):
    asked = []

    class Notes:
        def propose(self, tokens, max_tokens, min_chance):
            asked.append(min_chance)
            return NOTHING

    speculation = Speculation(Notes(), 7)
    speculation.learn(1, 0, 0, n_rows, fixed_rows)
    assert speculation.draft(NOTHING, 100) is None
    return asked[-1]


def test_the_dearer_a_row_is_the_surer_a_draft_must_be():
    chances = [asked_chance(n_rows, fixed_rows) for n_rows, fixed_rows in [(1, 64), (1, 8), (2, 8), (8, 8), (500, 1)]]
    assert chances == sorted(chances)
    assert chances[0] < 0.05
    assert chances[-1] == Speculation.MOST_CHANCE


@pytest.mark.parametrize("fixed_rows", [2.0, 8.0, 40.0])
def test_what_a_row_costs_is_learnt_from_the_steps_times(fixed_rows):
    cost = StepCost()
    for n_rows in [1, 1, 4, 1, 9, 1, 1, 16] * 40:
        cost.learn(n_rows, 1e-3 * (n_rows + fixed_rows))
    assert cost.fixed_rows == pytest.approx(fixed_rows, rel=0.1)


def test_steps_of_one_size_or_nonsense_tell_nothing_impossible_of_a_rows_cost():
    cost = StepCost()
    for _ in range(100):
        cost.learn(8, 1e-3)
    assert cost.fixed_rows == pytest.approx(StepCost.FIRST_ROWS)
    for i in range(1000):
        cost.learn(1 + i % 7, 1e-3 * (10 - i % 7) if i % 50 else 100.0)  # more rows take less time
        assert StepCost.LIMITS[0] <= cost.fixed_rows <= StepCost.LIMITS[1]
    for i in range(1000):
        cost.learn(1 + i % 7, 1e-3 * (1 + i % 7) ** 2)
        assert StepCost.LIMITS[0] <= cost.fixed_rows <= StepCost.LIMITS[1]


@pytest.mark.parametrize(("n_rows", "fixed_rows", "most"), [(1, 64, 0), (1, 3, 4), (8, 4, 10)])
def test_looks_in_vain_are_made_less_often_the_dearer_a_row_is(n_rows, fixed_rows, most):
    class Nothing:
        def propose(self, tokens, max_tokens, min_chance):
            return NOTHING

    speculation, pauses = Speculation(Nothing(), 7), []
    for _ in range(6):
        speculation.learn(1, 0, 0, n_rows, fixed_rows)
        assert speculation.draft(NOTHING, 100) is None
        pauses.append(speculation.pause)
    assert pauses == [min(pause, most) for pause in (1, 3, 7, 15, 31, 63)]


def test_options_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="speculation"):
        SpeculationOptions("draft-model")
    for count in (0, 65, 1.5, None, True):
        with pytest.raises(ConfigError, match="speculative_tokens"):
            SpeculationOptions(max_tokens=count)
    assert SpeculationOptions("none").start() is None


# -- prompt look-up


def looked_up(tokens, max_tokens=4):
    return PromptLookup().propose(np.array(tokens, np.int32), max_tokens, 0.0).tolist()


def test_what_followed_the_newest_tokens_before_is_proposed():
    assert looked_up([1, 2, 3, 4, 5, 6, 7, 1, 2], 3) == [3, 4, 5]
    assert looked_up([1, 2, 3, 4, 5, 6, 7, 9, 2], 3) == [3, 4, 5]


def test_the_longest_run_counts_and_what_followed_it_most_often_and_then_latest():
    assert looked_up([5, 6, 1, 2, 7, 9, 9, 1, 2, 8, 5, 6, 1, 2], 1) == [7]
    assert looked_up([1, 2, 7, 3, 1, 2, 8, 4, 1, 2], 1) == [8]
    assert looked_up([1, 2, 7, 3, 1, 2, 7, 5, 1, 2, 8, 4, 1, 2], 2) == [7, 5]


def test_a_run_that_overlaps_what_follows_it_goes_round():
    assert looked_up([9, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert looked_up([3, 3, 3], 4) == [3, 3, 3, 3]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]])
def test_nothing_is_proposed_for_tokens_that_stand_nowhere_else(tokens):
    assert looked_up(tokens) == []


def test_nothing_is_guessed_after_runs_that_mislead_and_much_after_those_that_do_not():
    rng = np.random.default_rng(1)
    text = rng.permutation(5000)[:300].astype(np.int32)
    lookup, sequence, lengths = PromptLookup(), list(text), []

    def grow(tokens):
        for token in tokens:
            sequence.append(int(token))
            lengths.append(len(lookup.propose(np.array(sequence, np.int32), 15, 0.3)))

    grow(text[:60])
    assert lengths[-1] == 15
    for at in range(0, 200, 2):
        grow([text[at], text[299 - at]])  # what follows a token never does again
    assert lengths[-1] == 0
    grow(text[:100])
    assert lengths[-1] == 15


@pytest.mark.parametrize(
    ("tokens", "drafted"),
    [
        ([1, 2, 3, 4, 8, 1, 2, 3, 4, 9, 1, 2], [3, 4]),
        ([1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2], [3]),  # 4 or 5
        ([1, 2, 3, 4, 8, 1, 2], [3]),  # once only
    ],
)
def test_more_is_guessed_where_all_that_was_found_goes_on_alike(tokens, drafted):
    assert PromptLookup().propose(np.array(tokens, np.int32), 15, 0.4).tolist() == drafted


def naive(tokens, max_tokens):
    """The same by comparing everything; for runs that occur less often than are looked at."""
    n_tokens = len(tokens)
    for length in range(min(8, n_tokens - 1), 0, -1):
        ends = [end for end in range(n_tokens - 1, length - 1, -1) if tokens[end - length : end] == tokens[-length:]]
        if ends:
            break
    else:
        return []
    ends, draft = ends[:16], []
    for i in range(max_tokens):
        following = [[*tokens, *draft][end + i] for end in ends]
        draft.append(max(following, key=following.count))
        ends = [end for end, token in zip(ends, following, strict=True) if token == draft[-1]]
    return draft


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=60) | st.lists(st.integers(0, 30), max_size=600),
    steps=st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_a_sequence_that_grows_is_looked_up_like_one_that_is_there_at_once(tokens, steps):
    lookup, n_tokens = PromptLookup(), 0
    for step in steps:
        n_tokens += step
        if n_tokens > len(tokens):
            return
        found = lookup.propose(np.array(tokens[:n_tokens], np.int32), 3, 0.0).tolist()
        assert found == naive(tokens[:n_tokens], 3)


def test_a_long_prompt_of_a_large_vocabulary_is_found_again_nearly_everywhere():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1 << 31, 20_000).astype(np.int32)
    n_found = 0
    for begin in range(0, 19_000, 100):
        whole = np.concatenate([tokens, tokens[begin : begin + 10]])
        n_found += np.array_equal(PromptLookup().propose(whole, 5, 0.0), tokens[begin + 10 : begin + 15])
    assert n_found == 190
