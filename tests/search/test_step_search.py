"""Search by steps in the engine, against a plain one: whole steps are drawn, scored, kept and let go of."""

import itertools
import random
import re
import threading

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend, fake_logits, make_engine
from sampling_reference import reference_token
from search_reference import log_softmax, step_search

from llm_decoder import LLM, EngineClosedError, InvalidRequestError, RequestFailedError, SearchParams
from llm_decoder.sampling import derive_seed

PROMPT = "once upon a time"
LETTERS = list(range(97, 105))
LONG_S = 60


def ends_now_and_then(history):
    return 4.0 * (history.sum() % 3 == 0)


def backend(**options):
    made = FakeBackend(**options)

    def spoil(history, logits):
        logits[256] += ends_now_and_then(history)

    made.spoil = spoil
    return made


def ask(desk=None, prompt=PROMPT, **params):
    desk = desk or Desk(backend())
    output = desk.ask(prompt, method="steps", **params)
    assert not isinstance(output, Exception), output
    desk.assert_nothing_is_held()
    return output


def answers_of(output):
    return [answer.token_ids for answer in output.outputs]


def logits_behind(tokens):
    history = np.array([*PROMPT.encode(), *tokens], np.int32)
    logits = fake_logits(history, 258)
    logits[256] += ends_now_and_then(history)
    return logits


def expected(*, seed=0, allowed=LETTERS, values_of=None, edits=None, **rules):
    """The answers of the plain search, the best first. values_of: of token lists; None = mean log probabilities."""

    def draw(tokens, stream):
        p = {"temperature": 1.0, "seed": derive_seed(seed, stream), "position": len(tokens), "allowed": allowed}
        return reference_token(logits_behind(tokens), p | (edits(tokens) if edits else {}))

    values_of = values_of or mean_logprobs
    kept = step_search(draw, values_of, **rules)
    values = dict(zip(map(tuple, kept), values_of(kept), strict=True))
    return sorted(kept, key=lambda tokens: -values[tuple(tokens)])


def mean_logprobs(answers):
    def mean(tokens):
        return sum(float(log_softmax(logits_behind(tokens[:i]))[token]) for i, token in enumerate(tokens)) / len(tokens)

    return [mean(tokens) for tokens in answers]


def text_of(tokens):
    return bytes(token for token in tokens if token < 256).decode()


def vowels(prompt, texts):
    """A process reward: where an answer goes is seen in all of its steps."""
    return [sum(text.count(vowel) for vowel in "ae") - len(text) / 7 for text in texts]


# -- the search


@pytest.mark.parametrize(("width", "branches"), [(1, 1), (1, 6), (4, 1), (4, 2), (3, 5)])
@pytest.mark.parametrize("separator", ["a", "ab"])
def test_steps_are_those_of_the_plain_search(width, branches, separator):
    shape = {"width": width, "branches": branches}
    output = ask(n=width, max_tokens=24, seed=5, separator=separator, step_tokens=7, allowed_token_ids=LETTERS, **shape)
    found = expected(
        seed=5, max_new=24, ends_step=lambda step: separator in text_of(step) or len(step) == 7, ends=(256,), **shape
    )
    assert answers_of(output) == found
    assert [answer.finish_reason for answer in output.outputs] == ["length"] * width


