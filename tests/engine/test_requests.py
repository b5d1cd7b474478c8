"""One request on an engine of its own: what it asks for is what it gets."""

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend, alone, fake_logits

from llm_decoder.errors import (
    ContextLengthExceededError,
    InvalidRequestError,
    NotEnoughMemoryError,
    RequestFailedError,
)

EOS = ByteTokenizer.eos_token_id


def greedy(prompt, n_tokens, banned=()):
    """What a loop without engine, cache or sampler would generate."""
    tokens = list(prompt)
    for _ in range(n_tokens):
        logits = fake_logits(np.array(tokens, np.int32), 258)
        logits[list(banned)] = -np.inf
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def favouring(*tokens, at=None):
    """A `spoil` that makes these tokens the most likely ones in turn, once a history is `at` tokens long."""

    def spoil(history, logits):
        place = len(history) - (at or 0)
        if 0 <= place < len(tokens):
            logits[tokens[place]] = 50.0

    return spoil


def desk_saying(text, prompt="ab", then=EOS):
    backend = FakeBackend()
    backend.spoil = favouring(*text.encode(), then, at=len(prompt))
    return Desk(backend)


def test_greedy_takes_the_highest_logit_of_the_whole_history():
    output = alone("hello", temperature=0, max_tokens=30)
    assert output.outputs[0].token_ids == greedy(b"hello", 30)
    assert output.outputs[0].finish_reason == "length"


def test_an_end_token_ends_the_answer_and_gives_no_text():
    output = desk_saying("story").ask("ab", temperature=0, max_tokens=50)
    assert output.outputs[0].text == "story"
    assert output.outputs[0].token_ids == [*b"story", EOS]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)


def test_ignore_eos_goes_on_past_the_end_token():
    output = desk_saying("story").ask("ab", temperature=0, max_tokens=12, ignore_eos=True)
    assert output.outputs[0].token_ids[:6] == [*b"story", EOS]
    assert len(output.outputs[0].token_ids) == 12


def test_min_tokens_bans_end_tokens_and_stop_tokens_until_then():
    output = desk_saying("a", then=EOS).ask("ab", temperature=0, max_tokens=40, min_tokens=10)
    tokens = output.outputs[0].token_ids
    assert EOS not in tokens[:10]
    assert len(tokens) >= 10
    stopped = desk_saying("abcxyz").ask(
        "ab", temperature=0, max_tokens=40, stop_token_ids=[ord("a"), ord("y")], min_tokens=4
    )
    assert ord("a") not in stopped.outputs[0].token_ids[:4]


def test_a_stop_token_ends_the_answer_and_is_named():
    output = desk_saying("abcxyz").ask("ab", temperature=0, max_tokens=40, stop_token_ids=[ord("c")])
    assert output.outputs[0].text == "ab"
    assert output.outputs[0].stop_reason == ord("c")
    kept = desk_saying("abcxyz").ask(
        "ab", temperature=0, max_tokens=40, stop_token_ids=[ord("c")], include_stop_str_in_output=True
    )
    assert kept.outputs[0].text == "abc"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("include", "text"), [(False, "one two"), (True, "one two日END")])
def test_a_stop_string_across_tokens_and_bytes_ends_the_answer(include, text, stream):
    desk = desk_saying("one two日END three")
    output = desk.ask(
        "ab", temperature=0, max_tokens=60, stop=["日END", "zzz"], include_stop_str_in_output=include, stream=stream
    )
    completion = output.outputs[0]
    assert completion.text == text
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "日END")
    assert bytes(completion.token_ids).decode().endswith("日END")


def test_a_stop_string_before_min_tokens_does_not_count():
    output = desk_saying("xxSTOPyySTOPzz").ask("ab", temperature=0, max_tokens=60, stop="STOP", min_tokens=8)
    assert output.outputs[0].text == "xxSTOPyy"


def test_text_held_back_for_a_stop_string_comes_out_when_the_answer_ends_without_it():
    assert desk_saying("one EN").ask("ab", temperature=0, max_tokens=60, stop="END").outputs[0].text == "one EN"


