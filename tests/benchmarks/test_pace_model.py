"""The model of steps that chose the pace of prompts."""

from __future__ import annotations

from pace_model import Costs, room_of, simulate

COSTS = Costs(fixed_s=0.005, decode_s=0.0004, prompt_s=0.00025)


def cells(measure: str, lengths: list[int]) -> tuple[float, float]:
    """(tokens a second, p99 over p50 of the times between tokens) of 32 clients."""
    row = simulate(COSTS, room_of(COSTS, measure, 2.75), lengths, n_clients=32, n_requests=64)
    return float(row[0]), float(row[-1])


def test_the_pace_keeps_p99_between_tokens_within_three_medians() -> None:
    for lengths in ([128], [128, 128, 2048], [128] * 30 + [2048]):
        assert cells("everybody", lengths)[1] <= 3.0
    assert cells("none", [128])[1] > 5.0


def test_those_who_wait_make_the_pace_of_long_prompts_faster() -> None:
    assert cells("everybody", [128, 128, 2048])[0] > 1.1 * cells("who decodes", [128, 128, 2048])[0]