@pytest.mark.parametrize("seed", range(6))
def test_finished_answers_keep_their_places(seed):
    shape = {"width": 4, "branches": 2}
    allowed = [*LETTERS, 256]
    output = ask(n=4, max_tokens=20, seed=seed, separator="b", step_tokens=5, allowed_token_ids=allowed, **shape)
    found = expected(
        seed=seed,
        allowed=allowed,
        max_new=20,
        ends_step=lambda step: "b" in text_of(step) or len(step) == 5,
        ends=(256,),
        **shape,
    )
    assert answers_of(output) == found
    reasons = ["stop" if tokens[-1] == 256 else "length" for tokens in found]
    assert [answer.finish_reason for answer in output.outputs] == reasons


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("normalise", ["none", "sigmoid", "zscore"])
def test_a_process_reward_decides_which_steps_go_on(alpha, normalise):
    def values_of(answers):
        raw = np.array(vowels("", [text_of(tokens) for tokens in answers]), np.float64)
        norm = {
            "none": lambda: raw,
            "sigmoid": lambda: 1 / (1 + np.exp(-raw)),
            "zscore": lambda: (raw - raw.mean()) / (raw.std() or 1.0),
        }[normalise]()
        return (alpha * norm + (1 - alpha) * np.array(mean_logprobs(answers))).tolist()

    rules = {"width": 3, "branches": 3}
    options = {"separator": "b", "step_tokens": 6, "allowed_token_ids": LETTERS}
    output = ask(n=3, max_tokens=18, scorer=vowels, alpha=alpha, normalise=normalise, **options, **rules)
    found = expected(
        max_new=18, ends_step=lambda step: "b" in text_of(step) or len(step) == 6, values_of=values_of, **rules
    )
    assert answers_of(output) == found
    assert [answer.rerank_score for answer in output.outputs] == vowels("", [text_of(tokens) for tokens in found])
    np.testing.assert_allclose([answer.final_score for answer in output.outputs], values_of(found), rtol=1e-5)
    assert sorted(answer.beam_rank for answer in output.outputs) == [0, 1, 2]


def test_a_scorer_reads_what_the_answers_have_become_once_a_step():
    calls = []

    def scorer(prompt, texts):
        calls.append((prompt, texts))
        return vowels(prompt, texts)

    output = ask(
        width=2,
        branches=3,
        n=2,
        max_tokens=12,
        step_tokens=4,
        separator="Z",
        allowed_token_ids=LETTERS,
        scorer=scorer,
        query="the query",
    )
    assert [len(texts) for _, texts in calls] == [6, 6, 6]
    assert {prompt for prompt, _ in calls} == {"the query"}
    assert [{len(text) for text in texts} for _, texts in calls] == [{4}, {8}, {12}]
    for earlier, later in itertools.pairwise(calls):
        assert {text[:-4] for text in later[1]} <= set(earlier[1])
    assert {answer.text for answer in output.outputs} <= set(calls[-1][1])


@pytest.mark.parametrize("scorer", ["logprob", "never asked"])
def test_a_scorer_without_weight_is_not_asked(scorer):
    def never(prompt, texts):
        raise AssertionError

    asked = {"scorer": never, "alpha": 0.0} if scorer == "never asked" else {"scorer": "logprob", "alpha": 1.0}
    output = ask(width=2, n=2, max_tokens=12, step_tokens=4, **asked)
    assert answers_of(output) == answers_of(ask(width=2, n=2, max_tokens=12, step_tokens=4))
    assert {(answer.rerank_score, answer.final_score) for answer in output.outputs} == {(None, None)}


@pytest.mark.parametrize("separator", ["a", "Z"])
def test_width_one_with_one_branch_is_plain_sampling_with_that_seed(separator):
    params = {"max_tokens": 30, "seed": 7, "temperature": 0.9, "logprobs": 2, "allowed_token_ids": LETTERS}
    output = ask(width=1, branches=1, separator=separator, step_tokens=4, **params)
    plain = Desk(backend()).ask(PROMPT, **params)
    (found,), (sampled,) = output.outputs, plain.outputs
    assert (found.token_ids, found.text, found.logprobs) == (sampled.token_ids, sampled.text, sampled.logprobs)
    assert found.cumulative_logprob == sampled.cumulative_logprob


def test_without_a_separator_and_with_room_it_is_best_of_n():
    params = {"n": 3, "max_tokens": 9, "seed": 2}
    output = ask(width=3, branches=2, separator="never", step_tokens=9, **params)
    samples = Desk(backend()).ask(PROMPT, width=6, method="sample", **params)
    assert answers_of(output) == answers_of(samples)


def test_what_is_drawn_twice_takes_the_place_of_nothing_else():
    """Greedy draws are all the same; others are the same now and then."""
    output = ask(width=3, branches=2, n=3, max_tokens=6, step_tokens=2, temperature=0.0)
    assert len(set(map(tuple, answers_of(output)))) == 1
    output = ask(width=3, branches=3, n=3, max_tokens=2, step_tokens=1, allowed_token_ids=[97, 98])
    assert len(set(map(tuple, answers_of(output)))) == 3


# -- where a step ends


class WordTokenizer(ByteTokenizer):
    """Its A stands for several characters."""

    def decode(self, ids, skip_special_tokens=True):
        return super().decode(ids).replace("A", "x;y")