def test_a_stream_gives_the_text_of_the_answer_piece_by_piece():
    plain = alone("hello", seed=3, max_tokens=100, n=2)
    desk = Desk()
    streamed = desk.ask("hello", seed=3, max_tokens=100, n=2, stream=True)
    events = next(iter(desk.sent.values()))
    for completion in plain.outputs:
        own = [event for event in events if event.index == completion.index]
        assert "".join(event.text for event in own) == completion.text
        assert [token for event in own for token in event.token_ids] == completion.token_ids
        assert [event.finish_reason for event in own] == [None] * (len(own) - 1) + [completion.finish_reason]
        for event in own:
            event.text.encode()
    assert [completion.text for completion in streamed.outputs] == [completion.text for completion in plain.outputs]
    assert [event.output is None for event in events] == [True] * (len(events) - 1) + [False]


def test_a_multi_byte_character_is_sent_whole():
    desk = desk_saying("a🙂b")
    desk.ask("ab", temperature=0, max_tokens=60, stream=True)
    texts = [event.text for event in desk.sent["request-0"]]
    assert texts == ["a", "🙂", "b", ""]


def test_n_answers_share_one_prompt_and_the_first_is_the_answer_of_n_1():
    desk = Desk()
    output = desk.ask("a prompt of more than one page, so that pages are shared", seed=7, n=5, max_tokens=40)
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3, 4]
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 5
    single = alone("a prompt of more than one page, so that pages are shared", seed=7, max_tokens=40)
    assert output.outputs[0].token_ids == single.outputs[0].token_ids
    assert sum(count for _, count in desk.backend.steps[0]) == output.metrics.n_prompt_tokens
    assert desk.backend.cache.stats()["n_copies"] >= 4
    desk.assert_nothing_is_held()


def test_more_answers_than_places_wait_for_one_and_come_out_the_same():
    crowded = Desk(max_num_seqs=3)
    output = crowded.ask("some prompt", seed=7, n=20, max_tokens=20)
    roomy = alone("some prompt", seed=7, n=20, max_tokens=20)
    assert [c.token_ids for c in output.outputs] == [c.token_ids for c in roomy.outputs]
    assert max(len(step) for step in crowded.backend.steps) == 3


def test_logprobs_are_of_the_raw_logits_with_the_alternatives_asked_for():
    output = alone("hello", temperature=0.5, seed=1, max_tokens=8, logprobs=3, repetition_penalty=1.5)
    completion = output.outputs[0]
    history = list(b"hello")
    for entry, token in zip(completion.logprobs, completion.token_ids, strict=True):
        logits = fake_logits(np.array(history, np.int32), 258).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(expected[token], abs=1e-5)
        assert entry.rank == 1 + (logits > logits[token]).sum()
        assert [id_ for id_, _ in entry.top] == np.argsort(-expected, kind="stable")[:3].tolist()
        history.append(token)
    assert completion.cumulative_logprob == pytest.approx(sum(entry.logprob for entry in completion.logprobs))


def test_prompt_logprobs_are_the_same_whole_in_chunks_and_with_the_prefix_in_the_cache():
    prompt = "a prompt that fills some pages. " * 4
    whole = Desk(FakeBackend(max_tokens_per_step=256)).ask(prompt, max_tokens=1, temperature=0, prompt_logprobs=2)
    desk = Desk(FakeBackend(max_tokens_per_step=7))
    desk.ask(prompt, max_tokens=1, temperature=0)
    chunked = desk.ask(prompt, max_tokens=1, temperature=0, prompt_logprobs=2)
    assert chunked.prompt_logprobs == whole.prompt_logprobs
    assert chunked.metrics.n_cached_tokens == 0
    assert whole.prompt_logprobs[0] is None
    assert [entry.token_id for entry in whole.prompt_logprobs[1:]] == list(prompt.encode())[1:]
    assert whole.outputs[0].token_ids == alone(prompt, max_tokens=1, temperature=0).outputs[0].token_ids


