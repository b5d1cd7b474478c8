"""A search that is streamed: text that is never taken back, and the tree as it grows."""

import numpy as np
import pytest
from fakes import ByteTokenizer, Desk, FakeBackend, make_engine

from llm_decoder import LLM, InvalidRequestError, SamplingParams, SearchParams

PROMPT = "once upon a time"
LETTERS = list(range(97, 110))


def ending(**options):
    made = FakeBackend(**options)

    def spoil(history, logits):
        logits[256] += 5.0 * (history.sum() % 3 == 0)

    made.spoil = spoil
    return made


def streamed(**params):
    desk = Desk(ending())
    request_id = desk.add(PROMPT, stream=True, **params)
    desk.run()
    return desk.sent[request_id]


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_what_has_left_is_the_beginning_of_the_best_answer(width, length_penalty):
    params = {"width": width, "n": width, "max_tokens": 24, "length_penalty": length_penalty, "logprobs": 0}
    events = streamed(**params)
    output = events[-1].output
    assert [a.token_ids for a in output.outputs] == [a.token_ids for a in Desk(ending()).ask(PROMPT, **params).outputs]
    for answer in output.outputs:
        own = [event for event in events if event.index == answer.index]
        assert "".join(event.text for event in own) == answer.text
        assert [token for event in own for token in event.token_ids] == answer.token_ids
        assert [entry for event in own for entry in event.logprobs] == answer.logprobs
        assert own[-1].finish_reason == answer.finish_reason


def test_one_beam_streams_every_token_at_once():
    events = streamed(width=1, max_tokens=8, ignore_eos=True)
    assert [len(event.token_ids) for event in events] == [1] * 8 + [0]


def test_text_leaves_before_the_end_where_the_beams_agree():
    """Two beams that can only differ in their last letters."""
    desk = Desk(FakeBackend())

    def spoil(history, logits):
        logits[97] += 12.0

    desk.backend.spoil = spoil
    request_id = desk.add(PROMPT, stream=True, width=2, max_tokens=12, ignore_eos=True, allowed_token_ids=LETTERS)
    desk.run()
    early = [event.text for event in desk.sent[request_id][:-3]]
    assert len("".join(early)) >= 6


def test_a_stop_string_never_leaves_in_part():
    whole = Desk(ending()).ask(PROMPT, width=1, max_tokens=12, ignore_eos=True, allowed_token_ids=LETTERS)
    stop = whole.outputs[0].text[4:7]
    events = streamed(width=1, max_tokens=12, ignore_eos=True, allowed_token_ids=LETTERS, stop=[stop])
    assert "".join(event.text for event in events) == whole.outputs[0].text[:4]
    assert events[-1].output.outputs[0].stop_reason == stop


def test_the_steps_tell_the_whole_tree():
    events = streamed(width=4, n=2, max_tokens=10)
    output = events[-1].output
    steps = [event.search for event in events if event.search is not None]
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert [node.id for step in steps for node in step.nodes] == [node.id for node in output.tree][1:]
    gone = [node for step in steps for node in step.pruned]
    assert len(gone) == len(set(gone))
    for node in output.tree:
        assert (node.id in gone) <= (node.state == "pruned")
        if node.id:
            assert output.tree.nodes[node.parent].step == node.step - 1
    for answer in output.outputs:
        path = output.tree.path(answer.tree_leaf)
        assert [node.token_id for node in path] == answer.token_ids
        assert path[-1].state == "finished"
        np.testing.assert_allclose(path[-1].cum_logprob, answer.cumulative_logprob, atol=1e-5)


# -- the library's own door


@pytest.fixture
def llm():
    with LLM.over(make_engine(FakeBackend()), ByteTokenizer(), "fake") as llm:
        yield llm


def test_search_gives_the_best_answers_of_each_prompt(llm):
    outputs = llm.search(["one", "two"], SearchParams(width=3, n=2, max_tokens=5))
    assert len(outputs) == 2
    for output in outputs:
        scores = [answer.beam_score for answer in output.outputs]
        assert len(scores) == 2
        assert scores == sorted(scores, reverse=True)
        assert len(output.tree) > 5