def steps_of(output):
    """The tokens of each step of the best answer, by the tree: the beam_score changes to a scorer's where one ends."""
    path = output.tree.path(output.outputs[0].tree_leaf)
    steps, begin = [], 0
    for i, node in enumerate(path):
        if node.score == 1000.0:
            steps.append([node.token_id for node in path[begin : i + 1]])
            begin = i + 1
    assert begin == len(path)
    return steps


def written(text, separator, tokenizer=None, **params):
    """The steps of a model that writes this."""
    made = FakeBackend()
    script = [*text.encode(), 256]

    def spoil(history, logits):
        logits[script[min(len(history) - len(PROMPT), len(script) - 1)]] += 50.0

    made.spoil = spoil
    desk = Desk(made, tokenizer=tokenizer)
    output = ask(
        desk,
        width=1,
        branches=2,
        separator=separator,
        max_tokens=64,
        scorer=lambda p, c: [1000] * len(c),
        alpha=1.0,
        **params,
    )
    return [
        bytes(token for token in step if token < 256).decode("utf-8", "surrogateescape") for step in steps_of(output)
    ]


def test_a_step_ends_with_its_separator():
    assert written("one\ntwo\n\nend", "\n") == ["one\n", "two\n", "\n", "end"]


def test_a_separator_may_span_tokens():
    assert written("one\n\ntwo\nthree\n\n\nend", "\n\n") == ["one\n\n", "two\nthree\n\n", "\nend"]


def test_a_separator_may_be_inside_a_token():
    assert written("1A2A3", ";", WordTokenizer()) == ["1A", "2A", "3"]


def test_a_separator_may_be_a_character_of_several_tokens():
    assert written("one→two→", "→") == ["one→", "two→", ""]


def test_a_step_without_its_separator_ends_with_step_tokens():
    assert written("one two three;four", ";", step_tokens=5) == ["one t", "wo th", "ree;", "four"]


def test_text_that_repeats_itself_is_not_drafted_past_the_end_of_a_step():
    line = "the same line again\n"
    assert written(line * 3, "\n") == [line] * 3 + [""]


def test_a_character_may_be_cut_by_the_end_of_a_step():
    """Each branch puts it together for itself."""
    steps = written("a→→b→c", "Z", step_tokens=2, stop=["→b"])
    assert b"".join(step.encode("utf-8", "surrogateescape") for step in steps).decode() == "a→→b"


def test_what_a_stop_string_may_become_still_ends_a_step():
    assert written("one\ntwo\n\nthree", "\n", stop=["\n\n"]) == ["one\n", "two\n", "\n"]


# -- what sampling can, steps can


def test_stop_strings_end_answers_and_are_cut_off():
    whole = ask(width=2, n=2, max_tokens=10, allowed_token_ids=LETTERS, step_tokens=3)
    stop = whole.outputs[0].text[4:6]
    output = ask(width=2, n=2, max_tokens=10, allowed_token_ids=LETTERS, step_tokens=3, stop=[stop])
    assert any(answer.stop_reason == stop for answer in output.outputs)
    for answer in output.outputs:
        assert stop not in answer.text
        assert (answer.finish_reason == "stop") == (answer.stop_reason == stop)
        assert bytes(answer.token_ids).decode() == answer.text + (stop if answer.stop_reason else "")


def test_no_answer_ends_before_min_tokens():
    output = ask(width=3, n=3, max_tokens=12, min_tokens=6, step_tokens=3)
    assert all(len(answer.token_ids) >= 6 for answer in output.outputs)
    found = expected(
        width=3,
        branches=2,
        max_new=12,
        ends_step=lambda step: len(step) == 3 or 10 in step,
        ends=(256,),
        allowed=[],
        edits=lambda tokens: {"banned": [256]} if len(tokens) < 6 else {},
    )
    assert answers_of(output) == found


def test_penalties_and_biases_follow_each_branch():
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.8, "presence_penalty": 0.4}
    output = ask(
        width=3, n=3, max_tokens=12, step_tokens=4, allowed_token_ids=LETTERS, logit_bias={97: 3.0}, **penalties
    )
    found = expected(
        width=3,
        branches=2,
        max_new=12,
        ends_step=lambda step: len(step) == 4,
        edits=lambda tokens: {"prompt": list(PROMPT.encode()), "output": tokens, "bias": {97: 3.0}, **penalties},
    )
    assert answers_of(output) == found


