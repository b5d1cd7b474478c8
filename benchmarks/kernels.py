"""Speed of the products on packed weights, beside the machine's own limits measured in the same run.

    python benchmarks/kernels.py --isa avx512vnni --layout w8 --threads 2 --json kernels.json

Weights are read from memory, not from a cache: a matrix is made as tall as it takes (n times a whole number), which the
kernel, seeing panels, cannot tell from many matrices in a row. GB/s counts the bytes of the weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from llm_decoder import _core

SHAPES = ((2048, 8192), (8192, 2048), (576, 1536), (2048, 2048))  # n_in, n_out
ROWS = (1, 2, 4, 8, 16, 64, 512)
COLD_BYTES = 256 << 20
LIMITS_BYTES = 1 << 30
MIN_OPERATIONS = 2e10
MAX_OUT_BYTES = 128 << 20
BYTES_OF_WEIGHT = {"w4": 4.5 / 8, "w8": 1, "bf16": 2, "f32": 4}


@dataclass
class Result:
    layout: str
    m: int
    k: int
    n: int
    gb_s: float
    gops: float


def copies_of(layout: str, m: int, k: int, n: int) -> int:
    """How many times n the matrix is tall: out of the caches, long enough to time, out [m, copies * n] in bounds."""
    n_bytes = int(n * k * BYTES_OF_WEIGHT[layout])
    wanted = max(COLD_BYTES / n_bytes if m < 64 else 1, MIN_OPERATIONS / (2 * m * n * k))
    return max(1, min(round(wanted), COLD_BYTES // n_bytes, MAX_OUT_BYTES // (4 * m * n)))


def random_w8(rng: np.random.Generator, n: int, k: int) -> npt.NDArray[np.uint8]:
    return _core.pack_w8(rng.integers(-127, 128, (n, k), np.int8))


def random_w4(rng: np.random.Generator, n: int, k: int) -> npt.NDArray[np.uint8]:
    group_scale = rng.integers(1, 17, (n, -(-k // 32)), np.uint8)
    group_min = rng.integers(-127, 128 - 15 * group_scale.astype(np.int16)).astype(np.int8)
    return _core.pack_w4(rng.integers(0, 16, (n, k), np.uint8), group_scale, group_min)


def run(isa: str, layout: str, m: int, k: int, n: int, n_threads: int, n_runs: int) -> Result:
    """Median of `n_runs` products [m, k] x [k, n] after one to warm up."""
    copies = copies_of(layout, m, k, n)
    n_all = copies * n
    rng = np.random.default_rng(0)
    arguments: tuple
    out = np.empty((m, n_all), np.float32)
    if layout in ("w4", "w8"):
        a = rng.integers(-127, 128, (m, k), np.int8)
        a_sum = a.sum(axis=1, dtype=np.int32)
        w = np.tile(random_w8(rng, n, k) if layout == "w8" else random_w4(rng, n, k), copies)
        scales = np.ones(n_all, np.float32)
        arguments = (isa, a, np.ones(m, np.float32), a_sum, w, scales, k, out)
        product = _core.kernels.gemm_w8 if layout == "w8" else _core.kernels.gemm_w4
    else:
        pack = _core.pack_f32 if layout == "f32" else _core.pack_bf16
        w = np.tile(pack(rng.standard_normal((n, k), np.float32)), copies)
        arguments = (isa, rng.standard_normal((m, k), np.float32), w, n_all, out)
        product = _core.kernels.gemm_f32 if layout == "f32" else _core.kernels.gemm_bf16
    times = []
    for _ in range(n_runs + 1):
        start = time.perf_counter()
        product(*arguments, n_threads=n_threads)
        times.append(time.perf_counter() - start)
    best_s = median(times[1:])
    return Result(layout, m, k, n, w.nbytes / best_s * 1e-9, 2 * m * n_all * k / best_s * 1e-9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="auto", help=f"auto or one of {', '.join(_core.isas())}")
    parser.add_argument("--layout", choices=tuple(BYTES_OF_WEIGHT), default="w8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, metavar="M")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    args = parser.parse_args()

    isa = _core.isas()[0] if args.isa == "auto" else args.isa
    machine = _core.MachineLimits(args.threads, LIMITS_BYTES, isa)
    read_gb_s, int8_gops = machine.read_bytes_per_s(5) / 1e9, machine.int8_ops_per_s(5) / 1e9
    print(f"{isa}, {args.layout}, {args.threads} threads; limits: read {read_gb_s:.1f} GB/s, int8 {int8_gops:.0f} GOPS")
    results = []
    for k, n in SHAPES:
        for m in args.rows:
            result = run(isa, args.layout, m, k, n, args.threads, args.runs)
            results.append(result)
            print(f"[{k:>5} -> {n:>5}]  M {m:>4}  {result.gb_s:7.2f} GB/s  {result.gops:8.1f} GOPS", flush=True)
    if args.json:
        report = {"machine": platform.processor() or platform.machine(), "isa": isa, "threads": args.threads}
        report |= {"limits": {"read_gb_s": read_gb_s, "int8_gops": int8_gops}}
        report |= {"results": [asdict(result) for result in results]}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
