"""llm-decoder bench: how many tokens a second a model makes on this machine."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions
from llm_decoder.cli._output import emit_json, emit_table, progress

if TYPE_CHECKING:
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput


def bench(
    *,
    prompt_len: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of a prompt.")] = 256,
    gen_len: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of an answer.")] = 128,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Requests at a time, for the batch row.")] = 8,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Runs; the median counts. One more warms up.")] = 3,
    as_json: JsonFlag = False,
    model: ModelOptions,
) -> None:
    """Measure tokens a second.

    prefill: prompt tokens until the first token of one request. decode: tokens of one answer after its first. batch:
    tokens generated over all requests of a batch, prompts included in the time. Prompts are random tokens, new for each
    run, so that no cached prefix helps.
    """
    from llm_decoder.sampling import SamplingParams

    started = time.perf_counter()
    with _open.open_llm(model) as llm:
        load_s = time.perf_counter() - started
        params = SamplingParams(max_tokens=gen_len, temperature=0.0, ignore_eos=True)
        draw = random.Random(0)
        samples = Samples()
        with progress("runs", repeat + 1) as bar:
            for index in range(repeat + 1):
                prompts = [_prompt(llm, draw, prompt_len) for _ in range(1 + batch)]
                alone = llm.generate([prompts[0]], params)[0]
                started = time.perf_counter()
                together = llm.generate(prompts[1:], params)
                wall_s = time.perf_counter() - started
                if index:  # the first run warms up
                    samples.add(alone, together, wall_s)
                bar.advance(1, sum(output.metrics.n_generated_tokens for output in (alone, *together)))
        report = {
            "model": llm.name,
            "prompt_len": prompt_len,
            "gen_len": gen_len,
            "batch": batch,
            "repeat": repeat,
            "load_s": load_s,
            **samples.report(),
            "engine": llm.stats()["backend"],
            "machine": _machine(),
        }
    if as_json:
        emit_json(report)
    else:
        rows = [
            (name, f"{report[f'{name}_tokens_per_s']:.1f}", f"{min(values):.1f} to {max(values):.1f}")
            for name, values in samples.tokens_per_s.items()
        ]
        emit_table(("", "TOKENS/S", "RANGE"), rows)


@dataclass
class Samples:
    """Tokens a second of each run, by what was measured."""

    tokens_per_s: dict[str, list[float]] = field(default_factory=lambda: {"prefill": [], "decode": [], "batch": []})
    first_token_s: list[float] = field(default_factory=list)

    def add(self, alone: RequestOutput, together: list[RequestOutput], wall_s: float) -> None:
        metrics = alone.metrics
        self.first_token_s.append(metrics.time_to_first_token_s)
        self.tokens_per_s["prefill"].append(metrics.n_prompt_tokens / metrics.time_to_first_token_s)
        decode_s = metrics.total_s - metrics.time_to_first_token_s
        self.tokens_per_s["decode"].append((metrics.n_generated_tokens - 1) / decode_s)
        self.tokens_per_s["batch"].append(sum(output.metrics.n_generated_tokens for output in together) / wall_s)

    def report(self) -> dict[str, Any]:
        medians = {f"{name}_tokens_per_s": statistics.median(values) for name, values in self.tokens_per_s.items()}
        return medians | {"time_to_first_token_s": statistics.median(self.first_token_s), "runs": self.tokens_per_s}


def _prompt(llm: LLM, draw: random.Random, n_tokens: int) -> list[int]:
    return [draw.randrange(llm.vocab_size) for _ in range(n_tokens)]


def _machine() -> dict[str, Any]:
    import platform

    import llm_decoder

    return {"python": platform.python_version(), "system": platform.platform(), "llm_decoder": llm_decoder.__version__}