def test_best_of_n_ranks_the_samples(llm):
    params = SearchParams(method="sample", width=6, n=3, max_tokens=5, seed=1)
    (output,) = llm.search("one", params)
    (samples,) = llm.generate("one", SamplingParams(n=6, max_tokens=5, seed=1))
    every = sorted((a.cumulative_logprob / len(a.token_ids) for a in samples.outputs), reverse=True)
    assert [answer.beam_score for answer in output.outputs] == pytest.approx(every[:3])
    assert [answer.index for answer in output.outputs] == [0, 1, 2]


def test_a_streamed_search_is_the_search(llm):
    params = SearchParams(width=3, max_tokens=6)
    with llm.stream_search("one", params) as stream:
        events = list(stream)
    assert "".join(event.text for event in events) == llm.search("one", params)[0].outputs[0].text


async def an_async_scorer(prompt, candidates):
    return [0.0] * len(candidates)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"width": 0}, "width"),
        ({"width": 65}, "width"),
        ({"width": 10**9}, "width"),
        ({"width": 2.5}, "width"),
        ({"width": 4, "n": 5}, "n"),
        ({"width": 4, "groups": 3}, "groups"),
        ({"width": 4, "groups": 0}, "groups"),
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"early_stopping": 1}, "early_stopping"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"diversity_penalty": -1}, "diversity_penalty"),
        ({"method": "depth-first"}, "method"),
        ({"temperature": -1}, "temperature"),
        ({"scorer": "taste"}, "scorer"),
        ({"scorer": None}, "scorer"),
        ({"scorer": an_async_scorer}, "scorer"),
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"normalise": "softmax"}, "normalise"),
        ({"query": ""}, "query"),
        ({"query": 3}, "query"),
        ({"query": "\ud800"}, "query"),
        ({"query": "x" * ((1 << 20) + 1)}, "query"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(params, name):
    with pytest.raises(InvalidRequestError) as error:
        SearchParams(**params)
    assert error.value.param == name


def test_params_of_the_wrong_kind_are_refused(llm):
    with pytest.raises(InvalidRequestError, match="SearchParams"):
        llm.search("one", SamplingParams())
    with pytest.raises(InvalidRequestError, match="SearchParams"):
        llm.stream_search("one", SamplingParams())


def test_best_of_n_is_a_request_like_others(llm):
    params = SearchParams(method="sample", width=6, n=2, max_tokens=5, seed=1)
    (searched,), (generated,) = llm.search("one", params), llm.generate("one", params)
    assert [a.token_ids for a in generated.outputs] == [a.token_ids for a in searched.outputs]
    assert [a.beam_rank for a in generated.outputs] == [0, 1]
    with llm.stream_search("one", params) as stream:
        events = list(stream)
    assert [event.text for event in events] == [answer.text for answer in searched.outputs]
    assert all(event.finish_reason for event in events)
    assert events[-1].output.outputs == searched.outputs


def test_a_best_of_n_that_is_cancelled_tells_how_far_its_samples_came():
    desk = Desk(FakeBackend())
    request_id = desk.add(PROMPT, method="sample", width=5, n=3, max_tokens=50, ignore_eos=True, stream=True)
    for _ in range(4):
        desk.core.step()
    assert not desk.sent[request_id]
    desk.core.cancel(request_id)
    desk.assert_nothing_is_held()
    answers = desk.last(request_id).outputs
    assert [(len(answer.token_ids), answer.finish_reason) for answer in answers] == [(4, "abort")] * 3
    assert [answer.beam_score for answer in answers] == sorted((a.beam_score for a in answers), reverse=True)


def test_a_width_that_no_step_has_places_for_is_refused():
    with (
        LLM.over(make_engine(FakeBackend(), max_num_seqs=4), ByteTokenizer(), "fake") as llm,
        pytest.raises(InvalidRequestError, match="max_num_seqs"),
    ):
        llm.search("one", SearchParams(width=5))
