"""How much of a step is the engine's own Python: all of it but the core's step and sample.

    python benchmarks/engine_overhead.py MODEL_DIR --sequences 16 --steps 100

Steps in which every sequence draws one token, on one thread of Python with nobody else waiting for it. Prints JSON:
medians in milliseconds and the engine's share of a step, for answers that are collected and for ones that are streamed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from llm_decoder.backends import BackendOptions, create_backend
from llm_decoder.engine_core import EngineCore
from llm_decoder.loading import load_model
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.sequence import Limits, build_request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", nargs="?")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    model = load_model(args.model_dir)
    backend = create_backend(model, BackendOptions(threads=args.threads))
    clock = Clock()
    for name in ("step", "sample"):
        setattr(backend, name, clock.watch(getattr(backend, name)))
    core = EngineCore(backend, model.tokenizer)
    limits = Limits(backend.vocab_size, backend.max_model_len, backend.cache.max_tokens(backend.max_tokens_per_step))
    report: dict[str, Any] = {"model": model.name, "sequences": args.sequences}
    for name, stream, temperature in (("greedy", False, 0.0), ("sampled, streamed", True, 0.8)):
        params = SamplingParams(temperature=temperature, max_tokens=args.steps + 20, ignore_eos=True)
        for index in range(args.sequences):
            rng = random.Random(f"{name} {index}")
            request = build_request(
                [rng.randrange(2, backend.vocab_size) for _ in range(args.prompt)],
                resolve_params(params),
                limits,
                model.tokenizer,
                request_id=f"{name} {index}",
                seed=index,
                sink=lambda item: None,
                stream=stream,
            )
            core.add(request)
        report[name] = measure(core, clock, args.steps)
    print(json.dumps(report, indent=1))


class Clock:
    """Seconds spent in the functions it watches."""

    def __init__(self) -> None:
        self.watched_s = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            started_s = time.perf_counter()
            result = function(*arguments)
            self.watched_s += time.perf_counter() - started_s
            return result

        return timed


def measure(core: EngineCore, clock: Clock, n_steps: int) -> dict[str, float]:
    """Runs the requests of `core` to their end; medians over `n_steps` steps after all of them are decoding."""
    while core.scheduler.waiting or any(sequence.n_generated < 5 for sequence in core.scheduler.running):
        core.step()
    whole_s, own_s = [], []
    for _ in range(n_steps):
        clock.watched_s = 0.0
        started_s = time.perf_counter()
        core.step()
        whole_s.append(time.perf_counter() - started_s)
        own_s.append(whole_s[-1] - clock.watched_s)
    while core.step():
        pass
    whole_ms, own_ms = (1000 * statistics.median(values) for values in (whole_s, own_s))
    return {"step_ms": round(whole_ms, 3), "engine_ms": round(own_ms, 3), "engine_share": round(own_ms / whole_ms, 4)}


if __name__ == "__main__":
    main()