def test_rows_of_a_prompt_are_limited_a_step(monkeypatch):
    monkeypatch.setattr("llm_decoder.engine_core.MAX_ROWS_BYTES", 5 * 4 * 258)
    desk = Desk()
    first = desk.add("x" * 22, max_tokens=0, prompt_logprobs=0)
    second = desk.add("y" * 22, max_tokens=0, prompt_logprobs=0)
    desk.run()
    assert max(sum(count for _, count in step) for step in desk.backend.steps) == 5
    assert [len(desk.last(request_id).prompt_logprobs) for request_id in (first, second)] == [22, 22]


def test_max_tokens_0_gives_an_empty_answer():
    output = alone("hello", max_tokens=0)
    assert (output.outputs[0].token_ids, output.outputs[0].finish_reason) == ([], "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt_logprobs", [None, 0])
def test_max_tokens_0_gives_as_many_empty_answers_as_are_asked_for(stream, prompt_logprobs):
    desk = Desk()
    output = desk.ask("hello", max_tokens=0, n=3, stream=stream, prompt_logprobs=prompt_logprobs)
    assert [(c.index, c.token_ids, c.text, c.finish_reason) for c in output.outputs] == [
        (index, [], "", "length") for index in range(3)
    ]
    if stream:
        events = desk.sent["request-0"]
        assert [(event.index, event.finish_reason) for event in events] == [(index, "length") for index in range(3)]
        assert [event.output is None for event in events] == [True, True, False]
    desk.assert_nothing_is_held()


def test_max_tokens_none_goes_to_the_end_of_the_context():
    output = Desk(FakeBackend(max_model_len=50)).ask("hello", max_tokens=None, ignore_eos=True)
    assert len(output.outputs[0].token_ids) == 45
    assert output.outputs[0].finish_reason == "length"


def test_allowed_bad_and_biased_tokens_are_obeyed():
    assert set(alone("x", seed=1, max_tokens=30, allowed_token_ids=[5, 6]).outputs[0].token_ids) == {5, 6}
    best = alone("x", temperature=0, max_tokens=1).outputs[0].token_ids[0]
    assert alone("x", temperature=0, max_tokens=1, bad_token_ids=[best]).outputs[0].token_ids == greedy(b"x", 1, [best])
    assert set(alone("x", temperature=0, max_tokens=9, logit_bias={9: 100.0}).outputs[0].token_ids) == {9}


def test_bad_words_never_appear_but_their_parts_may():
    output = desk_saying("the cat sat").ask("ab", temperature=0, max_tokens=9, bad_words=["cat"])
    assert output.outputs[0].text.startswith("the ca")
    assert "cat" not in output.outputs[0].text


def test_a_repetition_penalty_counts_the_prompt_and_a_presence_penalty_only_the_answer():
    backend = FakeBackend()

    def spoil(history, logits):
        logits[:] = -4.0
        logits[ord("a")], logits[ord("b")] = 2.0, 1.5

    backend.spoil = spoil
    desk = Desk(backend)
    assert desk.ask("a", temperature=0, max_tokens=1, repetition_penalty=2.0).outputs[0].text == "b"
    assert desk.ask("a", temperature=0, max_tokens=2, presence_penalty=1.0).outputs[0].text == "ab"
    assert desk.ask("a", temperature=0, max_tokens=4, frequency_penalty=0.4).outputs[0].text == "aaba"


def test_ids_past_the_tokenizer_are_legal_and_give_no_text():
    backend = FakeBackend(vocab_size=300)
    backend.spoil = favouring(299, ord("z"), EOS, at=2)
    output = Desk(backend).ask([280, 299], temperature=0, max_tokens=10)
    assert output.outputs[0].token_ids == [299, ord("z"), EOS]
    assert output.outputs[0].text == "z"


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ([], {}, InvalidRequestError, "at least one token"),
        ([1, -1], {}, InvalidRequestError, "0 to 257, got -1"),
        ([258], {}, InvalidRequestError, "0 to 257, got 258"),
        ([1.5], {}, InvalidRequestError, "integers"),
        ([1], {"stop_token_ids": [258]}, InvalidRequestError, "stop_token_ids"),
        ([1], {"logit_bias": {258: 1.0}}, InvalidRequestError, "logit_bias"),
        ([1], {"allowed_token_ids": [258]}, InvalidRequestError, "allowed_token_ids"),
        ([1], {"bad_token_ids": [1000]}, InvalidRequestError, "bad_token_ids"),
        ([1] * 256, {}, ContextLengthExceededError, "n_ctx = 256.*has 256"),
        ([1] * 250, {"min_tokens": 7}, ContextLengthExceededError, "has 250 and at least 7"),
    ],
)
def test_a_request_that_could_never_be_served_is_refused_at_the_door(prompt, params, error, message):
    desk = Desk()
    with pytest.raises(error, match=message):
        desk.add(prompt, **params)
    assert not desk.core.requests


