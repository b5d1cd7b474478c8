"""A driver without an engine: its tokens arrive at moments that are made up. The model's name says how it behaves."""

from __future__ import annotations

import argparse
import os
import sys

from worker import Arrivals, serve


class Fake:
    versions = "fake 1"
    config = "none"

    def __init__(self, args: argparse.Namespace) -> None:
        os.write(1, b"an engine that prints while it loads\n")
        if args.model == "unloadable":
            raise SystemExit("no such model")
        self._model = args.model

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        os.write(1, b"an engine that prints while it computes\n")
        if self._model == "crash" and len(prompts) > 1:
            sys.exit("out of memory")
        if self._model == "short":
            n_generate -= 1
        if len(prompts[0]) == 13:
            raise ValueError("13 tokens")
        return [[0.5 + 0.25 * i for i in range(n_generate)] for _ in prompts]

    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        if len(prompt) == 13:
            raise ValueError("13 tokens")
        return n_generate - 1 if self._model == "short" else n_generate


if __name__ == "__main__":
    serve(Fake, argparse.ArgumentParser())
