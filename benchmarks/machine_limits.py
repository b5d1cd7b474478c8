"""The machine's own limits, measured: bytes read a second, and int8 operations a second where there is vpdpbusd."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np

READ_BYTES = 256 << 20
DOT_LOOPS = 5_000_000


def build() -> ctypes.CDLL:
    """Compile machine_limits.c for this CPU with `cc`. Raises CalledProcessError when that fails."""
    source = Path(__file__).with_name("machine_limits.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "machine_limits.so"
        subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        code = ctypes.CDLL(str(library))
    code.read_all.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    code.dot_int8.argtypes = [ctypes.c_int64]
    code.dot_int8_ops.restype = ctypes.c_int64
    return code


def seconds(n_threads: int, work: Callable[[int], object], n_runs: int = 3) -> float:
    """Median time in which every thread has done work(thread)."""
    with ThreadPoolExecutor(n_threads) as pool:
        times = []
        for _ in range(n_runs):
            start = time.perf_counter()
            list(pool.map(work, range(n_threads)))
            times.append(time.perf_counter() - start)
    return median(times)


def measure(n_threads: int) -> dict[str, float]:
    """Returns read_gb_s and int8_gops (0 without vpdpbusd) of `n_threads` threads together."""
    code = build()
    data = np.ones(READ_BYTES // 8, np.uint64)
    share = READ_BYTES // n_threads // 256 * 256
    read_s = seconds(n_threads, lambda thread: code.read_all(data.ctypes.data + thread * share, share))
    dot_s = seconds(n_threads, lambda _: code.dot_int8(DOT_LOOPS))
    return {
        "read_gb_s": n_threads * share / read_s * 1e-9,
        "int8_gops": n_threads * DOT_LOOPS * code.dot_int8_ops() / dot_s * 1e-9,
    }