CONTRADICTIONS = [
    ({"allowed_token_ids": [5], "bad_token_ids": [5]}, "allowed_token_ids"),
    ({"allowed_token_ids": [97, 5], "bad_words": ["a"], "bad_token_ids": [5]}, "allowed_token_ids"),
    ({"allowed_token_ids": [EOS], "min_tokens": 3}, "allowed_token_ids"),
    ({"allowed_token_ids": [7, EOS], "stop_token_ids": [7], "min_tokens": 2}, "allowed_token_ids"),
    ({"bad_token_ids": list(range(258))}, "bad_token_ids"),
    ({"bad_token_ids": [*range(256), 257], "min_tokens": 1}, "bad_token_ids"),
]


@pytest.mark.parametrize(("params", "param"), CONTRADICTIONS)
def test_a_request_that_forbids_all_that_it_allows_is_refused_at_the_door(params, param):
    desk = Desk()
    with pytest.raises(InvalidRequestError, match=r"needs a token that may be drawn, got none") as caught:
        desk.add("x", **params)
    assert caught.value.param == param
    assert desk.ask("x", **params | {"max_tokens": 0, "min_tokens": 0}).outputs[0].token_ids == []


def test_an_end_token_alone_is_no_contradiction_when_the_answer_may_be_empty():
    assert alone("x", allowed_token_ids=[EOS]).outputs[0].token_ids == [EOS]


def test_more_alternatives_than_the_model_has_tokens_are_all_it_has():
    desk = Desk(FakeBackend(vocab_size=10))
    neighbour = desk.add([4, 5], seed=1, max_tokens=3, logprobs=2)
    output = desk.ask([1, 2, 3], seed=1, max_tokens=3, logprobs=20, prompt_logprobs=20)
    assert [len(entry.top) for entry in output.outputs[0].logprobs] == [10, 10, 10]
    assert [len(entry.top) for entry in output.prompt_logprobs[1:]] == [10, 10]
    assert [len(entry.top) for entry in desk.last(neighbour).outputs[0].logprobs] == [2, 2, 2]


def test_bad_words_of_tokens_that_the_model_does_not_have_forbid_nothing_more():
    desk = Desk(FakeBackend(vocab_size=100))
    assert ord("~") >= 100
    output = desk.ask([1], max_tokens=60, seed=1, bad_words=["~", "é", "c~", "a"])
    assert len(output.outputs[0].token_ids) == 60
    assert ord("a") not in output.outputs[0].token_ids
    assert ord("c") in desk.ask([1], max_tokens=3, bad_words=["c~"], allowed_token_ids=[ord("c")]).outputs[0].token_ids


def test_an_end_token_that_the_model_does_not_have_ends_nothing():
    assert len(Desk(FakeBackend(vocab_size=100)).ask([1], max_tokens=5, min_tokens=3).outputs[0].token_ids) == 5


def test_rows_that_the_memory_does_not_hold_are_refused_at_the_door(monkeypatch):
    monkeypatch.setattr("llm_decoder.sequence.available_memory_bytes", lambda: 30_000_000)
    desk = Desk(FakeBackend(vocab_size=100_000))
    with pytest.raises(NotEnoughMemoryError, match=r"76 tokens x 100000 need 30400000 bytes, .* has 30000000 free"):
        desk.add([1] * 76, rows="logits", max_tokens=0)
    assert desk.ask([1] * 75, rows="logits", max_tokens=0).outputs == []
    assert len(desk.ask([1] * 76, max_tokens=0, prompt_logprobs=0).prompt_logprobs) == 76


