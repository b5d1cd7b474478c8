"""The methods of docs/attention.md and the kernel that runs models, on the same inputs: time, bytes, bandwidth.

    make gpu-bench                                                         # where a GPU is
    python benchmarks/attention_methods.py                                 # anywhere: bytes and launches
    python benchmarks/attention_methods.py --markdown                      # the table of docs/attention.md
    python benchmarks/attention_methods.py --out FILE --plot PNG --measured    # an earlier run

Bytes are counted from the shapes, as each method's header does it, not measured; of the kernel that runs models by its
plan. Times are of a GPU: medians of 30 with the L2 cache filled with something else before each; the share is of a
copy's bandwidth, measured in the same run. Every method's result is held against that of the kernel that runs models.
The rows go into a JSON file, after each, and the next run takes those that are left.

Exit status: 0 all rows are there, 1 a row failed, 2 the build has no study, 3 rows are left after --limit-s.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import table
from gpu_clock import GpuClock, NoDevice, device_state, load_torch
from resumed import DONE, KERNELS, RowsFile, id_of, measure_rows, sources, watched

ROOT = Path(__file__).parents[1]
FUSED = "fused"
RESULTS = ROOT / "benchmarks/results/attention_methods.json"
N_HEADS, N_KV_HEADS, HEAD_DIM, PAGE_SIZE = 32, 8, 128, 64
H200_SMS = 132
TOLERANCE = 0.02
ROW_LIMIT_S = 60.0  # a row that takes longer has failed and ends the process
CANNOT = 2
LABELS = {
    "naive": "naive",
    "flash_attention_1": "FlashAttention",
    "flash_attention_2": "FlashAttention-2",
    "flash_decoding": "Flash-Decoding",
    "flash_decoding_pp": "FlashDecoding++",
    "paged_attention": "PagedAttention",
    FUSED: "the fused kernel",
}


@dataclass(frozen=True)
class Shape:
    """n_queries: the last of each sequence's n_keys."""

    n_batch: int
    n_queries: int
    n_keys: int

    @property
    def name(self) -> str:
        kind = "decode" if self.n_queries == 1 else f"prompt{self.n_queries}"
        return f"{kind}-b{self.n_batch}-{self.n_keys}"

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """As the study takes them."""
        return self.n_batch, self.n_queries, self.n_keys, N_HEADS, N_KV_HEADS, HEAD_DIM

    @property
    def flops(self) -> int:
        n_seen = self.n_queries * self.n_keys - self.n_queries * (self.n_queries - 1) // 2
        return 4 * self.n_batch * n_seen * N_HEADS * HEAD_DIM


SHAPES = [Shape(n_batch, 1, n_keys) for n_batch in (1, 8, 32) for n_keys in (1024, 4096, 16384)] + [
    Shape(1, 2048, 2048)
]
SHOWN = (Shape(1, 1, 4096), Shape(32, 1, 16384), Shape(1, 2048, 2048))  # in docs/attention.md


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="a folder with the study (default build)")
    parser.add_argument("--out", type=Path, help="the JSON file; with a GPU by default in benchmarks/results")
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    parser.add_argument("--markdown", action="store_true", help="bytes alone, as docs/attention.md has them")
    parser.add_argument("--measured", action="store_true", help="measure nothing, show what is in --out")
    parser.add_argument("--limit-s", type=float, default=70.0, help="no row begins after this (default 70)")
    args = parser.parse_args()
    if args.measured and args.out is None:
        parser.error("--measured needs --out, the file of an earlier run")
    status, data = DONE, {}
    if args.measured:
        data = json.loads(args.out.read_text())["rows"]
    else:
        study, reason = load_study(args.build)
        if study is None:
            print(f"attention_methods: {reason}", file=sys.stderr)
            return CANNOT
        if args.markdown:
            print(bytes_table(count_all(study, SHOWN, H200_SMS)))
            return DONE
        status, data = measure(study, reason, args.out, args.limit_s)
    print(times_table(data))
    if args.plot:
        plot(data, args.plot)
    return status


def load_study(build: Path) -> tuple[ModuleType | None, str]:
    """The study on a device, else on the host machine with the reason why no times come from it; None: neither."""
    sys.path.insert(0, str(build.resolve() / "benchmarks"))
    reasons = []
    for name in ("_study_cuda", "_study_host"):
        try:
            found = importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{build} has no {name} ({error})")
            continue
        return found, "; ".join(reasons)
    return None, f"{'; '.join(reasons)}: cmake --build {build} --target _study_host"


# ---- what is counted ---------------------------------------------------------------------------------------------


