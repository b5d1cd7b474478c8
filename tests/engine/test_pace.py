"""How much of a prompt a step takes while somebody reads along."""

from __future__ import annotations

import pytest
from fakes import Desk, FakeBackend

from llm_decoder.pace import Pace
from llm_decoder.speculation import StepCost

DECODE_S, PROMPT_TOKEN_S = 0.020, 0.00025


def learned() -> Pace:
    cost = StepCost()
    for _ in range(100):
        cost.learn(32, DECODE_S)
    pace = Pace(cost)
    for _ in range(50):
        pace.learn(32, 128, DECODE_S + 128 * PROMPT_TOKEN_S)
    return pace


def test_a_step_with_a_chunk_is_so_many_times_as_long_as_its_decodes():
    most = learned().most_prompt_tokens(32, 32, 512)
    assert DECODE_S + most * PROMPT_TOKEN_S == pytest.approx(Pace.STRETCH * DECODE_S, rel=0.02)


def test_the_few_that_decode_keep_to_the_pace_of_everybody_who_is_here():
    pace = learned()
    all_decode = DECODE_S + pace.most_prompt_tokens(32, 32, 512) * PROMPT_TOKEN_S
    few = pace.most_prompt_tokens(4, 32, 512)
    assert few > 2 * pace.most_prompt_tokens(4, 4, 512)
    assert pace._step_cost.seconds(4) + few * PROMPT_TOKEN_S == pytest.approx(all_decode, rel=0.02)


def test_those_who_wait_are_here_too(monkeypatch):
    asked = []

    def most(self, n_decodes, n_sequences, limit):
        asked.append((n_decodes, n_sequences))
        return min(limit, 8)

    monkeypatch.setattr(Pace, "most_prompt_tokens", most)
    desk = Desk(FakeBackend(max_tokens_per_step=64), max_num_seqs=3, start_speculation=lambda: None)
    desk.add("ab", stream=True, max_tokens=30, ignore_eos=True)
    desk.core.step()
    for _ in range(4):
        desk.add(bytes(40), max_tokens=1)
    desk.core.step()
    assert asked == [(1, 3)]  # five are open, and three places


def test_nothing_is_held_back_before_steps_were_seen():
    assert Pace(StepCost()).most_prompt_tokens(32, 32, 512) == 512
    cost = StepCost()
    cost.learn(32, DECODE_S)
    assert Pace(cost).most_prompt_tokens(32, 32, 512) == 512


def test_prompts_move_on_beside_the_shortest_decodes():
    cost = StepCost()
    cost.learn(1, 1e-4)
    pace = Pace(cost)
    pace.learn(1, 512, 0.2)
    assert pace.most_prompt_tokens(1, 1, 512) == Pace.LEAST_TOKENS
    assert pace.most_prompt_tokens(1, 1, 7) == 7


def test_an_interruption_is_not_taken_for_the_price_of_a_token():
    pace = learned()
    before = pace.most_prompt_tokens(32, 32, 512)
    pace.learn(32, 16, 5.0)
    assert pace.most_prompt_tokens(32, 32, 512) > 0.8 * before


@pytest.mark.parametrize(("is_read", "chunk"), [(True, 8), (False, 40)])
def test_chunks_are_small_beside_answers_that_are_read_as_they_come(monkeypatch, is_read, chunk):
    monkeypatch.setattr(Pace, "most_prompt_tokens", lambda self, n_decodes, n_sequences, limit: min(limit, 8))
    desk = Desk(FakeBackend(max_tokens_per_step=64), start_speculation=lambda: None)
    desk.add("ab", stream=is_read, max_tokens=30, ignore_eos=True)
    desk.core.step()
    desk.add(bytes(40), max_tokens=1)
    desk.core.step()
    assert [count for _, count in desk.backend.steps[-1]] == [1, chunk]


def test_a_prompt_alone_takes_all_of_a_step(monkeypatch):
    monkeypatch.setattr(Pace, "most_prompt_tokens", lambda self, n_decodes, n_sequences, limit: min(limit, 8))
    desk = Desk(FakeBackend(max_tokens_per_step=64))
    desk.add(bytes(40), stream=True, max_tokens=1)
    desk.core.step()
    assert [count for _, count in desk.backend.steps[-1]] == [40]
