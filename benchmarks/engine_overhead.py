"""How much of a step is the engine's own Python: all of it but the core's step and sample.

    python benchmarks/engine_overhead.py MODEL_DIR --sequences 16 --steps 100
    python benchmarks/engine_overhead.py --device-ms 5 --sequences 64 --steps 200

Steps in which every sequence draws one token, on one thread of Python with nobody else waiting for it. Prints JSON:
medians in milliseconds and the engine's share of a step, for answers that are collected and for ones that are streamed.

With --device-ms nothing is computed: a device is played whose steps take so long, and between two of them it waits for
the engine, once as the engine reads each step's tokens before it makes the next step, once as it runs ahead. step_ms:
from one step's end to the next one's; gap_ms: how long of that the device stands still.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from llm_decoder.backends import Backend, BackendOptions, KvCache, create_backend
from llm_decoder.engine_core import EngineCore
from llm_decoder.loading import LoadedModel, load_model
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.sequence import Limits, build_request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", nargs="?")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device-ms", type=float, help="milliseconds that a step takes on a device that is played")
    args = parser.parse_args()

    model = load_model(args.model_dir)
    report: dict[str, Any] = {"model": model.name, "sequences": args.sequences}
    if args.device_ms is None:
        backend = create_backend(model, BackendOptions(threads=args.threads))
        clock = Clock()
        for name in ("step", "sample"):
            setattr(backend, name, clock.watch(getattr(backend, name)))
        report |= run(backend, model, args, lambda core: measure(core, clock, args.steps))
    else:
        for name, runs_ahead in (("reads first", False), ("runs ahead", True)):
            device = PlayedDevice(model, args, runs_ahead)
            report[name] = run(device, model, args, lambda core, device=device: measure_gap(core, device, args))
    print(json.dumps(report, indent=1))


def run(
    backend: Backend, model: LoadedModel, args: argparse.Namespace, measure: Callable[[EngineCore], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """What `measure` says of requests that are collected, and of ones that are streamed."""
    core = EngineCore(backend, model.tokenizer)
    limits = Limits(backend.vocab_size, backend.max_model_len, backend.cache.max_tokens(backend.max_tokens_per_step))
    report: dict[str, dict[str, float]] = {}
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
        report[name] = measure(core)
        while core.step():
            pass
    return report


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


def start_decoding(core: EngineCore) -> None:
    while core.scheduler.waiting or any(sequence.n_generated < 5 for sequence in core.scheduler.running):
        core.step()


def measure(core: EngineCore, clock: Clock, n_steps: int) -> dict[str, float]:
    """Medians over `n_steps` steps after all of them are decoding."""
    start_decoding(core)
    whole_s, own_s = [], []
    for _ in range(n_steps):
        clock.watched_s = 0.0
        started_s = time.perf_counter()
        core.step()
        whole_s.append(time.perf_counter() - started_s)
        own_s.append(whole_s[-1] - clock.watched_s)
    whole_ms, own_ms = (1000 * statistics.median(values) for values in (whole_s, own_s))
    return {"step_ms": round(whole_ms, 3), "engine_ms": round(own_ms, 3), "engine_share": round(own_ms / whole_ms, 4)}


class PlayedDevice:
    """A backend whose steps and draws are queued and take a set time, and whose tokens are as good as any."""

    def __init__(self, model: LoadedModel, args: argparse.Namespace, runs_ahead: bool) -> None:
        n_tokens = args.prompt + args.steps + 64
        self.runs_ahead = runs_ahead
        self.vocab_size = model.config.vocab_size
        self.max_model_len = n_tokens
        self.max_tokens_per_step = 2048
        self.page_size = 16
        n_pages = 2 * args.sequences * -(-n_tokens // self.page_size)
        self.cache = KvCache(n_pages=n_pages, page_size=self.page_size, layers=0, n_kv_heads=1, head_dim=16)
        self._step_s = args.device_ms / 1000
        self._random = np.random.default_rng(0)
        self._begun: deque[tuple[int, float]] = deque()  # rows of a draw, and when it is done
        self.done_s = 0.0  # when all that is queued is done
        self.gaps_s: list[float] = []  # that it has stood still before each step

    def step(self, tokens: Any, seq_ids: Any, counts: Any, want: Any) -> int:
        now_s = time.perf_counter()
        self.gaps_s.append(max(0.0, now_s - self.done_s))
        self.done_s = max(now_s, self.done_s) + self._step_s
        return int(np.count_nonzero(want))

    def begin_sample(self, rows: Any, params: Any, n_top: int) -> None:
        self._begun.append((len(rows), self.done_s))

    def end_sample(self) -> tuple[Any, ...]:
        n_rows, done_s = self._begun.popleft()
        time.sleep(max(0.0, done_s - time.perf_counter() - 0.0005))
        while time.perf_counter() < done_s:
            pass
        tokens = self._random.integers(2, self.vocab_size, n_rows, np.int32)
        zeros, nothing = np.zeros(n_rows, np.float32), np.zeros((n_rows, 0), np.float32)
        return tokens, zeros, zeros.astype(np.int32), nothing.astype(np.int32), nothing

    def sample(self, rows: Any, params: Any, n_top: int) -> tuple[Any, ...]:
        self.begin_sample(rows, params, n_top)
        return self.end_sample()


def measure_gap(core: EngineCore, device: PlayedDevice, args: argparse.Namespace) -> dict[str, float]:
    start_decoding(core)
    for _ in range(args.steps):
        core.step()
    gap_ms = 1000 * statistics.median(device.gaps_s[-args.steps :])
    return {"step_ms": round(args.device_ms + gap_ms, 3), "gap_ms": round(gap_ms, 3)}


if __name__ == "__main__":
    main()
