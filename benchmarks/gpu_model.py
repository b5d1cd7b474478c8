"""Stage of make gpu-e2e: a model of Llama-3.1-8B's sizes through the engine on a GPU, beside HF transformers.

    python benchmarks/gpu_model.py --out benchmarks/results/gpu_e2e.json
    python benchmarks/gpu_model.py --out benchmarks/results/gpu_e2e.json --rows bfloat16

Rows, each of one participant: tokens a second of so many answers at once (`decode`), and time to the first token of a
prompt (`first-token`). Ours are what a user sees who streams; transformers has a static cache and its decode step
compiled. Weights are random (gpu_model_weights.py). `limits` is what the machine gives in the same run: bandwidth of
reads and copies, rate of bf16 products."""

from __future__ import annotations

import functools
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tools/gpu_e2e", "benchmarks/peers")]

import e2e_stage  # noqa: E402
import numpy as np  # noqa: E402
from e2e_stage import Row  # noqa: E402
from gpu_clock import GpuClock, device_state, load_torch  # noqa: E402
from gpu_model_weights import LLAMA_8B, open_llm, random_model, step_bytes  # noqa: E402
from transformers_on_gpu import TransformersOnGpu  # noqa: E402

from llm_decoder import SamplingParams  # noqa: E402
from llm_decoder.backends import BackendOptions  # noqa: E402
from llm_decoder.llm import LLM  # noqa: E402

QUANTIZATIONS = {"bfloat16": "none", "int8": "int8", "int4": "int4", "fp8": "fp8"}
THEIRS = "transformers"
GRAPHS = "LLM_DECODER_CUDA_GRAPHS"
LIMIT_S = {"ours": 90.0, THEIRS: 180.0}
WAIT_S = 60.0


@dataclass(frozen=True)
class Scale:
    """How large and how often. n_new: tokens of each answer where so many are written at once (key: answers).
    n_recorded: first steps of transformers that do not count, for each call's cache is another, and its graphs are
    recorded again. n_watched: steps that a profiler watches (gpu_waiting.py)."""

    hf_config: Mapping[str, Any] = field(default_factory=lambda: LLAMA_8B)
    n_prompt: int = 128
    n_new: Mapping[int, int] = field(default_factory=lambda: {1: 256, 8: 256, 64: 192})
    first_tokens: tuple[int, ...] = (2048, 4096)
    n_recorded: int = 16
    n_watched: int = 64
    n_samples: int = 3
    warm_s: float = 0.5
    kv_cache_bytes: int = 12 << 30
    max_tokens_per_step: int = 4096
    device: str = "cuda"  # of transformers


class Answer:
    """When the tokens of an answer came."""

    def __init__(self) -> None:
        self.times: list[tuple[float, int]] = []  # seconds, tokens
        self.error: Exception | None = None
        self._is_over = threading.Event()
        self._began = threading.Condition()

    def take(self, item: Any) -> None:
        """On the engine's thread."""
        if isinstance(item, Exception):
            self.error = item
        elif item.token_ids:
            with self._began:
                self.times.append((time.perf_counter(), len(item.token_ids)))
                self._began.notify_all()
        if isinstance(item, Exception) or item.output is not None:
            self._is_over.set()

    def wait(self) -> None:
        """Until it is whole. Raises what it failed with."""
        if not self._is_over.wait(WAIT_S):
            raise TimeoutError(f"an answer was not there after {WAIT_S:.0f} s")
        if self.error is not None:
            raise self.error

    def wait_for(self, n_events: int) -> None:
        with self._began:
            if not self._began.wait_for(lambda: len(self.times) >= n_events or self._is_over.is_set(), WAIT_S):
                raise TimeoutError(f"no {n_events} tokens after {WAIT_S:.0f} s")


