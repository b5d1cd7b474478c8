"""Beam search in the engine, against a plain one: on pages that are shared, forked, run short and come back."""

import itertools

import numpy as np
import pytest
from fakes import Desk, FakeBackend, fake_logits
from search_reference import beam_search, log_softmax

PROMPT = "once upon a time"


def backend(**options):
    """Answers end now and then: the end token's logit is high for some histories."""
    made = FakeBackend(vocab_size=258, **options)

    def spoil(history, logits):
        logits[256] += 4.0 * (history.sum() % 3 == 0)

    made.spoil = spoil
    return made


def expected(prompt=PROMPT, *, ends=(256,), edit=lambda tokens, row: row, **options):
    prompt_ids = list(prompt.encode())

    def logprobs_of(tokens):
        history = np.array(prompt_ids + tokens, np.int32)
        logits = fake_logits(history, 258)
        logits[256] += 4.0 * (history.sum() % 3 == 0)
        return edit(tokens, log_softmax(logits))

    return beam_search(logprobs_of, ends=ends, **options)


def found(desk, request_id):
    output = desk.last(request_id)
    assert not isinstance(output, Exception), output
    return output.outputs


def check(outputs, answers):
    assert [output.token_ids for output in outputs] == [answer.tokens for answer in answers]
    np.testing.assert_allclose([output.beam_score for output in outputs], [a.score for a in answers], rtol=1e-5)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_beams_are_those_of_the_plain_search(width, length_penalty, early_stopping):
    rules = {"width": width, "length_penalty": length_penalty, "early_stopping": early_stopping}
    desk = Desk(backend())
    request_id = desk.add(PROMPT, n=width, max_tokens=12, **rules)
    desk.run()
    check(found(desk, request_id), expected(max_new=12, **rules))
    assert desk.backend.cache.stats()["n_held"] == 0


@pytest.mark.parametrize(("width", "groups"), [(4, 2), (4, 4), (6, 3)])
@pytest.mark.parametrize("diversity_penalty", [0.0, 0.7, 5.0])
def test_groups_take_turns(width, groups, diversity_penalty):
    rules = {"width": width, "groups": groups, "diversity_penalty": diversity_penalty}
    desk = Desk(backend())
    output = desk.ask(PROMPT, n=width, max_tokens=8, **rules)
    check(output.outputs, expected(max_new=8, **rules))


def test_width_one_is_greedy():
    desk = Desk(backend())
    searched = desk.ask(PROMPT, width=1, max_tokens=20)
    greedy = desk.ask(PROMPT, temperature=0.0, max_tokens=20)
    assert searched.outputs[0].token_ids == greedy.outputs[0].token_ids
    assert searched.outputs[0].cumulative_logprob == pytest.approx(greedy.outputs[0].cumulative_logprob, abs=1e-5)


def test_a_width_that_holds_every_answer_finds_the_best_of_them_all():
    vocabulary, length = [65, 66, 67, 68], 3
    desk = Desk(backend())
    output = desk.ask(PROMPT, width=64, n=64, max_tokens=length, ignore_eos=True, allowed_token_ids=vocabulary)

    def total(tokens):
        ids = list(PROMPT.encode())
        logprob = 0.0
        for token in tokens:
            logits = fake_logits(np.array(ids, np.int32), 258)
            logits[256] += 4.0 * (sum(ids) % 3 == 0)
            logprob += float(log_softmax(logits)[token])
            ids.append(token)
        return logprob / length

    every = sorted(itertools.product(vocabulary, repeat=length), key=total, reverse=True)
    assert [tuple(answer.token_ids) for answer in output.outputs] == every
    np.testing.assert_allclose([a.beam_score for a in output.outputs], [total(tokens) for tokens in every], rtol=1e-4)


def penalised(tokens, row):
    """repetition_penalty 1.5 on log probabilities, frequency_penalty 0.5, a bias of 3 on token 90, token 91 banned."""
    row = row.copy()
    for token in {*PROMPT.encode(), *tokens}:
        row[token] *= np.float32(1.5)
    for token in set(tokens):
        row[token] -= np.float32(0.5) * tokens.count(token)
    row[90] += 3
    row[91] = -np.inf
    return row


def test_penalties_bias_and_bans_change_what_is_searched():
    desk = Desk(backend())
    output = desk.ask(
        PROMPT,
        width=4,
        n=4,
        max_tokens=10,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        logit_bias={90: 3.0},
        bad_token_ids=[91],
    )
    check(output.outputs, expected(width=4, max_new=10, edit=penalised))
    assert any(90 in answer.token_ids for answer in output.outputs)


