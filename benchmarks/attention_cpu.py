"""Speed of the paged attention kernel on one core: decode in GB/s of pages read, prefill in GOPS.

    python benchmarks/attention_cpu.py --isa avx512vnni --dtype s8 --head-dim 128 --n-heads 32 --n-kv-heads 8

Decode reads every page of a pool larger than the caches once a call; its limit is the core's read bandwidth, measured
in the same run. Prefill is one chunk of rows behind a context; an operation is a multiply or an add of QK or PV that
causality allows. Shared: --sequences that have --shared tokens in common and a page of their own, against as many with
pages of their own, in layers that take turns until --pool-bytes are read, which no cache holds. Figures are medians of
--repeats calls, or turns through the layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llm_decoder import _core


@dataclass(frozen=True)
class Pool:
    """Random pages in the layout of `include/llm_decoder/paged_kv.h`."""

    k: np.ndarray
    v: np.ndarray
    k_scale: np.ndarray | None
    v_scale: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.k, self.v, self.k_scale, self.v_scale) if array is not None)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins on a cache line, as the cache's own storage does."""
    line_bytes = 64
    raw = np.empty(array.nbytes + line_bytes, np.uint8)
    begin = -raw.ctypes.data % line_bytes
    out = raw[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def make_pool(dtype: str, n_pages: int, n_kv_heads: int, head_dim: int, page_size: int) -> Pool:
    rng = np.random.default_rng(0)
    padded = -(-head_dim // 16) * 16
    if dtype != "s8":
        k = rng.standard_normal((n_pages, n_kv_heads, padded, page_size), np.float32)
        v = rng.standard_normal((n_pages, n_kv_heads, page_size, padded), np.float32)
        if dtype == "bf16":
            k, v = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (k, v))
        return Pool(aligned(k), aligned(v), None, None)
    k = rng.integers(1, 256, (n_pages, n_kv_heads, padded // 4, page_size, 4), np.uint8)
    v = rng.integers(-127, 128, (n_pages, n_kv_heads, page_size // 4, padded, 4), np.int8)
    k_scale = rng.uniform(0.005, 0.02, (n_pages, n_kv_heads, page_size)).astype(np.float32)
    v_scale = rng.uniform(0.005, 0.02, (n_pages, n_kv_heads, page_size)).astype(np.float32)
    return Pool(aligned(k), aligned(v), aligned(k_scale), aligned(v_scale))


def median_s(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def read_bandwidth(repeats: int) -> float:
    """GB/s of one core reading 1 GiB, the best of `repeats`."""
    return _core.MachineLimits(1, 1 << 30).read_bytes_per_s(repeats) / 1e9


def attention(
    args: argparse.Namespace, pool: Pool, layers: np.ndarray, n_tokens: int, context: int, n_threads: int = 0
) -> float:
    """Seconds a layer, for `n_tokens` query tokens a sequence, the last at position context - 1. layers: page tables
    [n_layers, n_sequences, n_pages]. n_threads 1: pages are shared as a decoder shares them."""
    n_sequences = layers.shape[1]
    q = np.random.default_rng(1).standard_normal((n_sequences * n_tokens, args.n_heads, args.head_dim), np.float32)
    begins = np.arange(n_sequences + 1, dtype=np.int32) * n_tokens
    positions = np.full(n_sequences, context - n_tokens, np.int32)
    scale = args.head_dim**-0.5

    def turn() -> None:
        for tables in layers:
            _core.kernels.paged_attention(
                args.isa, q, pool.k, pool.v, pool.k_scale, pool.v_scale, tables, begins, positions, scale, 0, n_threads
            )

    return median_s(turn, args.repeats) / layers.shape[0]


def shuffled_pages(n_pages: int) -> np.ndarray:
    return np.random.default_rng(2).permutation(n_pages).astype(np.int32)


def decode_rows(args: argparse.Namespace) -> list[dict[str, float]]:
    rows = []
    for context in args.contexts:
        pages = -(-context // args.page_size)
        n_pages = max(args.pool_pages // pages, 1) * pages
        pool = make_pool(args.dtype, n_pages, args.n_kv_heads, args.head_dim, args.page_size)
        layers = shuffled_pages(n_pages).reshape(1, -1, pages)
        seconds = attention(args, pool, layers, 1, context)
        rows.append({"context": context, "sequences": layers.shape[1], "gb_per_s": pool.nbytes / seconds / 1e9})
    return rows


def shared_row(args: argparse.Namespace) -> dict[str, float]:
    """Microseconds of a layer's attention over a trunk and a page for each sequence, shared and with copies of it."""
    trunk, n = -(-args.shared // args.page_size), args.sequences
    context = (trunk + 1) * args.page_size
    page_bytes = make_pool(args.dtype, 1, args.n_kv_heads, args.head_dim, args.page_size).nbytes
    n_pages = max(args.pool_bytes // page_bytes, n * (trunk + 1))
    pool = make_pool(args.dtype, n_pages, args.n_kv_heads, args.head_dim, args.page_size)
    pages = shuffled_pages(n_pages)

    def layers_of(layer_pages: int) -> np.ndarray:
        return pages[: n_pages // layer_pages * layer_pages].reshape(-1, layer_pages)

    separate = layers_of(n * (trunk + 1)).reshape(-1, n, trunk + 1)
    of_layers = layers_of(trunk + n)
    trunks = np.repeat(of_layers[:, None, :trunk], n, axis=1)
    shared = np.concatenate([trunks, of_layers[:, trunk:, None]], axis=2)
    separate_s = attention(args, pool, separate, 1, context, n_threads=1)
    shared_s = attention(args, pool, shared, 1, context, n_threads=1)
    return {"separate_us": separate_s * 1e6, "shared_us": shared_s * 1e6, "ratio": shared_s / separate_s}


def prefill_rows(args: argparse.Namespace) -> list[dict[str, float]]:
    rows = []
    for n_tokens in args.prefill:
        context = n_tokens + args.prefill_context
        pages = -(-context // args.page_size)
        pool = make_pool(args.dtype, pages, args.n_kv_heads, args.head_dim, args.page_size)
        seconds = attention(args, pool, shuffled_pages(pages).reshape(1, 1, pages), n_tokens, context)
        seen = n_tokens * args.prefill_context + n_tokens * (n_tokens + 1) // 2
        operations = 4 * seen * args.n_heads * args.head_dim
        rows.append({"tokens": n_tokens, "context": context, "gops": operations / seconds / 1e9})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=_core.isas()[0], choices=_core.isas())
    parser.add_argument("--dtype", default="s8", choices=("s8", "bf16", "f32"))
    parser.add_argument("--n-heads", type=int, default=32)
    parser.add_argument("--n-kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--pool-pages", type=int, default=4096, help="pages of the decode pool (default 4096)")
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 2048, 8192])
    parser.add_argument("--prefill", type=int, nargs="*", default=[16, 128, 512], help="tokens of the chunk")
    parser.add_argument("--prefill-context", type=int, default=512, help="tokens before the chunk")
    parser.add_argument("--shared", type=int, default=2048, help="tokens in common (default 2048)")
    parser.add_argument("--sequences", type=int, default=8, help="that have them in common (default 8)")
    parser.add_argument("--pool-bytes", type=int, default=768 << 20, help="of the layers that take turns")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(
        json.dumps(
            {
                "settings": vars(args),
                "read_gb_per_s": read_bandwidth(args.repeats),
                "decode": decode_rows(args),
                "shared": shared_row(args),
                "prefill": prefill_rows(args),
            }
        )
    )


if __name__ == "__main__":
    main()
