"""Hugging Face transformers: generate(), greedy, with its cache kept for prompts that come again."""

from __future__ import annotations

import argparse
import time

import torch
import transformers
from worker import Arrivals, serve


class Transformers:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            args.model, dtype=getattr(torch, args.dtype), local_files_only=True
        ).eval()
        self._held: tuple[list[list[int]], transformers.DynamicCache] | None = None
        self.versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.config = f"generate(greedy), {args.dtype}, {self._model.config._attn_implementation} attention"

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], n_generate: int, reuse: bool) -> Arrivals:
        if reuse and self._held and self._held[0] == prompts:
            cache = self._held[1]
        else:
            self._held = None
            cache = transformers.DynamicCache(config=self._model.config)
        ids = torch.tensor(prompts)
        moments: list[float] = []
        start = time.perf_counter()

        def note(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            moments.append(time.perf_counter() - start)
            return torch.zeros(len(ids), dtype=torch.bool)

        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=n_generate,
            min_new_tokens=n_generate,
            do_sample=False,
            pad_token_id=1,
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )
        cache.crop(len(prompts[0]) - 1 - cache.get_seq_length())  # negative: how many to drop
        self._held = (prompts, cache) if reuse else None
        return [list(moments) for _ in prompts]

    @torch.inference_mode()
    def search(self, prompt: list[int], n_beams: int, n_generate: int) -> int:
        ids = torch.tensor([prompt])
        answer = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n_generate,
            min_new_tokens=n_generate,
            num_beams=n_beams,
            length_penalty=0.0,
            do_sample=False,
            pad_token_id=1,
        )
        return answer.shape[1] - len(prompt)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    serve(Transformers, parser)