def test_answers_shorter_than_min_tokens_do_not_end():
    def too_early(tokens, row):
        row = row.copy()
        if len(tokens) < 5:
            row[256] = -np.inf
        return row

    output = Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=9, min_tokens=5)
    check(output.outputs, expected(width=4, max_new=9, edit=too_early))


def test_more_tokens_may_end_an_answer():
    output = Desk(backend()).ask(PROMPT, width=3, n=3, max_tokens=9, stop_token_ids=[100, 101, 102])
    check(output.outputs, expected(width=3, max_new=9, ends=(256, 100, 101, 102)))
    stops = {answer.stop_reason for answer in output.outputs if answer.finish_reason == "stop"}
    assert stops <= {None, 100, 101, 102}


def test_end_tokens_that_are_ignored_are_tokens_like_others():
    output = Desk(backend()).ask(PROMPT, width=3, n=3, max_tokens=9, ignore_eos=True)
    check(output.outputs, expected(width=3, max_new=9, ends=()))
    assert all(len(answer.token_ids) == 9 for answer in output.outputs)


def test_scores_are_sums_of_the_log_probabilities_that_are_told():
    output = Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=10, length_penalty=0.6, logprobs=2)
    for answer in output.outputs:
        logprobs = [entry.logprob for entry in answer.logprobs]
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        assert answer.cumulative_logprob == pytest.approx(sum(logprobs), abs=1e-4)
        assert answer.beam_score == pytest.approx(sum(logprobs) / len(logprobs) ** 0.6, abs=1e-4)
        for entry in answer.logprobs:
            assert len(entry.top) == 2
            assert entry.rank > 2 or entry.top[entry.rank - 1][0] == entry.token_id


def test_a_stop_string_ends_a_beam_and_is_cut_off():
    whole = Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=8, ignore_eos=True, allowed_token_ids=[65, 66, 67])
    stop = whole.outputs[0].text[2:4]
    output = Desk(backend()).ask(
        PROMPT, width=4, n=4, max_tokens=8, ignore_eos=True, allowed_token_ids=[65, 66, 67], stop=[stop]
    )
    assert any(answer.stop_reason == stop for answer in output.outputs)
    for answer in output.outputs:
        assert stop not in answer.text
        assert (answer.finish_reason == "stop") == (answer.stop_reason == stop)
        assert bytes(answer.token_ids).decode() == answer.text + (stop if answer.stop_reason else "")


def test_every_answer_follows_its_grammar():
    output = Desk(backend()).ask(PROMPT, width=6, n=6, max_tokens=12, structured_outputs={"regex": "(ab|ba)+c?[0-9]"})
    assert output.outputs
    for answer in output.outputs:
        assert answer.finish_reason == "stop"
        assert set(answer.text) <= set("abc0123456789")
    assert len({answer.text for answer in output.outputs}) == len(output.outputs)


# -- pages


def test_forks_share_every_full_page():
    desk = Desk(FakeBackend(page_size=16, n_pages=64))
    desk.add("x" * 100, width=8, max_tokens=8, ignore_eos=True)
    held = []
    while desk.core.step():
        held.append(desk.backend.cache.stats()["n_held"])
    assert max(held) <= 6 + 8 * 2  # the full pages of the prompt once, and the open page, or two, of each beam
    desk.assert_nothing_is_held()


def test_a_search_and_other_requests_share_steps_and_change_nothing_for_each_other():
    alone = Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=12)
    other = Desk(backend()).ask("someone else", max_tokens=20, seed=3)
    desk = Desk(backend())
    search, request = desk.add(PROMPT, width=4, n=4, max_tokens=12), desk.add("someone else", max_tokens=20, seed=3)
    second = desk.add(PROMPT, width=4, n=4, max_tokens=12)
    desk.run()
    assert max(len(step) for step in desk.backend.steps) == 9
    for request_id in (search, second):
        assert [a.token_ids for a in desk.last(request_id).outputs] == [a.token_ids for a in alone.outputs]
    assert desk.last(request).outputs[0].token_ids == other.outputs[0].token_ids
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("n_pages", [6, 7, 8, 10, 12])
def test_a_search_that_has_to_give_way_finds_the_same(n_pages):
    alone = Desk(backend()).ask("younger", width=3, n=3, max_tokens=30, ignore_eos=True)
    desk = Desk(backend(n_pages=n_pages, max_model_len=80))
    older = desk.add("older " * 4, seed=4, max_tokens=50, ignore_eos=True)
    search = desk.add("younger", width=3, n=3, max_tokens=30, ignore_eos=True)
    desk.run()
    output = desk.last(search)
    assert not isinstance(desk.last(older), Exception)
    if output.metrics.n_dropped_beams == 0:
        assert [a.token_ids for a in output.outputs] == [a.token_ids for a in alone.outputs]
    assert len(output.outputs) >= 1
    desk.assert_nothing_is_held()


