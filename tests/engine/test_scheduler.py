"""Who runs, who waits, who gives way; and that none of it shows in anybody's tokens."""

import numpy as np
from fakes import Desk, FakeBackend, alone
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_decoder.errors import RequestFailedError


def tokens_of(output):
    return [completion.token_ids for completion in output.outputs]


def test_decodes_come_first_and_a_long_prompt_is_cut_to_what_they_leave():
    desk = Desk(FakeBackend(max_tokens_per_step=16))
    first = desk.add("ab", max_tokens=20, ignore_eos=True)
    desk.core.step()
    second = desk.add("x" * 50, max_tokens=2, ignore_eos=True)
    for _ in range(3):
        desk.core.step()
    assert [[count for _, count in step] for step in desk.backend.steps] == [[2], [1, 15], [1, 15], [1, 15]]
    desk.run()
    assert len(desk.last(first).outputs[0].token_ids) == 20
    assert tokens_of(desk.last(second)) == tokens_of(alone("x" * 50, max_tokens=2, ignore_eos=True))


def test_no_more_sequences_run_than_have_a_place():
    desk = Desk(max_num_seqs=3)
    for i in range(10):
        desk.add(f"prompt {i}", max_tokens=5)
    desk.run()
    assert max(len(step) for step in desk.backend.steps) == 3


def test_requests_are_served_in_the_order_they_came():
    desk = Desk(max_num_seqs=2)
    done = []
    for i in range(6):
        request_id = desk.add(f"prompt {i}", max_tokens=4, ignore_eos=True)
        desk.sent[request_id] = done
        desk.core.requests[request_id].sink = lambda output, i=i: done.append(i)
    desk.run()
    assert done == [0, 1, 2, 3, 4, 5]


def test_the_youngest_gives_way_when_pages_run_short_and_its_tokens_stay_the_same():
    desk = Desk(FakeBackend(n_pages=5, max_model_len=80))
    prompts = ["older " * 4, "younger " * 3]
    ids = [desk.add(prompt, seed=4, max_tokens=40, ignore_eos=True) for prompt in prompts]
    desk.run()
    preempted = [desk.last(request_id).metrics.n_preemptions for request_id in ids]
    assert preempted[0] == 0
    assert preempted[1] > 0
    assert desk.core.stats()["n_preemptions"] == preempted[1]
    for request_id, prompt in zip(ids, prompts, strict=True):
        expected = alone(prompt, seed=4, max_tokens=40, ignore_eos=True)
        assert tokens_of(desk.last(request_id)) == tokens_of(expected)
        assert desk.last(request_id).outputs[0].text == expected.outputs[0].text
    desk.assert_nothing_is_held()


def test_a_newcomer_waits_until_its_whole_prompt_finds_pages():
    desk = Desk(FakeBackend(n_pages=6))
    desk.add("x" * 60, max_tokens=8, ignore_eos=True)
    desk.core.step()
    late = desk.add("y" * 60, max_tokens=1, ignore_eos=True)
    desk.run()
    assert desk.last(late).metrics.n_preemptions == 0
    assert desk.core.stats()["n_preemptions"] == 0


def test_a_newcomer_whose_prefix_others_hold_needs_pages_for_the_rest_only():
    system = "a long common system prompt of exactly four pages, no more: 0123"[:64]
    desk = Desk(FakeBackend(n_pages=9))
    desk.add(system + "first", max_tokens=20, ignore_eos=True)
    desk.core.step()
    desk.core.step()
    desk.add(system + "second", max_tokens=20, ignore_eos=True)
    desk.core.step()
    assert len(desk.backend.steps[-1]) == 2
    desk.run()


def test_a_request_cancelled_while_it_waits_ends_with_abort_and_others_go_on():
    desk = Desk(max_num_seqs=1)
    running = desk.add("one", max_tokens=10, ignore_eos=True)
    desk.core.step()
    waiting = desk.add("two", max_tokens=10)
    desk.core.cancel(waiting)
    desk.core.cancel(waiting)
    desk.core.cancel("nobody")
    desk.run()
    assert desk.last(waiting).outputs[0].finish_reason == "abort"
    assert tokens_of(desk.last(running)) == tokens_of(alone("one", max_tokens=10, ignore_eos=True))


def test_pages_that_are_pinned_fail_a_request_that_needs_them_instead_of_waiting_for_ever():
    desk = Desk(FakeBackend(n_pages=4, max_model_len=64))
    kept = "x" * 49
    desk.ask(kept, max_tokens=1)
    assert desk.backend.cache.pin(np.array(list(kept.encode()), np.int32)) == 48
    failed = desk.ask("y" * 30, max_tokens=1)
    assert isinstance(failed, RequestFailedError)
    assert "needs room for 30 tokens, the pool has 4 pages of 16, of which 3 are pinned" in str(failed)
    assert desk.ask("z" * 10, max_tokens=1).outputs[0].finish_reason == "length"
    desk.backend.cache.unpin(np.array(list(kept.encode()), np.int32))
    desk.assert_nothing_is_held()