class Ours:
    """An LLM, and prompts that it has not seen."""

    def __init__(self, scale: Scale, quantization: str) -> None:
        model = random_model(scale.hf_config, quantization)
        options = BackendOptions(
            device="cuda",
            kv_cache_bytes=scale.kv_cache_bytes,
            kv_tier_bytes=0,
            max_tokens_per_step=scale.max_tokens_per_step,
        )
        self.step_bytes = step_bytes(model.config, model.layout)
        self.llm: LLM = open_llm(model, options)
        self._vocab_size = model.config.vocab_size
        self._rng = np.random.default_rng(1)

    def start(self, n_prompt: int, n_new: int) -> Answer:
        answer = Answer()
        prompt = self._rng.integers(0, self._vocab_size, n_prompt).tolist()
        params = SamplingParams(max_tokens=n_new, temperature=0.0, ignore_eos=True)
        self.llm.submit(prompt, params, stream=True, sink=answer.take)
        return answer

    def tokens_per_s(self, n_sequences: int, n_prompt: int, n_new: int) -> float:
        """While all of them write."""
        answers = [self.start(n_prompt, n_new) for _ in range(n_sequences)]
        for answer in answers:
            answer.wait()
        return rate_of([answer.times for answer in answers])

    def first_token_s(self, n_prompt: int) -> float:
        begin = time.perf_counter()
        answer = self.start(n_prompt, 1)
        answer.wait()
        return answer.times[0][0] - begin

    def close(self) -> None:
        self.llm.close()


class Theirs:
    def __init__(self, torch: Any, scale: Scale) -> None:
        self._peer = TransformersOnGpu(torch, scale.hf_config, scale.device)
        self._vocab_size = scale.hf_config["vocab_size"]
        self._n_recorded = scale.n_recorded
        self._rng = np.random.default_rng(1)

    def tokens_per_s(self, n_sequences: int, n_prompt: int, n_new: int) -> float:
        times = self._peer.token_times(self._prompts(n_sequences, n_prompt), n_new)[self._n_recorded :]
        return rate_of([[(moment, 1) for moment in times]] * n_sequences)

    def first_token_s(self, n_prompt: int) -> float:
        return self._peer.token_times(self._prompts(1, n_prompt), 1)[0]

    def _prompts(self, n_sequences: int, n_prompt: int) -> np.ndarray:
        return self._rng.integers(0, self._vocab_size, (n_sequences, n_prompt))

    def close(self) -> None:
        self._peer.close()


def rate_of(answers: list[list[tuple[float, int]]]) -> float:
    """Tokens a second from when all answers have begun to when the first is over. answers: (seconds, tokens) of each.

    Raises ValueError where they did not write at the same time.
    """
    begin = max(times[0][0] for times in answers)
    end = min(times[-1][0] for times in answers)
    if end <= begin:
        raise ValueError("need answers that are written at the same time; ask for longer ones")
    return sum(n for times in answers for moment, n in times if begin < moment <= end) / (end - begin)


class Participants:
    """The one that is open: there is memory for it, and for the next when it is closed."""

    def __init__(self, torch: Any, scale: Scale) -> None:
        self.torch, self.scale = torch, scale
        self._name = ""
        self._open: Any = None

    def get(self, name: str) -> Any:
        """name: of QUANTIZATIONS, the same and "-no-graphs", or THEIRS."""
        if name != self._name:
            self.close()
            self._open = self._make(name)
            self._name = name
        return self._open

    def _make(self, name: str) -> Any:
        if name == THEIRS:
            return Theirs(self.torch, self.scale)
        with graphs_as(name.endswith("-no-graphs")):
            return Ours(self.scale, QUANTIZATIONS[name.removesuffix("-no-graphs")])

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open, self._name = None, ""
        gc.collect()  # a compiled model and its call hold each other
        if self.torch.cuda.is_available():
            self.torch.cuda.empty_cache()


@contextmanager
def graphs_as(is_off: bool) -> Iterator[None]:
    before = os.environ.get(GRAPHS)
    if is_off:
        os.environ[GRAPHS] = "0"
    try:
        yield
    finally:
        os.environ.pop(GRAPHS, None)
        if before is not None:
            os.environ[GRAPHS] = before