def test_a_search_that_the_pool_cannot_hold_goes_on_narrower_and_says_so():
    desk = Desk(backend(n_pages=4, max_model_len=64))
    output = desk.ask("x" * 20, width=8, n=1, max_tokens=40, ignore_eos=True)
    assert output.metrics.n_dropped_beams > 0
    assert len(output.outputs[0].token_ids) == 40
    assert any(node.reason == "no pages" for node in output.tree)
    desk.assert_nothing_is_held()


def test_a_cancelled_search_lets_go_at_once_and_tells_how_far_it_came():
    desk = Desk(backend())
    search = desk.add(PROMPT, width=4, n=2, max_tokens=50, ignore_eos=True)
    for _ in range(5):
        desk.core.step()
    desk.core.cancel(search)
    desk.assert_nothing_is_held()
    output = desk.last(search)
    assert [answer.finish_reason for answer in output.outputs] == ["abort", "abort"]
    assert all(len(answer.token_ids) == 5 for answer in output.outputs)
    assert not desk.core.step()


def test_a_search_that_is_cancelled_when_some_groups_are_over_tells_how_far_it_came():
    desk = Desk(backend())
    search = desk.add(PROMPT, width=8, groups=8, diversity_penalty=4.0, n=8, max_tokens=60)
    group = desk.core.requests[search].group
    while not any(not lane.live for lane in group._lanes):
        assert desk.core.step()
    assert not group.is_over
    desk.core.cancel(search)
    desk.assert_nothing_is_held()
    reasons = {answer.finish_reason for answer in desk.last(search).outputs}
    assert reasons == {"stop", "abort"}


@pytest.mark.parametrize("n_before", range(3))
def test_a_turn_that_finds_no_memory_for_a_fork_ends_the_search_alone_and_lets_go_of_every_page(n_before):
    desk = Desk(backend())
    search, other = desk.add(PROMPT, width=4, max_tokens=9), desk.add("another", max_tokens=4, ignore_eos=True)
    forks = itertools.count()
    fork = desk.backend.cache.fork

    def failing(seq_id):
        if next(forks) >= n_before:
            raise MemoryError
        return fork(seq_id)

    desk.backend.cache.fork = failing
    desk.run()
    assert "memory" in str(desk.last(search))
    assert len(desk.last(other).outputs[0].token_ids) == 4
    desk.assert_nothing_is_held()


def test_a_search_for_no_token_has_no_text():
    (answer,) = Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=0).outputs
    assert (answer.token_ids, answer.text, answer.finish_reason) == ([], "", "length")


def test_logits_that_are_no_numbers_end_the_search_alone():
    made = backend()
    spoil = made.spoil

    def sometimes(history, logits):
        spoil(history, logits)
        if len(history) == len(PROMPT) + 3:
            logits[:] = np.nan

    made.spoil = sometimes
    desk = Desk(made)
    search, other = desk.add(PROMPT, width=4, max_tokens=9), desk.add("another", max_tokens=4, ignore_eos=True)
    desk.run()
    assert "not finite" in str(desk.last(search))
    assert len(desk.last(other).outputs[0].token_ids) == 4
    desk.assert_nothing_is_held()


def test_a_search_whose_bans_leave_nothing_says_so():
    error = Desk(backend()).ask(
        PROMPT, width=2, max_tokens=4, ignore_eos=True, allowed_token_ids=[65], bad_words=["AA"], min_tokens=4
    )
    assert "needs a token" in str(error)


def test_sampled_beams_are_the_same_for_the_same_seed_and_others_for_another():
    def ask(seed):
        return [
            a.token_ids
            for a in Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=8, temperature=0.8, seed=seed).outputs
        ]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    assert ask(1) != [a.token_ids for a in Desk(backend()).ask(PROMPT, width=4, n=4, max_tokens=8).outputs]


def test_sampled_beams_are_drawn_without_replacement_as_their_probabilities_are():
    """With a width of one and one token, a sampled beam is a sample."""
    logits = fake_logits(np.array(list(PROMPT.encode()), np.int32), 258)
    allowed = np.argsort(-logits)[:4]
    weights = np.exp(log_softmax(logits)[allowed].astype(np.float64))
    desk = Desk(backend())
    n = 2000
    ids = [
        desk.add(PROMPT, width=1, max_tokens=1, temperature=1.0, seed=seed, allowed_token_ids=allowed.tolist())
        for seed in range(n)
    ]
    desk.run()
    drawn = [desk.last(request_id).outputs[0].token_ids[0] for request_id in ids]
    shares = np.array([drawn.count(token) / n for token in allowed.tolist()])
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.04)