def test_prompt_logprobs_that_the_memory_does_not_hold_are_refused_at_the_door(monkeypatch):
    monkeypatch.setattr("llm_decoder.sequence.available_memory_bytes", lambda: 20_000_000)
    desk = Desk(FakeBackend(n_pages=700, max_model_len=10_000))
    with pytest.raises(NotEnoughMemoryError, match="prompt_logprobs=20 of 9000 tokens need"):
        desk.add([1] * 9000, prompt_logprobs=20, max_tokens=0)
    desk.add([1] * 9000, prompt_logprobs=0, max_tokens=0)


def test_a_prompt_as_long_as_the_context_can_be_scored_but_not_continued():
    assert len(alone([1] * 256, max_tokens=0, prompt_logprobs=0).prompt_logprobs) == 256
    with pytest.raises(ContextLengthExceededError) as caught:
        alone([1] * 256)
    assert caught.value.code == "context_length_exceeded"


def test_a_request_larger_than_the_pool_is_refused_and_an_open_one_ends_where_the_pool_does():
    desk = Desk(FakeBackend(n_pages=3, max_model_len=256))
    with pytest.raises(ContextLengthExceededError, match="KV cache"):
        desk.add([1] * 49)
    output = desk.ask([1] * 40, max_tokens=None, ignore_eos=True)
    assert len(output.outputs[0].token_ids) == 9
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail_that_request_alone_and_leave_nothing_behind(spoiled):
    backend = FakeBackend()

    def spoil(history, logits):
        if history[0] == ord("!") and len(history) > 40:
            logits[3] = spoiled

    backend.spoil = spoil
    desk = Desk(backend)
    good = desk.add("a good request of some pages", seed=1, max_tokens=30)
    bad = desk.add("!" * 38, seed=1, max_tokens=30, n=3)
    desk.run()
    assert isinstance(desk.last(bad), RequestFailedError)
    assert (
        desk.last(good).outputs[0].token_ids
        == alone("a good request of some pages", seed=1, max_tokens=30).outputs[0].token_ids
    )
    desk.assert_nothing_is_held()
    assert desk.ask("!" * 38, max_tokens=0).metrics.n_cached_tokens == 0


def test_rows_that_are_not_finite_fail_the_request_that_wanted_them():
    backend = FakeBackend()
    backend.spoil = lambda history, logits: logits.__setitem__(1, np.nan) if len(history) == 5 else None
    desk = Desk(backend)
    assert isinstance(desk.ask("abcdefgh", max_tokens=0, prompt_logprobs=0), RequestFailedError)
    assert isinstance(desk.ask("abcdefgh", rows="logits", max_tokens=0), RequestFailedError)
    desk.assert_nothing_is_held()


def test_a_consumer_that_breaks_ends_nobody():
    desk = Desk()
    broken = desk.add("broken", max_tokens=5, ignore_eos=True, stream=True)
    good = desk.add("good", seed=1, max_tokens=5)
    desk.core.requests[broken].sink = lambda item: 1 // 0
    desk.run()
    assert desk.last(good).outputs[0].token_ids == alone("good", seed=1, max_tokens=5).outputs[0].token_ids
    desk.assert_nothing_is_held()


def test_a_request_that_runs_out_of_tokens_fails_alone_and_others_keep_their_prefixes():
    desk = Desk()
    prompt = "a prompt of more than two pages, to be found again"
    desk.ask(prompt, max_tokens=1)
    good = desk.add("good", seed=1, max_tokens=9)
    failed = desk.ask("x", allowed_token_ids=[97], bad_words=["aaa"])
    assert isinstance(failed, RequestFailedError)
    assert "needs a token to draw, got none after 2" in str(failed)
    assert desk.last(good).outputs[0].token_ids == alone("good", seed=1, max_tokens=9).outputs[0].token_ids
    assert desk.ask(prompt, max_tokens=1).metrics.n_cached_tokens == 48
    desk.assert_nothing_is_held()