def measured(measure: Callable[[], float], scale: Scale, unit: str, **facts: Any) -> dict[str, Any]:
    """The median, after those that are not counted: one at least, for so long that a device which was idle has raised
    its clocks again. And the device's state around them."""
    before = device_state()
    end = time.perf_counter() + scale.warm_s
    measure()
    while time.perf_counter() < end:
        measure()
    samples = [measure() for _ in range(scale.n_samples)]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        unit: statistics.median(samples),
        "samples": samples,
        "state": {"before": before, "after": device_state()},
        **facts,
    }


def decode(participants: Participants, name: str, n_sequences: int) -> dict[str, Any]:
    one, scale = participants.get(name), participants.scale
    n_new = scale.n_new[n_sequences]
    measure = functools.partial(one.tokens_per_s, n_sequences, scale.n_prompt, n_new)
    return measured(measure, scale, "tokens_per_s", **about(one, n_sequences=n_sequences, n_new=n_new))


def first_token(participants: Participants, name: str, n_prompt: int) -> dict[str, Any]:
    one, scale = participants.get(name), participants.scale
    facts = about(one, n_prompt=n_prompt, flops=prefill_flops(scale.hf_config, n_prompt))
    return measured(functools.partial(one.first_token_s, n_prompt), scale, "seconds", **facts)


def about(one: Any, **facts: Any) -> dict[str, Any]:
    """Of ours also what the backend chose, and the bytes of weights that a step reads."""
    if isinstance(one, Ours):
        facts |= {"step_bytes": one.step_bytes, "backend": one.llm.stats()["backend"]}
    return facts


def prefill_flops(hf_config: Mapping[str, Any], n_prompt: int) -> int:
    """Of the products of all tokens, of causal attention, and of the output layer's one row."""
    config = hf_config
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_width, kv_width = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = hidden * (2 * q_width + 2 * kv_width) + 3 * hidden * inner
    attention = 2 * q_width * n_prompt * (n_prompt + 1) // 2
    each = layer * n_prompt + attention
    return 2 * (config["num_hidden_layers"] * each + config["vocab_size"] * hidden)


def limits(torch: Any) -> dict[str, Any]:
    clock = GpuClock(torch)
    before = device_state()
    found = clock.limits() | {"read_gb_per_s": clock.read_gb_per_s(), "l2_bytes": clock.l2_bytes}
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return found | {"versions": versions, "state": {"before": before, "after": device_state()}}


def all_rows(participants: Participants) -> dict[str, Row]:
    """In the order of what a run without time for all should have measured; rows of one participant together."""
    scale = participants.scale
    batches = list(scale.n_new)
    rows: dict[str, Row] = {"bench-limits": Row(functools.partial(limits, participants.torch), LIMIT_S["ours"])}

    def add(kind: str, make: Callable[..., dict[str, Any]], name: str, size: int) -> None:
        limit_s = LIMIT_S[THEIRS if name == THEIRS else "ours"]
        rows[f"bench-{name}-{kind}-{size}"] = Row(functools.partial(make, participants, name, size), limit_s)

    def add_all(name: str, answers: Sequence[int] = batches, prompts: Sequence[int] = scale.first_tokens) -> None:
        for n_sequences in answers:
            add("decode", decode, name, n_sequences)
        for n_prompt in prompts:
            add("first-token", first_token, name, n_prompt)

    add_all("bfloat16")
    add_all("int4")
    add_all(THEIRS, batches[::-1])
    add_all("bfloat16-no-graphs", batches[:2], ())
    add_all("int8")
    add_all("fp8")
    return rows


def main() -> int:
    asked = e2e_stage.arguments(__doc__.splitlines()[0]).parse_args()
    return e2e_stage.run_stage(lambda: all_rows(Participants(load_torch(), Scale())), asked)


if __name__ == "__main__":
    sys.exit(main())