def test_prefixes_are_shared_under_the_same_salt_only():
    desk = Desk()
    prompt = "the same prompt under another salt, of several pages."
    desk.ask(prompt, max_tokens=1, cache_salt="one")
    assert desk.ask(prompt, max_tokens=1, cache_salt="two").metrics.n_cached_tokens == 0
    assert desk.ask(prompt, max_tokens=1, cache_salt="one").metrics.n_cached_tokens == 48


def test_a_prompt_whose_rows_are_wanted_survives_preemption():
    desk = Desk(FakeBackend(n_pages=6, max_model_len=96, max_tokens_per_step=8))
    older = desk.add("older " * 3, max_tokens=60, seed=1, ignore_eos=True)
    desk.core.step()
    scored = desk.add("scored " * 9, max_tokens=3, prompt_logprobs=1, seed=2)
    desk.run()
    expected = alone("scored " * 9, max_tokens=3, prompt_logprobs=1, seed=2)
    assert desk.last(scored).prompt_logprobs == expected.prompt_logprobs
    assert tokens_of(desk.last(scored)) == tokens_of(expected)
    assert tokens_of(desk.last(older)) == tokens_of(alone("older " * 3, max_tokens=60, seed=1, ignore_eos=True))


def test_rows_collected_before_a_preemption_are_collected_again():
    prompt = "rows, " * 12
    desk = Desk(FakeBackend(n_pages=8, max_model_len=96, max_tokens_per_step=3))
    desk.add("older " * 3, max_tokens=60, seed=1, ignore_eos=True)
    desk.core.step()
    preempted = desk.core.requests[desk.add(prompt, rows="logits", max_tokens=0)]
    desk.run()
    assert preempted.metrics.n_preemptions > 0
    roomy = Desk()
    expected = roomy.core.requests[roomy.add(prompt, rows="logits", max_tokens=0)]
    roomy.run()
    assert np.array_equal(preempted.collected, expected.collected)


