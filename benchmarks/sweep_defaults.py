"""Loads that the defaults are chosen by, for one or more sizes of a step, in turn.

    python benchmarks/sweep_defaults.py MODEL_DIR --max-tokens-per-step 256 512 1024

Prefill of one prompt, decode of one stream and of eight, and a mixed load: eight streams decode while a long prompt is
computed, so each of its steps is what they wait for their next token. A constant of the core (kSpanPositions in
cpu_kernels.h, kSpin in thread_pool.cpp) is swept by a build for each value; compare what this prints from each.

Prints JSON: medians, by the size of a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from typing import Any

from llm_decoder.backends import BackendOptions, create_backend
from llm_decoder.engine_core import EngineCore
from llm_decoder.loading import load_model
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.sequence import Limits, Request, build_request

STREAMS = 8
SHORT, LONG = 128, 2048  # tokens of a prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", nargs="?")
    parser.add_argument("--max-tokens-per-step", type=int, nargs="+", default=[512])
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--decode-steps", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    model = load_model(args.model_dir, quantization="int8")
    players = {size: Player(model, size, args) for size in args.max_tokens_per_step}
    seen: dict[int, dict[str, list[float]]] = {size: {} for size in players}
    for turn in range(1 + args.repeat):
        for size, player in players.items():
            for load in args.loads:
                for name, value in LOADS[load](player).items():
                    if turn:  # the first one warms up
                        seen[size].setdefault(name, []).append(value)
    report: dict[str, Any] = {"model": model.name, "arguments": vars(args)}
    for size, values in seen.items():
        report[str(size)] = {name: float(f"{statistics.median(runs):.4g}") for name, runs in values.items()}
    print(json.dumps(report, indent=1))


class Player:
    """An engine on this thread: a step is a call."""

    _numbers = itertools.count()  # no prompt comes twice: prefixes are kept

    def __init__(self, model: Any, max_tokens_per_step: int, args: argparse.Namespace) -> None:
        options = BackendOptions(
            threads=args.threads, kv_cache_bytes=256 << 20, max_tokens_per_step=max_tokens_per_step
        )
        self.backend = create_backend(model, options)
        self.core = EngineCore(self.backend, model.tokenizer)
        self.decode_steps = args.decode_steps
        self._tokenizer = model.tokenizer
        self._limits = Limits(
            self.backend.vocab_size, self.backend.max_model_len, self.backend.cache.max_tokens(max_tokens_per_step)
        )

    def add(self, n_prompt: int, n_answer: int) -> Request:
        number = next(self._numbers)
        rng = random.Random(number)
        request = build_request(
            [rng.randrange(2, self.backend.vocab_size) for _ in range(n_prompt)],
            resolve_params(SamplingParams(temperature=0.0, max_tokens=n_answer, ignore_eos=True)),
            self._limits,
            self._tokenizer,
            request_id=str(number),
            seed=0,
            sink=lambda item: None,
        )
        self.core.add(request)
        return request

    def add_streams(self, count: int, n_prompt: int, n_answer: int) -> list[Request]:
        """Requests of which each has its first token."""
        requests = [self.add(n_prompt, n_answer) for _ in range(count)]
        while not all(request.first_token_s for request in requests):
            self.core.step()
        return requests

    def steps_until_first_token(self, request: Request) -> list[float]:
        """Seconds of each."""
        seconds: list[float] = []
        while not request.first_token_s:
            seconds.append(self.step())
        return seconds

    def step(self) -> float:
        start = time.perf_counter()
        self.core.step()
        return time.perf_counter() - start

    def finish(self) -> None:
        for request_id in list(self.core.requests):
            self.core.cancel(request_id)


def prefill(player: Player) -> dict[str, float]:
    rates = {}
    for n_prompt in (512, LONG):
        seconds = sum(player.steps_until_first_token(player.add(n_prompt, 1)))
        rates[f"prefill {n_prompt}, tokens/s"] = n_prompt / seconds
    return rates


def decode(player: Player) -> dict[str, float]:
    times = {}
    for count, n_prompt in ((1, SHORT), (1, LONG), (STREAMS, SHORT)):
        player.add_streams(count, n_prompt, player.decode_steps + 2)
        seconds = [player.step() for _ in range(player.decode_steps)]
        times[f"decode, {count} at {n_prompt}, ms"] = 1e3 * statistics.median(seconds)
        player.finish()
    return times


def mixed(player: Player) -> dict[str, float]:
    player.add_streams(STREAMS, SHORT, LONG)
    seconds = player.steps_until_first_token(player.add(LONG, 1))
    player.finish()
    return {
        f"mixed: first token of {LONG}, s": sum(seconds),
        f"mixed: a token of the {STREAMS} streams, ms": 1e3 * statistics.mean(seconds),
        "mixed: the longest wait for one, ms": 1e3 * max(seconds),
    }


LOADS = {"prefill": prefill, "decode": decode, "mixed": mixed}

if __name__ == "__main__":
    main()