def test_every_answer_follows_its_grammar():
    form = "(ab|ba){5}c?[0-9]"
    output = ask(width=3, branches=3, n=3, max_tokens=20, step_tokens=3, structured_outputs={"regex": form})
    for answer in output.outputs:
        assert answer.finish_reason == "stop"
        assert re.fullmatch(form, answer.text)


def test_logprobs_are_those_of_each_answers_own_tokens():
    output = ask(width=3, n=3, max_tokens=10, step_tokens=3, logprobs=2)
    for answer in output.outputs:
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        assert answer.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in answer.logprobs))
        assert answer.beam_score == pytest.approx(answer.cumulative_logprob / len(answer.token_ids))
        assert {len(entry.top) for entry in answer.logprobs} == {2}


def test_log_probabilities_of_the_prompt_come_once():
    output = ask(width=2, n=2, max_tokens=6, step_tokens=2, prompt_logprobs=0)
    assert len(output.prompt_logprobs) == len(PROMPT)


def test_a_search_for_no_token_has_no_text():
    (answer,) = ask(width=3, n=3, max_tokens=0).outputs
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([], "", "length")


def test_tokens_are_counted_over_all_branches():
    output = ask(width=2, branches=3, n=2, max_tokens=8, step_tokens=4, ignore_eos=True, separator="never")
    assert output.metrics.n_generated_tokens == 2 * 3 * 8
    assert len(output.tree) == 1 + 2 * 3 * 8


# -- batches and pages

SEARCH = {"width": 3, "branches": 2, "n": 3, "step_tokens": 6, "max_tokens": 30, "ignore_eos": True, "seed": 9}


@pytest.fixture(scope="module")
def alone():
    output = ask(scorer=vowels, **SEARCH)
    return output


def same(output, alone):
    assert not isinstance(output, Exception), output
    assert answers_of(output) == answers_of(alone)
    assert [node for node in output.tree] == [node for node in alone.tree]
    assert output.outputs == alone.outputs


def test_branches_share_pages():
    desk = Desk(backend())
    desk.add("x" * 100, method="steps", width=4, branches=2, max_tokens=12, step_tokens=4, ignore_eos=True)
    held = []
    while desk.core.step():
        held.append(desk.backend.cache.stats()["n_held"])
    assert max(held) <= 6 + 8 * 2
    desk.assert_nothing_is_held()


def test_a_search_and_other_requests_share_steps_and_change_nothing_for_each_other(alone):
    other = Desk(backend()).ask("someone else", max_tokens=40, seed=3)
    desk = Desk(backend())
    searches = [desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH) for _ in range(2)]
    request = desk.add("someone else", max_tokens=40, seed=3)
    desk.run()
    assert max(len(step) for step in desk.backend.steps) == 13
    for search in searches:
        same(desk.last(search), alone)
    assert desk.last(request).outputs[0].token_ids == other.outputs[0].token_ids
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("n_pages", [4, 5, 6, 8, 10])
def test_a_search_that_finds_too_few_pages_finds_the_same(n_pages, alone):
    desk = Desk(backend(n_pages=n_pages, max_model_len=64))
    output = desk.ask(PROMPT, method="steps", scorer=vowels, **SEARCH)
    same(output, alone)
    assert output.metrics.n_preemptions > 0
    assert output.metrics.n_dropped_beams == 0
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("n_pages", [6, 7, 8, 10, 12])
def test_a_search_that_has_to_give_way_finds_the_same(n_pages, alone):
    desk = Desk(backend(n_pages=n_pages, max_model_len=80))
    older = desk.add("older " * 4, seed=4, max_tokens=50, ignore_eos=True)
    search = desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH)
    beams = desk.add(PROMPT, width=3, max_tokens=20)
    desk.run()
    same(desk.last(search), alone)
    for request in (older, beams):
        assert not isinstance(desk.last(request), Exception)
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("step_tokens", [1, 6])
@pytest.mark.parametrize("max_num_seqs", [1, 2, 5])
def test_a_search_that_finds_too_few_places_finds_the_same(max_num_seqs, step_tokens):
    params = SEARCH | {"step_tokens": step_tokens, "scorer": vowels, "method": "steps"}
    desk = Desk(backend(), max_num_seqs=max_num_seqs)
    search = desk.add(PROMPT, **params)
    other = desk.add("someone else", max_tokens=20, ignore_eos=True)
    desk.run()
    same(desk.last(search), Desk(backend()).ask(PROMPT, **params))
    assert len(desk.last(other).outputs[0].token_ids) == 20
    assert max(len(step) for step in desk.backend.steps) <= max_num_seqs
    desk.assert_nothing_is_held()


