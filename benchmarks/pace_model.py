"""What the pace of prompts does to clients, on a model of steps: no machine's noise is in it.

    python benchmarks/pace_model.py --fixed-ms 5 --decode-ms 0.4 --prompt-ms 0.25

Clients in a closed loop; a step costs a fixed time, one for each sequence that decodes and one for each token of a
prompt. Prints a table: `who decodes` measures a step by the sequences that decode in it, `everybody` (llm_decoder.pace)
by all that are here, `none` lets a prompt have all of a step.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from table import table

from llm_decoder.pace import Pace
from llm_decoder.speculation import StepCost

LIMIT = 512
N_ANSWER = 64
LOADS = {"prompts of 128": [128], "every third prompt of 2048": [128, 128, 2048]}
Room = Callable[[int, int], int]  # (sequences that decode, sequences that are here) -> tokens of prompts


@dataclass(frozen=True)
class Costs:
    """Seconds: of a step, of a sequence that decodes in it, of a token of a prompt."""

    fixed_s: float
    decode_s: float
    prompt_s: float

    def step_s(self, n_decodes: int, n_prompt_tokens: int = 0) -> float:
        return self.fixed_s + self.decode_s * n_decodes + self.prompt_s * n_prompt_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixed-ms", type=float, default=5.0)
    parser.add_argument("--decode-ms", type=float, default=0.4)
    parser.add_argument("--prompt-ms", type=float, default=0.25)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--stretch", default="2,2.75,3,5")
    args = parser.parse_args()
    costs = Costs(args.fixed_ms / 1e3, args.decode_ms / 1e3, args.prompt_ms / 1e3)
    rows = [["load", "measure", "stretch", "tokens/s", "first token p50, p99, ms", "between p50, p99, ms", "p99/p50"]]
    for load, lengths in LOADS.items():
        for measure in ("who decodes", "everybody", "none"):
            for stretch in map(float, args.stretch.split(",")) if measure != "none" else (float("inf"),):
                result = simulate(costs, room_of(costs, measure, stretch), lengths, args.clients, args.requests)
                rows.append([load, measure, f"{stretch:g}", *result])
    print(table(rows, left=(0, 1)))


def room_of(costs: Costs, measure: str, stretch: float) -> Room:
    if measure == "none":
        return lambda n_decodes, n_here: LIMIT
    step_cost = StepCost()
    for _ in range(20):
        for n_decodes in (1, 8, 16, 24, 32):
            step_cost.learn(n_decodes, costs.step_s(n_decodes))
    pace = type("Swept", (Pace,), {"STRETCH": stretch})(step_cost)
    pace.learn(16, 256, costs.step_s(16, 256))
    everybody = measure == "everybody"
    return lambda n_decodes, n_here: pace.most_prompt_tokens(n_decodes, n_here if everybody else n_decodes, LIMIT)


def simulate(costs: Costs, room: Room, lengths: list[int], n_clients: int, n_requests: int) -> list[str]:
    """Cells of a row: tokens a second, times to the first token, times between tokens, p99 over p50 of these."""
    draw = random.Random(0)
    asked = [draw.choice(lengths) for _ in range(n_requests)]
    coming, prompts, answers = list(range(n_requests)), {}, {}  # request -> tokens that are left
    sent_s, last_s, first, between = {}, {}, [], []
    now_s = 0.0
    while coming or prompts or answers:
        while coming and len(prompts) + len(answers) < n_clients:
            request = coming.pop(0)
            prompts[request], sent_s[request] = asked[request], now_s
        n_decodes = len(answers)
        left = room(n_decodes, n_decodes + len(prompts)) if n_decodes else LIMIT
        left, n_taken = min(left, LIMIT - n_decodes), 0
        for request in prompts:
            taken = min(prompts[request], left - n_taken)
            prompts[request] -= taken
            n_taken += taken
        now_s += costs.step_s(n_decodes, n_taken)
        for request in list(answers):
            between.append(now_s - last_s[request])
            last_s[request] = now_s
            answers[request] -= 1
            if not answers[request]:
                del answers[request]
        for request in [request for request, n_left in prompts.items() if not n_left]:
            del prompts[request]
            first.append(now_s - sent_s[request])
            answers[request], last_s[request] = N_ANSWER - 1, now_s
    (early, late), (middle, long) = (np.percentile(values, (50, 99)) * 1e3 for values in (first, between))
    tokens_s = (sum(asked) + n_requests * N_ANSWER) / now_s
    return [f"{tokens_s:.0f}", f"{early:.0f}, {late:.0f}", f"{middle:.1f}, {long:.1f}", f"{long / middle:.2f}"]


if __name__ == "__main__":
    main()