def count(study: Any, method: str, shape: Shape, n_sms: int, is_hopper: bool = False) -> dict[str, int]:
    """n_bytes, n_launches, n_splits, flops; of the study's methods what scratch they need too. is_hopper: where prompts
    go to the kernel for Hopper."""
    if method == FUSED:
        return study.describe_fused(shape.numbers, n_sms, is_hopper) | {"flops": shape.flops}
    return study.describe(method, shape.numbers, n_sms) | {"flops": shape.flops}


def methods_of(study: Any) -> list[str]:
    return [*study.METHODS, FUSED]


def count_all(study: Any, shapes: Iterable[Shape], n_sms: int) -> dict[str, dict[str, Any]]:
    """{shape: {method: counts}}"""
    return {shape.name: {m: count(study, m, shape, n_sms) for m in methods_of(study)} for shape in shapes}


# ---- what is measured --------------------------------------------------------------------------------------------


def measure(study: Any, reason: str, out: Path | None, limit_s: float) -> tuple[int, dict[str, Any]]:
    """(exit status, rows). Where there is no GPU: counts, and why there are no times."""
    try:
        if reason:
            raise NoDevice(reason)
        torch = load_torch()
    except NoDevice as lack:
        print(f"attention_methods: no times, for {lack}. What follows is counted.", file=sys.stderr)
        rows = {name: {"counts": counts, "times": {}} for name, counts in count_all(study, SHAPES, H200_SMS).items()}
        if out is not None:
            file = RowsFile(out, {"device": f"none, counted for {H200_SMS} multiprocessors"})
            for name, row in rows.items():
                file.put(name, row)
        return DONE, rows
    clock = GpuClock(torch)
    limits = clock.limits()
    device = torch.cuda.get_device_properties(0)
    file = RowsFile(out or RESULTS, {"sources": id_of(*sources(*KERNELS)), "device": device.name})

    def maker_of(shape: Shape) -> Callable[[], Mapping[str, Any]]:
        make = functools.partial(time_shape, torch, study, shape, clock, limits, device.multi_processor_count)
        return watched(shape.name, make, ROW_LIMIT_S, file)

    makers = {shape.name: maker_of(shape) for shape in SHAPES}
    return measure_rows(makers, file, limit_s, can_go_on=clock.is_alive), file.rows


class Inputs:
    """The same keys and values in one piece and in pages."""

    def __init__(self, torch: Any, shape: Shape) -> None:
        self.torch, self.shape = torch, shape
        torch.manual_seed(shape.n_keys)

        def normal(*sizes: int) -> Any:
            return torch.randn(*sizes, dtype=torch.bfloat16, device="cuda")

        per_sequence = shape.n_keys // PAGE_SIZE
        n_pages = shape.n_batch * per_sequence
        self.q = normal(shape.n_batch * shape.n_queries, N_HEADS, HEAD_DIM)
        self.k, self.v = (normal(n_pages * PAGE_SIZE, N_KV_HEADS, HEAD_DIM) for _ in "kv")
        order = torch.randperm(n_pages, device="cuda")
        self.block_table = order.to(torch.int32).reshape(shape.n_batch, per_sequence)
        paged = (n_pages, PAGE_SIZE, N_KV_HEADS, HEAD_DIM)
        self.k_pages, self.v_pages = (torch.empty(paged, dtype=torch.bfloat16, device="cuda") for _ in "kv")
        for pages, rows in ((self.k_pages, self.k), (self.v_pages, self.v)):
            pages[order] = rows.reshape(paged)

    def call_of(self, study: Any, method: str, counts: Mapping[str, int]) -> tuple[Callable[[], object], Any]:
        """(a call of the method, where its result goes)"""
        torch = self.torch
        out = torch.full_like(self.q, float("nan"))
        if method == FUSED:
            return self._fused(out), out
        is_paged = method == "paged_attention"
        n_states = counts["n_states"]
        scratch = [
            torch.empty(n, dtype=torch.float32, device="cuda")
            for n in (counts["n_scores"], n_states * HEAD_DIM, n_states, n_states)
        ]
        flags = torch.zeros(counts["n_wrong_flags"], dtype=torch.int32, device="cuda")
        tensors = [
            self.q,
            self.k_pages if is_paged else self.k,
            self.v_pages if is_paged else self.v,
            out,
            self.block_table,
            *scratch,
            flags,
        ]
        addresses = tuple(tensor.data_ptr() for tensor in tensors)

        def call(held: object = tensors) -> None:
            stream = torch.cuda.current_stream().cuda_stream
            study.run(method, self.shape.numbers, counts["n_splits"], PAGE_SIZE, addresses, 0.0, 0, stream)

        return call, out

    def _fused(self, out: Any) -> Callable[[], object]:
        import numpy as np

        from llm_decoder import ops

        shape = self.shape
        seq_lens = np.full(shape.n_batch, shape.n_keys, np.int32)
        cu_seqlens_q = (np.arange(shape.n_batch + 1) * shape.n_queries).astype(np.int32)
        heads = {"n_heads": N_HEADS, "n_kv_heads": N_KV_HEADS, "head_dim": HEAD_DIM}
        plan = ops.plan_attention(seq_lens, cu_seqlens_q, device="cuda", **heads)
        arguments = (self.q, self.k_pages, self.v_pages, self.block_table, seq_lens, cu_seqlens_q)
        return lambda: ops.paged_attention(*arguments, plan=plan, out=out)