def test_who_waits_for_the_others_gives_way_before_who_still_draws():
    """Two branches, of which the first ends its step with its first token."""
    prompt, allowed = "x" * 20, [97, 98]
    made = FakeBackend(n_pages=4, max_model_len=64)

    def spoil(history, logits):
        logits[98] += 50.0 * (len(history) > len(prompt))

    made.spoil = spoil
    desk = Desk(made)
    preempt, gave_way = desk.core.scheduler.preempt, []

    def watched(sequence):
        gave_way.append(sequence.is_parked)
        preempt(sequence)

    desk.core.scheduler.preempt = watched

    def first_tokens(seed):
        output = Desk(FakeBackend()).ask(prompt, n=2, max_tokens=1, seed=seed, allowed_token_ids=allowed)
        return [answer.token_ids[0] for answer in output.outputs]

    seed = next(seed for seed in itertools.count() if first_tokens(seed) == [97, 98])
    shape = {"width": 2, "branches": 1, "separator": "a", "step_tokens": 40, "max_tokens": 40}
    desk.add(prompt, method="steps", seed=seed, allowed_token_ids=allowed, **shape)
    while not gave_way:
        assert desk.core.step()
    assert gave_way == [True]


def drawn_request(draw):
    kind = draw.choice(["steps", "steps", "beam", "sample", "answers"])
    params = {"max_tokens": draw.randint(1, 30), "seed": draw.randint(0, 99), "ignore_eos": draw.random() < 0.5}
    if kind == "answers":
        return params | {"n": draw.randint(1, 4)}
    params |= {"width": draw.randint(1, 4), "method": kind}
    if kind == "steps":
        params |= {"branches": draw.randint(1, 4), "step_tokens": draw.choice([1, 3, 7, 50]), "separator": "a"}
    return params | ({"scorer": vowels} if draw.random() < 0.5 else {})


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_asked_beside_each_other_finds_what_it_finds_alone(seed):
    """Few pages, few places, scorers that take their time, requests that are cancelled."""
    draw, elsewhere = random.Random(seed), Elsewhere()
    desk = Desk(backend(n_pages=draw.randint(5, 12)), max_num_seqs=draw.choice([4, 8]), aside=elsewhere)
    asked, cancelled = {}, set()
    while len(asked) < 6 or desk.core.requests:
        if len(asked) < 6 and draw.random() < 0.3:
            params = drawn_request(draw)
            asked[desk.add(PROMPT, stream=draw.random() < 0.3, **params)] = params
        stepped = desk.core.step()
        if elsewhere.jobs and (not stepped or draw.random() < 0.2):
            elsewhere.run()
        if draw.random() < 0.005 and asked:
            request_id = draw.choice(list(asked))
            cancelled.add(request_id)
            desk.core.cancel(request_id)
    desk.assert_nothing_is_held()
    for request_id, params in asked.items():
        output = desk.last(request_id)
        if request_id not in cancelled and not output.metrics.n_dropped_beams:
            assert answers_of(output) == answers_of(Desk(backend()).ask(PROMPT, **params)), params


def test_a_prompt_that_is_cached_changes_nothing(alone):
    desk = Desk(backend())
    desk.ask(PROMPT * 4, max_tokens=1)
    first = desk.ask(PROMPT * 4, method="steps", scorer=vowels, **SEARCH)
    assert first.metrics.n_cached_tokens > 0
    cold = Desk(backend()).ask(PROMPT * 4, method="steps", scorer=vowels, **SEARCH)
    same(first, cold)


def test_a_long_prompt_in_chunks_changes_nothing():
    whole = Desk(backend()).ask(PROMPT * 6, method="steps", **SEARCH)
    desk = Desk(backend(max_tokens_per_step=8))
    same(desk.ask(PROMPT * 6, method="steps", **SEARCH), whole)
    desk.assert_nothing_is_held()


