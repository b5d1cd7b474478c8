r"""Ours and llama.cpp on the same weights, alternating, with the machine's limits probed beside them.

    python benchmarks/make_gguf.py MODEL_DIR MODEL.gguf
    python benchmarks/against_llama_cpp.py MODEL_DIR MODEL.gguf --llama-bin BUILD/bin \
        --llama-version 'libllama 0.5.0, GCC 12.2, native' --out benchmarks/results/NAME.json

Each sample is a process of its own on both sides. Prints a table; writes every sample, the medians, the commands, the
versions and the machine. llama.cpp runs its own llama-bench and llama-batched-bench with their defaults.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = {
    "prefill512": (512, 0, 1),
    "prefill2048": (2048, 0, 1),
    "decode128": (128, 48, 1),
    "decode2048": (2048, 48, 1),
    "batch8": (128, 32, 8),
    "batch16": (128, 32, 16),
}  # name -> (prompt tokens, generated tokens, sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--llama-bin", type=Path, required=True, help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--llama-version", required=True, help="what to note in the results: tree, compiler, options")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows = []
    print(f"{'column':12} {'ours tok/s':>12} {'llama.cpp':>12} {'ratio':>7}   GB/s  GOPS")
    for name in args.columns.split(","):
        shape = COLUMNS[name]
        row = measure(
            name,
            lambda shape=shape: ours(args, shape),
            lambda shape=shape: llama_cpp(args, shape),
            lambda: probe(args.threads),
            args.repeat,
        )
        rows.append(row)
        print(
            f"{name:12} {row['ours']:12.1f} {row['llama_cpp']:12.1f} {row['ratio']:7.2f}"
            f" {row['read_gb_s']:6.1f} {row['int8_gops']:5.0f}",
            flush=True,
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report(args, rows), indent=1) + "\n")


def measure(
    name: str,
    ours_once: Callable[[], float],
    peer_once: Callable[[], float],
    probe_once: Callable[[], tuple[float, float]],
    repeat: int,
) -> dict:
    """One column: (ours, peer, limits) `repeat` times in turn. Values are tokens/s."""
    samples = [(ours_once(), peer_once(), *probe_once()) for _ in range(repeat)]
    mine, peers, reads, dots = zip(*samples, strict=True)
    medians = [statistics.median(values) for values in (mine, peers, reads, dots)]
    return {
        "column": name,
        "ours": medians[0],
        "llama_cpp": medians[1],
        "ratio": medians[0] / medians[1],
        "read_gb_s": medians[2],
        "int8_gops": medians[3],
        "ours_samples": mine,
        "llama_cpp_samples": peers,
        "read_gb_s_samples": reads,
        "int8_gops_samples": dots,
    }


def ours(args: argparse.Namespace, shape: tuple[int, int, int]) -> float:
    command = [sys.executable, HERE / "ours.py", args.model_dir, "--threads", args.threads, "--shape", *shape]
    return float(run(command))


def llama_cpp(args: argparse.Namespace, shape: tuple[int, int, int]) -> float:
    n_prompt, n_generate, n_sequences = shape
    common = ["-m", args.gguf, "-t", args.threads]
    if n_sequences > 1:
        batched = [args.llama_bin / "llama-batched-bench", *common, "-tb", args.threads, "-c", 4096, "-b", 2048]
        batched += ["-ub", 512, "-npp", n_prompt, "-ntg", n_generate, "-npl", n_sequences, "--output-format", "jsonl"]
        (line,) = (line for line in run(batched).splitlines() if line.startswith("{"))
        return json.loads(line)["speed_tg"]
    bench = [args.llama_bin / "llama-bench", *common, "-r", 1, "-o", "json"]
    bench += ["-p", 0, "-n", n_generate, "-d", n_prompt] if n_generate else ["-p", n_prompt, "-n", 0]
    return json.loads(run(bench))[0]["avg_ts"]


def run(command: list) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def probe(threads: int) -> tuple[float, float]:
    """GB/s read and int8 GOPS, in a process of its own like every other sample."""
    code = (
        "from llm_decoder.backends import open_limits; "
        f"limits = open_limits({threads}, 'auto'); "
        "print(limits.read_bytes_per_s(5) / 1e9, limits.int8_ops_per_s(5) / 1e9)"
    )
    read_gb_s, int8_gops = run([sys.executable, "-c", code]).split()
    return float(read_gb_s), float(int8_gops)


def report(args: argparse.Namespace, rows: list[dict]) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu[0],
        "n_cpus": len(cpu),
        "threads": args.threads,
        "model": args.model_dir.name,
        "weights": "ours W8 (int8, a scale a row), llama.cpp Q8_0",
        "llama_cpp_version": args.llama_version,
        "command": " ".join(["python", *sys.argv]).replace(str(args.model_dir.parent), "."),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
