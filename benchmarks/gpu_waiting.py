"""Stage of make gpu-e2e: how long the GPU waits for the host in decode steps of gpu_model.py's model.

    python benchmarks/gpu_waiting.py --out benchmarks/results/gpu_e2e.json

By torch's profiler, which goes on slowing its process when it is over: so this is a program of its own."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tools/gpu_e2e"))

import e2e_stage
from e2e_stage import Row
from gpu_clock import load_torch
from gpu_idle import busy_and_waiting, intervals_of, middle
from gpu_model import LIMIT_S, Participants, Scale, about, rate_of


def waiting(participants: Participants, n_sequences: int) -> dict[str, Any]:
    """Answers are long, for a profiler takes its time to begin. step_us: by when the tokens came."""
    ours, scale, torch = participants.get("bfloat16"), participants.scale, participants.torch
    watch = functools.partial(torch.profiler.profile, activities=[torch.profiler.ProfilerActivity.CUDA])
    with watch():  # loads what it needs
        pass
    answers = [ours.start(scale.n_prompt, 4 * scale.n_new[n_sequences]) for _ in range(n_sequences)]
    for answer in answers:
        answer.wait_for(2)
    with watch() as profile:
        n_before = len(answers[0].times)
        answers[0].wait_for(n_before + scale.n_watched)
        step_us = 1e6 / rate_of([answers[0].times[n_before:]])
    for answer in answers:
        answer.wait()
    found = busy_and_waiting(middle(intervals_of(torch, profile)))
    return found | about(ours, n_sequences=n_sequences, step_us=step_us)


def all_rows(participants: Participants) -> dict[str, Row]:
    return {
        f"bench-bfloat16-waiting-{n}": Row(functools.partial(waiting, participants, n), LIMIT_S["ours"])
        for n in participants.scale.n_new
    }


def main() -> int:
    os.environ["TEARDOWN_CUPTI"] = "0"  # after which a second profile of CUDA graphs has crashed
    asked = e2e_stage.arguments(__doc__.splitlines()[0]).parse_args()
    return e2e_stage.run_stage(lambda: all_rows(Participants(load_torch(), Scale())), asked)


if __name__ == "__main__":
    sys.exit(main())
