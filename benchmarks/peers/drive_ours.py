"""Ours, through the public API: one thread a sequence, as an application would stream."""

from __future__ import annotations

import argparse
import threading
import time

from worker import Arrivals, serve

import llm_decoder
from llm_decoder import LLM, SamplingParams, SearchParams


class Ours:
    def __init__(self, args: argparse.Namespace) -> None:
        self._llm = LLM(
            args.model,
            device="cpu",
            quantization=args.quantization,
            threads=args.threads,
            kv_cache_bytes=args.kv_cache_bytes,
            speculation="none",  # a random model soon repeats itself: here every token is a step's
        )
        self.versions = f"llm_decoder {llm_decoder.__version__}"
        isa = self._llm.stats()["backend"]["isa"]
        self.config = f"LLM(quantization={args.quantization}, kv_cache_bytes={args.kv_cache_bytes >> 20} MiB), {isa}"

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        params = SamplingParams(max_tokens=n_generate, temperature=0.0, ignore_eos=True)
        arrivals: Arrivals = [[] for _ in prompts]
        failures: list[Exception] = []
        start = time.perf_counter()

        def follow(prompt: list[int], times: list[float]) -> None:
            try:
                for event in self._llm.stream(prompt, params):
                    times += [time.perf_counter() - start] * len(event.token_ids)
            except Exception as error:  # noqa: BLE001 - told to the caller, below
                failures.append(error)

        threads = [threading.Thread(target=follow, args=pair) for pair in zip(prompts, arrivals, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return arrivals

    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        if n_beams == 1:
            (output,) = self._llm.generate(
                prompt, SamplingParams(max_tokens=n_generate, temperature=0.0, ignore_eos=True)
            )
        else:
            params = SearchParams(width=n_beams, max_tokens=n_generate, length_penalty=0.0, ignore_eos=True)
            (output,) = self._llm.search(prompt, params)
        return len(output.outputs[0].token_ids)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--kv-cache-bytes", type=int, default=1 << 30)
    serve(Ours, parser)
