"""The live beams of a search, followed by its events: their texts, scores and nodes."""

import pytest
from fakes import ByteTokenizer, Desk, FakeBackend

from llm_decoder.search.frontier import Frontier
from llm_decoder.search.run_file import node_texts

LETTERS = list(range(97, 110))


def events_of(**params):
    desk = Desk(FakeBackend())
    request_id = desk.add("once", stream=True, **{"width": 4, "n": 2, "max_tokens": 8} | params)
    desk.run()
    return desk.sent[request_id]


@pytest.mark.parametrize(
    "params", [{}, {"groups": 2, "diversity_penalty": 2.0}, {"method": "steps", "step_tokens": 3, "seed": 1}], ids=str
)
def test_what_was_sent_and_a_tail_are_the_text_of_a_beam(params):
    events = events_of(allowed_token_ids=LETTERS, **params)
    tree, tokenizer, frontier = events[-1].output.tree, ByteTokenizer(), Frontier(ByteTokenizer())
    sent, n_seen = "", 0
    for event in events:
        frontier.take(event)
        sent += event.text if event.index == 0 else ""
        if event.search is None:
            continue
        assert [beam.leaf for beam in frontier.live] == list(event.search.live)
        scores = {node.id: node.score for node in event.search.nodes}
        for beam in frontier.live:
            n_seen += 1
            assert sent + beam.tail == tokenizer.decode([node.token_id for node in tree.path(beam.leaf)])
            assert beam.score == scores[beam.leaf]
    assert n_seen >= 8


def test_every_new_node_has_its_text_also_where_characters_take_several_tokens():
    events = events_of(allowed_token_ids=[*"é".encode(), *"中".encode(), 97])
    frontier, texts = Frontier(ByteTokenizer()), {}
    for event in events:
        texts |= frontier.take(event)
    output = events[-1].output
    assert texts == node_texts(output.tree, ByteTokenizer(), output.prompt_token_ids)
    assert "" in texts.values()
    assert any("\ufffd" not in text and not text.isascii() for text in texts.values())


def test_without_a_decoder_beams_have_scores_and_no_texts():
    frontier = Frontier(None)
    first, *_ = events_of()
    assert frontier.take(first) == {node.id: "" for node in first.search.nodes}
    assert [beam.tail for beam in frontier.live] == [""] * 4
    assert sorted((beam.score for beam in frontier.live), reverse=True) == [beam.score for beam in frontier.live]


def test_an_event_of_another_answer_changes_nothing():
    events = events_of(allowed_token_ids=LETTERS)
    frontier = Frontier(ByteTokenizer())
    frontier.take(events[0])
    before = frontier.live
    (other,) = [event for event in events if event.index == 1]
    assert other.text
    assert frontier.take(other) == {}
    assert frontier.live == before