def test_a_fork_that_finds_no_memory_ends_the_search_alone():
    desk = Desk(backend())
    search = desk.add(PROMPT, method="steps", width=4, branches=3, max_tokens=30, step_tokens=4, ignore_eos=True)
    other = desk.add("another", max_tokens=20, ignore_eos=True)
    fork, forks = desk.backend.cache.fork, []

    def failing(seq_id):
        forks.append(seq_id)
        if len(forks) == 11 + 3:  # in the middle of the second step's
            raise MemoryError
        return fork(seq_id)

    desk.backend.cache.fork = failing
    desk.run()
    assert "memory" in str(desk.last(search))
    assert len(desk.last(other).outputs[0].token_ids) == 20
    desk.assert_nothing_is_held()


def test_logits_that_are_no_numbers_end_the_search_alone():
    made = backend()

    def spoil(history, logits):
        if len(history) == len(PROMPT) + 5:
            logits[:] = np.nan

    made.spoil = spoil
    desk = Desk(made)
    search = desk.add(PROMPT, method="steps", width=3, max_tokens=9, step_tokens=3, ignore_eos=True)
    other = desk.add("another", max_tokens=4, ignore_eos=True)
    desk.run()
    assert "not finite" in str(desk.last(search))
    assert len(desk.last(other).outputs[0].token_ids) == 4
    desk.assert_nothing_is_held()


# -- while a scorer reads


