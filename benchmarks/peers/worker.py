"""What every driver shares: a worker loads its engine once, then answers requests, one JSON object a line.

A worker runs in the engine's own interpreter, so this file uses the standard library alone. Lines on standard output:

    {"ready": {"versions": "...", "config": "...", "load_s": 1.2}}     once, after loading
    {"first_token_s": 0.12, "decode_tokens_s": 45.6}                   for each request; null where nothing was decoded
    {"search_s": 1.23}                                                 instead, for a request with n_beams
    {"failed": "what went wrong"}                                      instead, when a request cannot be answered

and a request, on standard input:

    {"n_prompt": 128, "n_generate": 48, "n_sequences": 8, "n_shared": 0, "n_beams": 0, "seed": 7,
     "reuse": true}

n_sequences prompts of n_prompt random ids, the first n_shared of them common to all; each generates n_generate tokens,
greedily, whatever they are. reuse: the same prompts come again, so keys and values that an engine keeps count as ready.
With n_beams the one prompt's best answer of n_generate tokens is searched among so many beams (1: greedily) by the sum
of log probabilities; none ends before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Protocol

Arrivals = list[list[float]]  # a list a sequence: seconds from the call to the arrival of each generated token


class Engine(Protocol):
    versions: str
    config: str

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        """Answer all prompts (of one length) together with exactly n_generate tokens each."""

    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        """The best of n_beams answers, as long as it gets; how many tokens it has."""


def serve(load: Callable[[argparse.Namespace], Engine], parser: argparse.ArgumentParser) -> None:
    """Run a worker until standard input ends. What the engine itself prints goes to standard error."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    lines_out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    start = time.perf_counter()
    engine = load(args)
    ready = {"versions": engine.versions, "config": engine.config, "load_s": round(time.perf_counter() - start, 3)}
    print(json.dumps({"ready": ready}), file=lines_out)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line), args.vocab_size)), file=lines_out)


def answer(engine: Engine, request: dict, vocab_size: int) -> dict:
    prompts = random_prompts(
        request["n_sequences"], request["n_prompt"], request["n_shared"], request["seed"], vocab_size
    )
    try:
        if request["n_beams"]:
            return timed_search(engine, prompts[0], request["n_beams"], request["n_generate"])
        arrivals = engine.generate(prompts, request["n_generate"], request["reuse"])
    except Exception as error:  # noqa: BLE001 - whatever an engine raises is this request's answer
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    counts = [len(times) for times in arrivals]
    if counts != [request["n_generate"]] * request["n_sequences"]:
        return {"failed": f"asked for {request['n_generate']} tokens a sequence, got {counts}"}
    return {"first_token_s": min(times[0] for times in arrivals), "decode_tokens_s": decode_rate(arrivals)}


def timed_search(engine: Engine, prompt: list[int], n_beams: int, n_generate: int) -> dict:
    start = time.perf_counter()
    n_tokens = engine.search(prompt, n_beams, n_generate)
    search_s = time.perf_counter() - start
    if n_tokens != n_generate:
        return {"failed": f"asked for an answer of {n_generate} tokens, got {n_tokens}"}
    return {"search_s": search_s}


def random_prompts(n_sequences: int, n_prompt: int, n_shared: int, seed: int, vocab_size: int) -> list[list[int]]:
    """Distinct for each seed, so that an engine finds no prefix that it was not meant to find."""
    rng = random.Random(seed)

    def ids(n_tokens: int) -> list[int]:
        return [rng.randrange(300, vocab_size) for _ in range(n_tokens)]

    shared = ids(n_shared)
    return [shared + ids(n_prompt - n_shared) for _ in range(n_sequences)]


def decode_rate(arrivals: Arrivals) -> float | None:
    """Decoded tokens a second of all sequences together, while every one of them is decoding.

    That is from the last first token to the first last token. Within, each sequence counts its own intervals: tokens of
    one step that arrive microseconds apart on either side of a bound change nothing.
    """
    begin = max(times[0] for times in arrivals)
    end = min(times[-1] for times in arrivals)
    rate = 0.0
    for times in arrivals:
        inside = [moment for moment in times if begin <= moment <= end]
        if len(inside) < 2 or inside[-1] == inside[0]:
            return None
        rate += (len(inside) - 1) / (inside[-1] - inside[0])
    return rate