def test_rows_are_the_same_whole_and_in_chunks():
    def rows(**sizes):
        desk = Desk(FakeBackend(**sizes))
        request = desk.core.requests[desk.add("a prompt of some length", rows="logits", max_tokens=0)]
        desk.run()
        return request.collected

    whole = rows()
    assert whole.shape == (23, 258)
    assert np.array_equal(whole[4], fake_logits(np.array(list(b"a pro"), np.int32), 258))
    assert np.array_equal(rows(max_tokens_per_step=7), whole)


# -- what is raised for one request


PROMPTS = {"first": "the first of three", "bad": "bad, the second one", "third": "and a third"}


def raising(call, is_about, error, *message):
    """`call`, but an error is raised when it is about a certain request."""

    def wrapped(*arguments):
        if is_about(*arguments):
            raise error(*message)
        return call(*arguments)

    return wrapped


def assert_only_the_bad_one_fails(desk, match, **params):
    ids = {name: desk.add(prompt, seed=i, **params) for i, (name, prompt) in enumerate(PROMPTS.items())}
    desk.run()
    failed = desk.last(ids["bad"])
    assert isinstance(failed, RequestFailedError)
    assert match in str(failed)
    assert [isinstance(item, RequestFailedError) for item in desk.sent[ids["bad"]]].count(True) == 1
    for i, name in enumerate(PROMPTS):
        if name != "bad":
            expected = alone(PROMPTS[name], seed=i, **params)
            assert desk.last(ids[name]).outputs == expected.outputs
            assert desk.last(ids[name]).prompt_logprobs == expected.prompt_logprobs
    desk.assert_nothing_is_held()
    assert desk.core.stats()["n_finished"]["error"] == 1
    assert desk.core.stats()["n_requests"] == 0


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("error", "match"), [(ValueError, "ValueError: got 0"), (MemoryError, "needed more memory than there was")]
)
def test_a_draw_that_raises_fails_its_own_request_and_the_neighbours_get_exactly_their_tokens(n, error, match):
    desk = Desk()
    desk.backend.sample = raising(desk.backend.sample, lambda rows, params, n_top: 1 in params["seed"], error, "got 0")
    assert_only_the_bad_one_fails(desk, match, max_tokens=20, ignore_eos=True, n=n, logprobs=2)


def test_a_draw_that_raises_once_for_all_fails_nobody():
    desk = Desk()
    steps = iter(range(100))
    desk.backend.sample = raising(desk.backend.sample, lambda *_: next(steps) == 6, RuntimeError)
    ids = [desk.add(prompt, seed=3, max_tokens=20, ignore_eos=True) for prompt in PROMPTS.values()]
    desk.run()
    for request_id, prompt in zip(ids, PROMPTS.values(), strict=True):
        expected = alone(prompt, seed=3, max_tokens=20, ignore_eos=True)
        assert desk.last(request_id).outputs[0].token_ids == expected.outputs[0].token_ids


def test_log_probs_that_raise_fail_their_own_request():
    desk = Desk()
    desk.backend.log_probs = raising(
        desk.backend.log_probs, lambda targets, n_top: ord(",") in targets, ValueError, "targets must be smaller"
    )
    assert_only_the_bad_one_fails(desk, "targets must be smaller", max_tokens=3, prompt_logprobs=2)


def test_rows_that_find_no_memory_fail_those_who_want_them():
    desk = Desk()
    desk.backend.logits = raising(desk.backend.logits, lambda: True, MemoryError)
    good = desk.add("good", seed=1, max_tokens=5)
    failed = desk.ask("rows", rows="logits", max_tokens=0)
    assert isinstance(failed, RequestFailedError)
    assert "needed more memory than there was; ask for fewer" in str(failed)
    assert desk.last(good).outputs[0].token_ids == alone("good", seed=1, max_tokens=5).outputs[0].token_ids
    desk.assert_nothing_is_held()


class ChokingTokenizer(ByteTokenizer):
    """Cannot decode what holds `poison`."""

    def __init__(self, poison):
        self.poison = list(poison)

    def decode(self, ids, skip_special_tokens=True):
        ids = list(ids)
        if any(ids[i : i + len(self.poison)] == self.poison for i in range(len(ids))):
            raise RuntimeError("the tokenizer chokes")
        return super().decode(ids, skip_special_tokens)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 6])