class Elsewhere:
    """Keeps jobs until a test runs them."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job, done):
        self.jobs.append((job, done))

    def run(self):
        job, done = self.jobs.pop(0)
        done(job())


def test_others_go_on_while_a_scorer_reads(alone):
    elsewhere = Elsewhere()
    desk = Desk(backend(), aside=elsewhere)
    search = desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH)
    while not elsewhere.jobs:
        assert desk.core.step()
    assert desk.core.n_scored == 1
    other = desk.add("another", max_tokens=20, ignore_eos=True)
    while desk.core.step():
        pass
    assert len(desk.last(other).outputs[0].token_ids) == 20
    assert desk.backend.cache.stats()["n_held"] > 0, "its branches are parked on their pages"
    while elsewhere.jobs:
        elsewhere.run()
        assert desk.core.n_scored == 0
        while desk.core.step():
            pass
    same(desk.last(search), alone)
    desk.assert_nothing_is_held()


def test_parked_branches_give_their_pages_to_those_that_could_not_run_else(alone):
    elsewhere = Elsewhere()
    desk = Desk(backend(n_pages=8, max_model_len=128), aside=elsewhere)
    search = desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH)
    while not elsewhere.jobs:
        assert desk.core.step()
    other = desk.add("z" * 90, max_tokens=20, ignore_eos=True)
    while desk.core.step():
        pass
    assert len(desk.last(other).outputs[0].token_ids) == 20
    while elsewhere.jobs:
        elsewhere.run()
        while desk.core.step():
            pass
    same(desk.last(search), alone)
    desk.assert_nothing_is_held()


def test_a_search_that_is_cancelled_while_a_scorer_reads_lets_go_at_once():
    elsewhere = Elsewhere()
    desk = Desk(backend(), aside=elsewhere)
    search = desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH)
    while not elsewhere.jobs:
        assert desk.core.step()
    desk.core.cancel(search)
    desk.assert_nothing_is_held()
    output = desk.last(search)
    assert [answer.finish_reason for answer in output.outputs] == ["abort"] * 3
    assert {len(answer.token_ids) for answer in output.outputs} == {6}
    elsewhere.run()
    assert desk.sent[search][-1] is output
    assert not desk.core.step()
    assert desk.core.n_scored == 0


def test_a_search_that_is_cancelled_in_a_step_tells_how_far_it_came():
    desk = Desk(backend())
    search = desk.add(PROMPT, method="steps", stream=True, **SEARCH)
    for _ in range(9):
        desk.core.step()
    desk.core.cancel(search)
    desk.assert_nothing_is_held()
    output = desk.last(search)
    assert [answer.finish_reason for answer in output.outputs] == ["abort"] * 3
    for answer in output.outputs:
        assert len(answer.token_ids) == 9
        assert [node.token_id for node in output.tree.path(answer.tree_leaf)] == answer.token_ids


def test_a_search_that_is_cancelled_before_it_began_has_an_empty_answer():
    desk = Desk(backend())
    search = desk.add(PROMPT, method="steps", stream=True, **SEARCH)
    desk.core.cancel(search)
    assert [(answer.text, answer.finish_reason) for answer in desk.last(search).outputs] == [("", "abort")]


def raising(texts):
    raise ValueError("no")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (raising, "raised ValueError: no"),
        (lambda texts: [float("nan")] * len(texts), "finite"),
        (lambda texts: [1.0] * (len(texts) - 1), "one an answer"),
        (lambda texts: "many", "numbers"),
    ],
)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_scorer_that_fails_ends_its_search_alone(broken, told, call):
    calls = []

    def scorer(prompt, texts):
        calls.append(texts)
        return broken(texts) if len(calls) == call else vowels(prompt, texts)

    desk = Desk(backend())
    search = desk.add(PROMPT, method="steps", scorer=scorer, **SEARCH)
    other = desk.add("another", max_tokens=35, ignore_eos=True)
    healthy = desk.add(PROMPT, method="steps", scorer=vowels, **SEARCH)
    desk.run()
    error = desk.last(search)
    assert isinstance(error, RequestFailedError)
    assert told in str(error)
    assert len(calls) == call
    assert len(desk.last(other).outputs[0].token_ids) == 35
    assert len(desk.last(healthy).outputs) == 3
    desk.assert_nothing_is_held()


# -- the tree, and the events


def test_the_tree_has_every_token_and_what_became_of_it():
    shape = {"width": 2, "branches": 2, "n": 2, "max_tokens": 9, "step_tokens": 3}
    output = ask(scorer=vowels, alpha=1.0, separator="never", allowed_token_ids=LETTERS, **shape)
    for answer in output.outputs:
        path = output.tree.path(answer.tree_leaf)
        assert [node.token_id for node in path] == answer.token_ids
        assert (path[-1].state, path[-1].reason) == ("finished", answer.finish_reason)
        assert path[-1].score == answer.final_score == answer.rerank_score
        np.testing.assert_allclose(path[-1].cum_logprob, answer.cumulative_logprob, atol=1e-5)
        for node in path:
            if node.step % 3:
                assert node.score == pytest.approx(node.cum_logprob / node.step)
            elif node.step < 9:
                (worth,) = vowels("", [text_of(answer.token_ids[: node.step])])
                assert node.score == pytest.approx(worth)
    gone = [node for node in output.tree if node.state == "pruned"]
    assert gone
    assert {node.reason for node in gone} <= {"outscored", "duplicate"}
    for node in output.tree:
        if node.id:
            assert output.tree.nodes[node.parent].step == node.step - 1


@pytest.mark.parametrize(("width", "branches"), [(1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("scorer", ["logprob", vowels, lambda prompt, texts: [-len(text) for text in texts]])
@pytest.mark.parametrize("seed", range(4))
def test_what_has_left_is_the_beginning_of_the_best_answer(width, branches, scorer, seed):
    params = {
        **{"width": width, "branches": branches, "n": width, "max_tokens": 24, "step_tokens": 5, "logprobs": 0},
        **{"scorer": scorer, "seed": seed, "method": "steps", "separator": "a", "allowed_token_ids": [97, 98, 256]},
    }
    desk = Desk(backend())
    request_id = desk.add(PROMPT, stream=True, **params)
    desk.run()
    events = desk.sent[request_id]
    output = events[-1].output
    assert answers_of(output) == answers_of(Desk(backend()).ask(PROMPT, **params))
    for answer in output.outputs:
        own = [event for event in events if event.index == answer.index and event.rerank is None]
        assert "".join(event.text for event in own) == answer.text
        assert [token for event in own for token in event.token_ids] == answer.token_ids
        assert [entry for event in own for entry in event.logprobs] == answer.logprobs
        assert own[-1].finish_reason == answer.finish_reason
    steps = [event.search for event in events if event.search is not None]
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert [node.id for step in steps for node in step.nodes] == [node.id for node in output.tree][1:]
    assert all(len(step.live) + step.n_finished == width for step in steps)
    gone = [node for step in steps for node in step.pruned]
    assert sorted(gone) == [node.id for node in output.tree if node.state == "pruned"]
    assert sum(event.rerank is not None for event in events) == (scorer != "logprob")


def test_text_leaves_with_the_step_that_all_have_in_common():
    desk = Desk(backend())
    request_id = desk.add(
        PROMPT, method="steps", stream=True, width=1, branches=4, max_tokens=12, step_tokens=4, ignore_eos=True
    )
    desk.run()
    assert [len(event.token_ids) for event in desk.sent[request_id]] == [4, 4, 4, 0]


# -- the library's own door


@pytest.fixture
def llm():
    with LLM.over(make_engine(backend()), ByteTokenizer(), "fake") as llm:
        yield llm


def test_a_search_by_steps_is_asked_like_any_other(llm):
    params = SearchParams(method="steps", scorer=vowels, width=2, n=2, max_tokens=12, step_tokens=4, seed=1)
    outputs = llm.search(["one", "two"], params)
    assert [len(output.outputs) for output in outputs] == [2, 2]
    with llm.stream_search("one", params) as stream:
        events = list(stream)
    assert answers_of(events[-1].output) == answers_of(outputs[0])


@pytest.mark.parametrize("n_pages", [6, 8, 64])
@pytest.mark.parametrize("max_num_seqs", [2, 8])
def test_a_scorer_may_ask_the_model_that_waits_for_it(n_pages, max_num_seqs):
    """Also where the search has taken every page, or every place."""
    params = SearchParams(method="steps", scorer="likelihood", width=4, branches=2, n=2, max_tokens=12, step_tokens=6)
    with LLM.over(make_engine(backend()), ByteTokenizer(), "fake") as llm:
        (alone,) = llm.search("a prompt", params)
    engine = make_engine(backend(n_pages=n_pages, max_model_len=64), max_num_seqs=max_num_seqs)
    with LLM.over(engine, ByteTokenizer(), "fake") as llm:
        (output,) = llm.search("a prompt", params)
        assert answers_of(output) == answers_of(alone)
        assert llm.stats()["pages"]["n_held"] == 0


def test_closing_ends_a_search_whose_scorer_still_reads():
    has_begun, may_end = threading.Event(), threading.Event()

    def scorer(prompt, texts):
        has_begun.set()
        may_end.wait(LONG_S)
        return [0.0] * len(texts)

    llm = LLM.over(make_engine(backend()), ByteTokenizer(), "fake")
    handle = llm.submit("one", SearchParams(method="steps", scorer=scorer, width=2, max_tokens=12, step_tokens=4))
    assert has_begun.wait(LONG_S)
    llm.close()
    may_end.set()
    with pytest.raises(EngineClosedError):
        handle.result()


def test_a_search_whose_scorer_reads_is_waited_for_while_the_engine_drains():
    has_begun, may_end = threading.Event(), threading.Event()

    def scorer(prompt, texts):
        has_begun.set()
        may_end.wait(LONG_S)
        return [0.0] * len(texts)

    llm = LLM.over(make_engine(backend()), ByteTokenizer(), "fake")
    params = SearchParams(method="steps", scorer=scorer, width=2, max_tokens=12, step_tokens=4, ignore_eos=True)
    handle = llm.submit("one", params)
    assert has_begun.wait(LONG_S)
    closing = threading.Thread(target=llm.close, args=(LONG_S,))
    closing.start()
    may_end.set()
    closing.join(LONG_S)
    assert len(handle.result().outputs[0].token_ids) == 12


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"separator": ""}, "separator"),
        ({"separator": None}, "separator"),
        ({"separator": "x" * 1025}, "separator"),
        ({"step_tokens": 0}, "step_tokens"),
        ({"step_tokens": 1.5}, "step_tokens"),
        ({"branches": 0}, "branches"),
        ({"branches": True}, "branches"),
        ({"branches": 129}, "branches"),
        ({"branches": 33}, "branches"),
        ({"width": 64, "branches": 3}, "branches"),
        ({"groups": 2}, "groups"),
        ({"diversity_penalty": 1.0}, "diversity_penalty"),
        ({"early_stopping": "never"}, "early_stopping"),
        ({"n": 5}, "n"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(params, name):
    with pytest.raises(InvalidRequestError) as error:
        SearchParams(method="steps", **params)
    assert error.value.param == name
