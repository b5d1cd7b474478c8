"""One sample of our own speed, through the public API: prints tokens/s.

    python benchmarks/ours.py MODEL_DIR --threads 2 --shape N_PROMPT N_GENERATE N_SEQUENCES

N_GENERATE 0 measures the prompt: its tokens over the time to the first token. Otherwise the decoded tokens of all
sequences a second, from the moment when each has its first token.
"""

from __future__ import annotations

import argparse
import random
import threading
import time

from llm_decoder import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--shape", type=int, nargs=3, required=True, metavar=("PROMPT", "GENERATE", "SEQUENCES"))
    args = parser.parse_args()
    n_prompt, n_generate, n_sequences = args.shape

    # A random model soon repeats itself, which speculation would make the most of: here every token is a step's.
    options = {"device": "cpu", "quantization": args.quantization, "threads": args.threads, "speculation": "none"}
    with LLM(args.model_dir, **options) as llm:
        warm_up = random_prompt(llm, 64, seed=-1)
        llm.generate([warm_up], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
        prompts = [random_prompt(llm, n_prompt, seed) for seed in range(n_sequences)]
        rate = decode_rate(llm, prompts, n_generate) if n_generate else prefill_rate(llm, prompts[0])
    print(rate)


def random_prompt(llm: LLM, n_tokens: int, seed: int) -> list[int]:
    """Distinct for each seed, so that no prefix is found in the cache."""
    rng = random.Random(seed)
    return [rng.randrange(2, llm.vocab_size) for _ in range(n_tokens)]


def prefill_rate(llm: LLM, prompt: list[int]) -> float:
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    return len(prompt) / output.metrics.time_to_first_token_s


def decode_rate(llm: LLM, prompts: list[list[int]], n_generate: int) -> float:
    params = SamplingParams(max_tokens=n_generate + 1, temperature=0.0, ignore_eos=True)
    times: list[list[float]] = [[] for _ in prompts]

    def follow(index: int) -> None:
        for event in llm.stream(prompts[index], params):
            times[index] += [time.perf_counter()] * len(event.token_ids)

    threads = [threading.Thread(target=follow, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin = max(arrivals[0] for arrivals in times)
    later = [moment for arrivals in times for moment in arrivals if moment > begin]
    return len(later) / (max(later) - begin)


if __name__ == "__main__":
    main()
