"""CTranslate2: Generator.generate_batch, greedy; what all prompts have in common is its static prompt."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ctranslate2
from worker import Arrivals, serve


class CTranslate2:
    def __init__(self, args: argparse.Namespace) -> None:
        self._generator = ctranslate2.Generator(
            args.model, device="cpu", compute_type=args.compute_type, intra_threads=args.threads, inter_threads=1
        )
        self._tokens = json.loads((Path(args.model) / "vocabulary.json").read_text())
        self.versions = f"ctranslate2 {ctranslate2.__version__}"
        self.config = f"Generator(compute_type={args.compute_type}).generate_batch(sampling_topk=1)"

    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        texts = [[self._tokens[i] for i in prompt] for prompt in prompts]
        # Each static prompt stays in memory, so only prompts that come again are given as such.
        n_static = min(common_length(texts), len(texts[0]) - 1) if reuse else 0
        arrivals: Arrivals = [[] for _ in prompts]
        start = time.perf_counter()

        def note(step: ctranslate2.GenerationStepResult) -> bool:
            arrivals[step.batch_id].append(time.perf_counter() - start)
            return False

        self._generator.generate_batch(
            [text[n_static:] for text in texts],
            static_prompt=texts[0][:n_static] or None,
            max_length=n_generate,
            min_length=n_generate,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
        )
        return arrivals

    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        (result,) = self._generator.generate_batch(
            [[self._tokens[i] for i in prompt]],
            max_length=n_generate,
            min_length=n_generate,
            beam_size=n_beams,
            include_prompt_in_result=False,
            end_token=[],
        )
        return len(result.sequences_ids[0])


def common_length(sequences: list[list[str]]) -> int:
    """How many tokens all have in common at their beginning."""
    n = 0
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        n += 1
    return n


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute-type", default="int8")
    serve(CTranslate2, parser)