requests = st.fixed_dictionaries(
    {
        "prompt": st.binary(min_size=1, max_size=40).map(lambda data: bytes(byte % 4 + 97 for byte in data)),
        "max_tokens": st.integers(0, 24),
        "seed": st.integers(0, 3),
        "n": st.sampled_from([1, 1, 1, 2, 5]),
        "temperature": st.sampled_from([0.0, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "stream": st.booleans(),
        "prompt_logprobs": st.sampled_from([None, None, 0, 2]),
        "stop": st.sampled_from([None, "e"]),
    }
)
actions = st.lists(
    st.one_of(
        requests.map(lambda request: ("add", request)),
        st.integers(1, 6).map(lambda n_steps: ("step", n_steps)),
        st.integers(0, 30).map(lambda i: ("cancel", i)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    actions=actions,
    n_pages=st.integers(5, 14),
    more_groups=st.lists(st.tuples(st.integers(5, 9), st.sampled_from([1, 20, 33])), max_size=2),
    max_tokens_per_step=st.integers(4, 40),
    max_num_seqs=st.integers(1, 8),
)
def test_whatever_comes_everybody_gets_what_he_gets_alone(
    actions, n_pages, more_groups, max_tokens_per_step, max_num_seqs
):
    desk = Desk(
        FakeBackend(
            n_pages=n_pages, max_model_len=80, max_tokens_per_step=max_tokens_per_step, more_groups=more_groups
        ),
        max_num_seqs=max_num_seqs,
    )
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
    assert all(len(step) <= max(max_num_seqs, 1) for step in desk.backend.steps)
    for request_id, request in asked.items():
        output = desk.last(request_id)
        expected = alone(**request)
        if request_id in cancelled:
            assert any(completion.finish_reason == "abort" for completion in output.outputs)
            for got in output.outputs:
                whole = expected.outputs[got.index].token_ids if got.index < len(expected.outputs) else []
                assert got.token_ids == whole[: len(got.token_ids)]
            continue
        assert [(c.token_ids, c.text, c.finish_reason) for c in output.outputs] == [
            (c.token_ids, c.text, c.finish_reason) for c in expected.outputs
        ]
        assert output.prompt_logprobs == expected.prompt_logprobs


def order_of_ends(desk, asked):
    """The places in `asked`, (prompt, priority) each, in the order in which their requests end."""
    done = []
    for i, (prompt, priority) in enumerate(asked):
        request_id = desk.add(prompt, priority=priority, max_tokens=3, ignore_eos=True)
        desk.core.requests[request_id].sink = lambda output, i=i: done.append(i)
    desk.run()
    return done


def test_lower_priorities_come_first_and_equals_in_the_order_they_came():
    desk = Desk(max_num_seqs=1)
    assert order_of_ends(desk, [("a", 0), ("b", 50), ("c", -50), ("d", 0), ("e", 50), ("f", -50)]) == [2, 5, 0, 3, 1, 4]


def test_a_priority_is_worth_seconds_of_waiting_so_nobody_waits_for_ever():
    desk = Desk(max_num_seqs=1)
    patient = desk.add("patient", priority=100, max_tokens=1)
    desk.core.requests[patient].submitted_s -= 101  # has waited longer than its priority is worth
    desk.core.scheduler.waiting.clear()
    desk.core.scheduler.add(desk.core.requests[patient].sequences[0])
    newer = desk.add("newer", priority=0, max_tokens=1)
    urgent = desk.add("urgent", priority=-100, max_tokens=1)
    assert [sequence.request.request_id for sequence in desk.core.scheduler.waiting] == [urgent, patient, newer]
    desk.run()


def test_who_runs_is_not_stopped_for_who_is_more_urgent():
    desk = Desk(max_num_seqs=1)
    slow = desk.add("slow", priority=100, max_tokens=20, ignore_eos=True)
    desk.core.step()
    urgent = desk.add("urgent", priority=-100, max_tokens=2, ignore_eos=True)
    desk.run()
    assert desk.last(slow).metrics.n_preemptions == 0
    assert desk.last(urgent).metrics.queue_s > 0


def test_who_gives_way_is_the_least_urgent_and_no_token_changes():
    desk = Desk(FakeBackend(n_pages=5, max_model_len=80))
    prompts = {"later " * 4: 100, "sooner " * 3: 0}
    ids = {
        prompt: desk.add(prompt, priority=priority, seed=4, max_tokens=40, ignore_eos=True)
        for prompt, priority in prompts.items()
    }
    desk.run()
    preempted = {prompts[prompt]: desk.last(request_id).metrics.n_preemptions for prompt, request_id in ids.items()}
    assert preempted[0] == 0
    assert preempted[100] > 0
    for prompt, request_id in ids.items():
        assert tokens_of(desk.last(request_id)) == tokens_of(alone(prompt, seed=4, max_tokens=40, ignore_eos=True))
    desk.assert_nothing_is_held()


def test_an_urgent_newcomer_that_fits_is_let_in_before_a_large_one_that_does_not():
    desk = Desk(FakeBackend(n_pages=6))
    desk.add("x" * 60, max_tokens=20, ignore_eos=True)
    desk.core.step()
    large = desk.add("y" * 60, max_tokens=1, ignore_eos=True)
    desk.core.step()
    assert desk.core.requests[large].admitted_s == 0
    small = desk.add("z", priority=-1, max_tokens=1, ignore_eos=True)
    desk.core.step()
    assert desk.last(small) is not None
    desk.run()
    desk.assert_nothing_is_held()


def test_when_the_first_in_line_is_cancelled_the_next_is_looked_at():
    desk = Desk(FakeBackend(n_pages=6))
    desk.add("x" * 60, max_tokens=20, ignore_eos=True)
    desk.core.step()
    large = desk.add("y" * 60, max_tokens=1, ignore_eos=True)
    small = desk.add("z", max_tokens=1, ignore_eos=True)
    desk.core.step()
    assert desk.last(small) is None
    desk.core.cancel(large)
    desk.core.step()
    assert desk.last(small) is not None
    desk.run()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-100, 100), st.integers(1, 60), st.integers(1, 30), st.integers(1, 3)), max_size=12)
)
def test_with_any_priorities_everybody_ends_with_their_own_tokens(asked):
    desk = Desk(FakeBackend(n_pages=7, max_model_len=96), max_num_seqs=4)
    ids = []
    for i, (priority, n_prompt, n_tokens, n) in enumerate(asked):
        prompt = chr(97 + i) * n_prompt
        ids.append(
            desk.add(prompt, priority=priority, seed=i, n=n, max_tokens=n_tokens, temperature=1.0, ignore_eos=True)
        )
        desk.core.step()
        turns = [sequence.request.turn_s for sequence in desk.core.scheduler.running]
        assert turns == sorted(turns)
    desk.run()
    for i, (request_id, (_, n_prompt, n_tokens, n)) in enumerate(zip(ids, asked, strict=True)):
        expected = alone(chr(97 + i) * n_prompt, seed=i, n=n, max_tokens=n_tokens, temperature=1.0, ignore_eos=True)
        assert tokens_of(desk.last(request_id)) == tokens_of(expected)
    desk.assert_nothing_is_held()