@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_that_the_tokenizer_cannot_decode_fails_its_request(stream, max_tokens, n):
    desk = Desk(tokenizer=ChokingTokenizer(b" one"))
    assert_only_the_bad_one_fails(desk, "the tokenizer chokes", max_tokens=max_tokens, stream=stream, n=n)


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_further_answers_that_cannot_begin_fail_their_request(max_tokens):
    desk = Desk(tokenizer=ChokingTokenizer(b"never said"))
    good = desk.add("good", seed=1, max_tokens=6)
    failed = desk.add("the bad one", max_tokens=max_tokens, n=3)
    desk.tokenizer.poison = list(b" one")
    desk.run()
    assert isinstance(desk.last(failed), RequestFailedError)
    assert len(desk.sent[failed]) == 1
    assert desk.last(good).outputs == alone("good", seed=1, max_tokens=6).outputs
    desk.assert_nothing_is_held()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_that_the_tokenizer_cannot_decode_fails_its_request(stream, n):
    tokens = alone(PROMPTS["bad"], seed=1, max_tokens=6, ignore_eos=True).outputs[0].token_ids
    desk = Desk(tokenizer=ChokingTokenizer(tokens[3:5]))
    params = {"max_tokens": 6, "ignore_eos": True, "stream": stream, "n": n}
    assert_only_the_bad_one_fails(desk, "the tokenizer chokes", **params)


def test_a_cancelled_answer_that_the_tokenizer_cannot_decode_fails_its_request():
    tokens = alone(PROMPTS["bad"], seed=1, max_tokens=6, ignore_eos=True).outputs[0].token_ids
    desk = Desk(tokenizer=ChokingTokenizer(tokens[3:5]))
    request_id = desk.add(PROMPTS["bad"], seed=1, max_tokens=60, ignore_eos=True)
    for _ in range(8):
        desk.core.step()
    desk.core.cancel(request_id)
    assert isinstance(desk.last(request_id), RequestFailedError)
    desk.assert_nothing_is_held()


def test_a_step_without_memory_ends_who_wants_most_rows_and_the_others_go_on():
    desk = Desk()
    first = desk.add("first", seed=1, max_tokens=20, ignore_eos=True)
    desk.core.step()
    wide = desk.add("wants many rows", max_tokens=0, prompt_logprobs=0)
    last = desk.add("the youngest wants one row only", seed=2, max_tokens=20, ignore_eos=True)

    def find_no_memory():
        if wide in desk.core.requests:
            raise MemoryError

    desk.backend.before_step = find_no_memory
    desk.run()
    assert isinstance(desk.last(wide), RequestFailedError)
    for request_id, prompt, seed in ((first, "first", 1), (last, "the youngest wants one row only", 2)):
        expected = alone(prompt, seed=seed, max_tokens=20, ignore_eos=True)
        assert desk.last(request_id).outputs[0].token_ids == expected.outputs[0].token_ids
    desk.assert_nothing_is_held()


def test_a_step_that_never_finds_memory_ends_one_request_after_the_other():
    desk = Desk()
    ids = [desk.add(prompt, max_tokens=5) for prompt in PROMPTS.values()]
    ended = []
    for request_id in ids:
        desk.core.requests[request_id].sink = lambda item, request_id=request_id: ended.append(request_id)
    desk.backend.before_step = raising(lambda: None, lambda: True, MemoryError)
    desk.run()
    assert ended == ids[::-1]
    desk.assert_nothing_is_held()


def test_metrics_count_tokens_and_cached_tokens():
    desk = Desk()
    desk.ask("a common beginning of two pages!", max_tokens=4)
    output = desk.ask("a common beginning of two pages! and more", max_tokens=4, ignore_eos=True)
    metrics = output.metrics
    assert (metrics.n_prompt_tokens, metrics.n_cached_tokens, metrics.n_generated_tokens) == (41, 32, 4)
    assert 0 < metrics.queue_s <= metrics.time_to_first_token_s <= metrics.total_s
    assert metrics.tokens_per_s > 0