def time_shape(
    torch: Any, study: Any, shape: Shape, clock: GpuClock, limits: Mapping[str, float], n_sms: int
) -> dict[str, Any]:
    """A row: counts and times of every method. Raises RuntimeError where one gives something else than the others."""
    inputs = Inputs(torch, shape)
    is_hopper = torch.cuda.get_device_capability() == (9, 0)
    counts = {method: count(study, method, shape, n_sms, is_hopper) for method in methods_of(study)}
    times: dict[str, Any] = {}
    fused, want = inputs.call_of(study, FUSED, counts[FUSED])
    fused()
    want = want.float()
    for method in methods_of(study):
        call, out = inputs.call_of(study, method, counts[method])
        call()
        torch.cuda.synchronize()
        distance = float(torch.linalg.vector_norm(out.float() - want) / torch.linalg.vector_norm(want))
        if not distance <= TOLERANCE:
            raise RuntimeError(f"{method} lies {distance:.3g} from the fused kernel, {TOLERANCE} is allowed")
        times[method] = clock.graph_us(call)
        del call, out
    return {"counts": counts, "times": times, "limits": dict(limits), "state": device_state()}


# ---- what is shown -----------------------------------------------------------------------------------------------


def bytes_table(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """A row a method, a column a shape: the bytes that it moves."""
    shapes = list(counts)
    rows = [["method", *shapes]]
    for method in next(iter(counts.values())):
        cells = [f"{table.figure(counts[shape][method]['n_bytes'] / 1e6)} MB" for shape in shapes]
        rows.append([LABELS[method], *cells])
    return table.table(rows, left=(0,))


def times_table(rows: Mapping[str, Any]) -> str:
    """A row a shape and method; share: of the bandwidth of a copy, by the bytes that the method moves."""
    cells = [["shape", "method", "us", "MB", "GB/s", "share", "kernels", "splits"]]
    for name, row in rows.items():
        if "failed" in row:
            cells.append([name, row["failed"], *["-"] * 6])
            continue
        for method, counts in row["counts"].items():
            time = row["times"].get(method)
            speed = counts["n_bytes"] / time["us"] / 1e3 if time else 0.0
            cells.append(
                [
                    name,
                    LABELS[method],
                    table.figure(time["us"]) if time else "-",
                    table.figure(counts["n_bytes"] / 1e6),
                    table.figure(speed) if time else "-",
                    f"{speed / row['limits']['copy_gb_per_s']:.0%}" if time else "-",
                    str(counts["n_launches"]),
                    str(counts["n_splits"]),
                ]
            )
    return table.table(cells, left=(0, 1))


def plot(rows: Mapping[str, Any], path: Path) -> None:
    """A panel a batch: over the context, the time of each method where it was measured, else the bytes it moves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = {shape.name: shape for shape in SHAPES}
    decodes = [(shapes[name], row) for name, row in rows.items() if name in shapes and shapes[name].n_queries == 1]
    batches = sorted({shape.n_batch for shape, _ in decodes})
    is_timed = any(row["times"] for _, row in decodes if "times" in row)
    canvas, panels = pyplot.subplots(1, len(batches), figsize=(4.2 * len(batches), 4), sharey=True, squeeze=False)
    for panel, batch in zip(panels[0], batches, strict=True):
        for method, label in LABELS.items():
            points = [
                (shape.n_keys, row["times"][method]["us"] if is_timed else row["counts"][method]["n_bytes"] / 1e6)
                for shape, row in decodes
                if shape.n_batch == batch and method in row.get("times" if is_timed else "counts", {})
            ]
            is_ours = method == FUSED
            panel.plot(*zip(*sorted(points), strict=True), marker="o", label=label, linewidth=2.5 if is_ours else 1.2)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(f"decode, {batch} sequence{'s' * (batch > 1)}", fontsize=10)
        panel.set_xlabel("context", fontsize=9)
        panel.grid(color="0.92")
    panels[0][0].set_ylabel("microseconds" if is_timed else "MB moved, counted", fontsize=9)
    panels[0][-1].legend(fontsize=8, frameon=False)
    canvas.tight_layout()
    canvas.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
