"""OpenVINO GenAI: its continuous-batching pipeline (paged attention), stepped as its own server steps it."""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from worker import Arrivals, serve


class OpenVino:
    def __init__(self, args: argparse.Namespace) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 4096
        scheduler.cache_size = args.cache_gib
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": args.threads}
        self._pipeline = genai.ContinuousBatchingPipeline(args.model, scheduler, "CPU", properties)
        self._ids = itertools.count()
        self.versions = f"openvino-genai {genai.__version__}"
        self.config = (
            f"ContinuousBatchingPipeline(max_num_seqs 64, max_num_batched_tokens 4096, cache_size {args.cache_gib}, "
            f"prefix caching on, INFERENCE_NUM_THREADS {args.threads})"
        )

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = n_generate
        config.ignore_eos = True
        config.do_sample = False
        start = time.perf_counter()
        handles = [
            self._pipeline.add_request(next(self._ids), ov.Tensor(np.array([prompt], dtype=np.int64)), config)
            for prompt in prompts
        ]
        arrivals: Arrivals = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - start
            for handle, times in zip(handles, arrivals, strict=True):
                while handle.can_read():
                    times += [now] * sum(len(output.generated_ids) for output in handle.read().values())
        return arrivals

    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = n_generate
        config.ignore_eos = True
        config.do_sample = False
        if n_beams > 1:
            config.num_beams = n_beams
            config.num_return_sequences = 1
            config.length_penalty = 0.0
            config.eos_token_id = -1  # a beam that meets one would still end there
        ids = ov.Tensor(np.array([prompt], dtype=np.int64))
        (result,) = self._pipeline.generate([ids], [config])
        return len(result.m_generation_ids[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache-gib", type=int, default=2)
    serve(OpenVino, parser)
