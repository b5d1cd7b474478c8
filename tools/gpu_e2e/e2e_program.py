"""What compute-sanitizer watches: a tiny model's prefill, decodes, sampling and beams, on pages of each dtype.

usage: e2e_program.py FOLDER    (of a model, see e2e_sanitizers.py)
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_decoder import LLM, SamplingParams, SearchParams

PROMPTS = [[5, 9, 200, 17], [3] * 40, list(range(20, 110))]


def main(folder: Path) -> int:
    for kv_cache_dtype in ("auto", "int8"):
        with LLM(
            folder,
            device="cuda",
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=4 << 20,
            max_tokens_per_step=96,
            cache_dir=folder / "packed",
        ) as llm:
            greedy = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=2)
            drawn = SamplingParams(max_tokens=6, temperature=0.9, top_p=0.9, top_k=20, seed=1, ignore_eos=True, n=2)
            penalised = SamplingParams(
                max_tokens=4, temperature=0.7, repetition_penalty=1.3, logit_bias={7: 2.0}, seed=2
            )
            llm.generate([*PROMPTS, *PROMPTS, PROMPTS[0]], [greedy] * 3 + [drawn] * 3 + [penalised])
            llm.search(PROMPTS[1:2], SearchParams(width=3, max_tokens=5, ignore_eos=True))
            llm.score(PROMPTS[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
