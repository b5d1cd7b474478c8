"""Speed of encoders of BERT's kind beside sentence-transformers (torch) and onnxruntime, on the same random weights.

    python benchmarks/encoders.py --peers /path/to/python --out encoders.json

--peers: an interpreter with torch, sentence-transformers, onnx and onnxruntime, for
benchmarks/peers/drive_encoders.py; without it ours alone are timed. A call takes a batch of sequences, ids in, the
hidden state of each first token out; all are of --lengths tokens, or for "mixed" of 32 to 256, which peers pad.
Engines take turns, --rounds times; those that wait are stopped. Of each case: the median of all calls in seconds,
tokens a second, how ours compare to the best peer, and the least cosine between an engine's rows and those of ours in
float32. Others who use the machine are noted with each case; `waits` tells whether the suite waited for them
(--quiet).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_time, describe, foreign_cores, probe_limits, process_cpu_s, wait_until_quiet
from peer_worker import PeerWorker

from llm_decoder.backends import EncoderBackend, pack_w8, quantize_weight_rows
from llm_decoder.encoders.config import EncoderConfig, weight_shapes
from llm_decoder.packed_tensor import PackedTensor

SHAPES = {
    "minilm": EncoderConfig(6, 384, 1536, 12, 30522, n_positions=512, n_types=2),
    "bert-base": EncoderConfig(12, 768, 3072, 12, 30522, n_positions=512, n_types=2),
}
OURS = ("int8", "float32")
PEERS = ("sentence-transformers", "onnxruntime-float32", "onnxruntime-int8")
BAR = ("sentence-transformers", "onnxruntime-int8")  # what ours in int8 are compared to
MIXED = (32, 256)  # tokens of a sequence, from and to
CALL_S = 0.4  # a turn is as many calls as take about so long
MAX_TOKENS = 8192

# batch -> (seconds of n calls, rows)
Engine = Callable[[list[list[int]], int], tuple[list[float], np.ndarray]]


def random_weights(config: EncoderConfig) -> dict[str, np.ndarray]:
    """Spread as trained weights are: matrices keep the size of what they multiply."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 2:
            values *= 0.05 if "embedding" in name else 1.0 / np.sqrt(shape[1])
        else:
            values = 0.02 * values + np.float32(0.0 if name.endswith(".bias") else 1.0)
        weights[name] = values.astype(np.float32)
    return weights


def open_ours(config: EncoderConfig, weights: dict[str, np.ndarray], is_int8: bool, n_threads: int) -> Engine:
    backend = EncoderBackend(config, n_threads)
    for name, weight in weights.items():
        if is_int8 and weight.ndim == 2:
            q, scale = quantize_weight_rows(weight)
            backend.set_weight(name, PackedTensor("w8", weight.shape, pack_w8(q), scale))
        else:
            backend.set_weight(name, weight)
    backend.finalize(MAX_TOKENS)

    def run(token_ids: list[list[int]], n_calls: int) -> tuple[list[float], np.ndarray]:
        tokens = np.concatenate([np.array(ids, np.int32) for ids in token_ids])
        counts = np.array([len(ids) for ids in token_ids], np.int32)
        seconds = []
        for _ in range(n_calls):
            begin = time.perf_counter()
            rows = backend.encode(tokens, counts, pooling="first")
            seconds.append(time.perf_counter() - begin)
        return seconds, rows

    return run


def peer_engine(worker: PeerWorker) -> Engine:
    def run(token_ids: list[list[int]], n_calls: int) -> tuple[list[float], np.ndarray]:
        answer = worker.ask({"token_ids": token_ids, "n_calls": n_calls})
        return answer["seconds"], np.array(answer["rows"], np.float32)

    return run


def make_batch(config: EncoderConfig, length: str, n_sequences: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    counts = rng.integers(MIXED[0], MIXED[1] + 1, n_sequences) if length == "mixed" else [int(length)] * n_sequences
    return [rng.integers(0, config.vocab_size, count).tolist() for count in counts]


def least_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    return float(((rows * others).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)).min())


def time_case(engines: dict[str, Engine], batch: list[list[int]], rounds: int, waits: bool) -> dict[str, Any]:
    """Every engine's seconds and rows, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    rows: dict[str, np.ndarray] = {}
    n_calls: dict[str, int] = {}
    for name, run in engines.items():  # the first call makes buffers, the second tells how many there may be
        run(batch, 1)
        (second,), rows[name] = run(batch, 1)
        n_calls[name] = max(1, int(CALL_S / second))
    if waits:
        wait_until_quiet()
    before, own = cpu_time(), process_cpu_s(os.getpid())
    for _ in range(rounds):
        for name, run in engines.items():
            seconds[name] += run(batch, n_calls[name])[0]
    busy = foreign_cores(before, cpu_time(), process_cpu_s(os.getpid()) - own)
    n_tokens = sum(len(ids) for ids in batch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    case: dict[str, Any] = {
        "n_sequences": len(batch),
        "n_tokens": n_tokens,
        "busy_cores_not_ours": round(busy, 2),  # those of peers among them
        "median_s": {name: round(value, 6) for name, value in medians.items()},
        "n_calls": {name: len(values) for name, values in seconds.items()},
        "tokens_per_s": {name: round(n_tokens / value) for name, value in medians.items()},
        "least_cosine": {name: round(least_cosine(value, rows["float32"]), 5) for name, value in rows.items()},
    }
    best = min((medians[name] for name in BAR if name in medians), default=None)
    if best is not None:
        case["int8_over_best_peer"] = round(best / medians["int8"], 2)
    return case


def run_shape(name: str, args: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    config, weights = SHAPES[name], random_weights(SHAPES[name])
    engines = {kind: open_ours(config, weights, kind == "int8", args.threads) for kind in OURS}
    versions: dict[str, str] = {}
    if args.peers:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.savez(folder / "weights.npz", config=json.dumps(config.to_core()), **weights)
        driver = Path(__file__).parent / "peers" / "drive_encoders.py"
        for peer in PEERS:
            command = [args.peers, str(driver), str(folder / "weights.npz"), peer, str(args.threads)]
            worker = PeerWorker(command, {"OMP_NUM_THREADS": str(args.threads)}, folder / f"{peer}.log")
            stack.callback(worker.close)
            versions = worker.ready["versions"]
            engines[peer] = peer_engine(worker)
    cases = []
    for n_sequences in args.batches:
        for length in args.lengths if n_sequences == 1 else [*args.lengths, "mixed"]:
            case = time_case(engines, make_batch(config, length, n_sequences), args.rounds, args.quiet)
            cases.append({"length": length, **case})
            print(name, json.dumps(cases[-1]), flush=True)
    return {"shape": name, "config": config.to_core(), "versions": versions, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", help="an interpreter with torch, sentence-transformers, onnx and onnxruntime")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", default=["32", "64", "128", "256"], help="tokens of a sequence")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="sequences of a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quiet", action="store_true", help="wait until others leave the machine alone")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": describe(),
        "threads": args.threads,
        "rounds": args.rounds,
        "waits": args.quiet,
    }
    result["read_gb_s"], result["int8_gops"] = (round(value, 1) for value in probe_limits(args.threads))
    result["shapes"] = []
    for name in args.shapes:
        with ExitStack() as stack:
            result["shapes"].append(run_shape(name, args, stack))
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
