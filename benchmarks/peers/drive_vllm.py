"""vLLM's CPU build: its engine in this process, stepped as LLM.generate() steps it."""

from __future__ import annotations

import argparse
import itertools
import os
import time

from worker import Arrivals, serve


class Vllm:
    def __init__(self, args: argparse.Namespace) -> None:
        os.environ.update(
            VLLM_CPU_KVCACHE_SPACE=str(args.cache_gib),
            VLLM_CPU_OMP_THREADS_BIND=f"0-{args.threads - 1}",
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_NO_USAGE_STATS="1",
            HF_HUB_OFFLINE="1",
        )
        import torch
        import vllm

        self._sampling = vllm.SamplingParams
        self._engine = vllm.LLM(
            args.model,
            dtype="bfloat16",
            max_model_len=args.max_model_len,
            max_num_seqs=64,
            max_num_batched_tokens=4096,
            enable_prefix_caching=True,
            seed=0,
        ).llm_engine
        self._ids = itertools.count()
        self.versions = f"vllm-cpu {vllm.__version__}, torch {torch.__version__}"
        self.config = (
            f"LLM(dtype=bfloat16, max_model_len={args.max_model_len}, max_num_seqs=64, max_num_batched_tokens=4096, "
            f"prefix caching on), KV {args.cache_gib} GiB"
        )

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        params = self._sampling(
            temperature=0.0, max_tokens=n_generate, min_tokens=n_generate, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        names = [str(next(self._ids)) for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, params)
        arrivals: dict[str, list[float]] = {name: [] for name in names}
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter() - start
            for output in outputs:
                times = arrivals[output.request_id]
                times += [now] * (len(output.outputs[0].token_ids) - len(times))
        return list(arrivals.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache-gib", type=int, default=2)
    parser.add_argument("--max-model-len", type=int, default=9216)
    serve(Vllm, parser)
