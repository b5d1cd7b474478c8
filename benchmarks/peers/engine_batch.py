"""Our engine with all requests of a load at once: what a server could reach that cost nothing.

The prompts are those of `llm-decoder bench serve` with the same flags. Prints JSON: seconds, tokens a second.
"""

from __future__ import annotations

import argparse
import json
import time

from llm_decoder import LLM, SamplingParams
from llm_decoder.cli._workload import Workload, parse_lengths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, required=True, help="computed together at the most")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--prompt-len", required=True)
    parser.add_argument("--gen-len", required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lengths = parse_lengths(args.prompt_len, "--prompt-len"), parse_lengths(args.gen_len, "--gen-len")
    with LLM(
        args.model,
        quantization=args.quantization,
        threads=args.threads,
        max_num_seqs=args.sequences,
        speculation="none",
    ) as llm:
        run(llm, Workload(4, *lengths, seed=args.seed), " warm-up")
        print(json.dumps(run(llm, Workload(args.requests, *lengths, seed=args.seed))))


def run(llm: LLM, workload: Workload, salt: str = "") -> dict[str, float]:
    asked = list(workload.prompts(salt))
    params = [SamplingParams(temperature=0.0, max_tokens=n_answer, ignore_eos=True) for _, n_answer in asked]
    cpu_s, started_s = time.process_time(), time.perf_counter()
    outputs = llm.generate([prompt for prompt, _ in asked], params)
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    n_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    n_answer = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {
        "wall_s": wall_s,
        "total_tokens_s": (n_prompt + n_answer) / wall_s,
        "answer_tokens_s": n_answer / wall_s,
        "server_cpu_s": cpu_s,
    }


if __name__ == "__main__":
    main()
