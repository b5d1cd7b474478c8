"""Our GPU kernels and their peers on this machine's GPU, row by row, into a JSON file that is gone on with.

    make gpu-bench                                                           # builds, then runs this
    python benchmarks/gpu_kernels.py --out benchmarks/results/gpu_kernels.json
    python benchmarks/gpu_kernels.py --out benchmarks/results/gpu_kernels.json --table     # measures nothing

benchmarks/gpu_rows.py says what a row is, benchmarks/gpu_clock.py how it is timed: median of 30, the L2 cache filled
with something else before each. Each row has the device's state and its measured limits (copy bandwidth, bf16 products)
of the same run. No row is begun after --limit-s; the next run takes those that are left, and all where the sources of
the kernels or the device are others. A row that takes longer than ROW_LIMIT_S has failed and ends the process. Peers
that are not there, or refuse, are told with the reason.

Exit status: 0 all rows are there; 1 a row failed; 2 this machine cannot measure; 3 rows are left, run it again.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import table
from gpu_clock import GpuClock, NoDevice, device_state, load_torch
from resumed import KERNELS, RowsFile, id_of, measure_rows, sources, watched

if TYPE_CHECKING:
    from gpu_rows import Bench, Row, Work

HERE = Path(__file__).parent
CANNOT = 2
QUICK_SAMPLES = 10
ROW_LIMIT_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; rows that are there are kept")
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--quick", action="store_true", help=f"few rows of {QUICK_SAMPLES} samples")
    parser.add_argument("--limit-s", type=float, default=270.0, help="no row begins after this (default 270)")
    parser.add_argument("--table", action="store_true", help="the rows of --out as Markdown, and the bars they meet")
    args = parser.parse_args()
    if args.table:
        print(markdown(json.loads(args.out.read_text())))
        return 0
    try:
        torch = load_torch()
        check_kernels()
    except NoDevice as reason:
        print(f"gpu_kernels: nothing is measured: {reason}", file=sys.stderr)
        return CANNOT
    sys.path.append(str(HERE / "peers"))
    from gpu_rows import QUICK, Bench, all_rows

    n_samples = {"n_samples": QUICK_SAMPLES} if args.quick else {}
    clock = GpuClock(torch, **n_samples)
    file = RowsFile(
        args.out, {"sources": id_of(*sources(*KERNELS)), "device": torch.cuda.get_device_name(0), "quick": args.quick}
    )
    limits = clock.limits()
    file.put_facts({"versions": versions(torch), "limits": limits, "l2_bytes": clock.l2_bytes})
    rows = {name: row for name, row in all_rows().items() if args.rows in name and (name in QUICK or not args.quick)}
    makers = {
        name: watched(name, functools.partial(measure, torch, Bench, row, clock, limits), ROW_LIMIT_S, file)
        for name, row in rows.items()
    }
    status = measure_rows(makers, file, args.limit_s, can_go_on=clock.is_alive)
    print(markdown({"rows": file.rows}))
    return status


def check_kernels() -> None:
    """Raises NoDevice where this build has none, or they find no device."""
    from llm_decoder.backends import load_cuda
    from llm_decoder.errors import BackendError

    try:
        load_cuda().n_devices()
    except (BackendError, RuntimeError) as error:
        raise NoDevice(str(error)) from error


def versions(torch: Any) -> dict[str, str]:
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    try:
        import triton
    except ImportError as error:
        return found | {"triton": f"absent: {error}"}
    return found | {"triton": triton.__version__}


def measure(
    torch: Any, make_bench: Callable[[Any], Bench], row: Row, clock: GpuClock, limits: Mapping[str, float]
) -> dict[str, Any]:
    work = row(make_bench(torch))
    before = device_state()
    times, absent, differences = time_all(torch, work, clock)
    del work
    torch.cuda.empty_cache()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "limits": dict(limits),
        "state": {"before": before, "after": device_state()},
        **{"times": times, "absent": absent, "differences": differences},
    }


def time_all(torch: Any, work: Work, clock: Any) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
    """(time of each contestant, why others are absent, how far each lies from the first peer).

    Raises whatever goes wrong with ours, and RuntimeError where ours lies too far from the first peer. Another peer
    that lies so far is absent.
    """
    timed = {"graph": clock.graph_us, "host": clock.host_us}[work.how]
    times: dict[str, Any] = {}
    absent: dict[str, str] = {}
    differences: dict[str, float] = {}
    reference: Any = None
    for name, make in work.contestants.items():
        try:
            call = make()
            result = call()
            torch.cuda.synchronize()
            if result is not None:
                if reference is None and not is_ours(name):
                    reference = result.float().clone()
                elif reference is not None:
                    distance = difference(torch, result, reference)
                    if distance > work.tolerance:
                        raise RuntimeError(
                            f"{name} lies {distance:.3g} from the first peer, {work.tolerance} is allowed"
                        )
                    differences[name] = distance
            times[name] = facts(timed(call), work.bytes_of(name), work.flops)
        except Exception as error:  # whatever a peer raises, the others are timed
            if is_ours(name):
                raise
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return times, absent, differences


def is_ours(name: str) -> bool:
    return name.startswith("ours")


def difference(torch: Any, result: Any, reference: Any) -> float:
    """|result - reference| / |reference|; NaN is infinitely far."""
    distance = float(torch.linalg.vector_norm(result.float() - reference) / torch.linalg.vector_norm(reference))
    return distance if distance == distance else float("inf")


def facts(time: dict[str, float], n_bytes: int, flops: int) -> dict[str, float]:
    """The time, and what moved and was computed in it."""
    found = dict(time)
    if n_bytes:
        found["gb_per_s"] = n_bytes / time["us"] / 1e3
    if flops:
        found["tflops"] = flops / time["us"] / 1e6
    return found


# ---- what a result file says -------------------------------------------------------------------------------------


def markdown(data: Mapping[str, Any]) -> str:
    """A table of all rows, the bars, and who was absent."""
    rows = [["row", "who", "us", "GB/s", "of copy", "TFLOP/s", "times ours"]]
    notes = []
    for name, row in data["rows"].items():
        if "failed" in row:
            notes.append(f"- {name} failed: {row['failed']}")
            continue
        ours = row["times"].get("ours", {}).get("us")
        for who, time in row["times"].items():
            rows.append([name, who, *cells(time, row["limits"], ours)])
        notes += [f"- {name}, {who}: {reason}" for who, reason in row["absent"].items()]
    parts = [table.table(rows, left=(0, 1)), "\n".join(bars(data["rows"])), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part)


def cells(time: Mapping[str, float], limits: Mapping[str, float], ours_us: float | None) -> list[str]:
    speed = time.get("gb_per_s")
    return [
        table.figure(time["us"]),
        table.figure(speed) if speed else "-",
        f"{speed / limits['copy_gb_per_s']:.0%}" if speed else "-",
        table.figure(time["tflops"]) if "tflops" in time else "-",
        f"{time['us'] / ours_us:.2f}" if ours_us else "-",
    ]


def bars(rows: Mapping[str, Any]) -> list[str]:
    """What was promised of each row that is there, and whether it is kept."""
    said = []

    def say(name: str, text: str, is_kept: bool) -> None:
        said.append(f"- {name}: {text}: {'kept' if is_kept else 'MISSED'}")

    for name, row in rows.items():
        times = row.get("times", {})
        ours = times.get("ours")
        if name.startswith("decode-b32") and ours:
            share = ours["gb_per_s"] / row["limits"]["copy_gb_per_s"]
            say(name, f"{share:.0%} of the copy bandwidth, 90% promised", share >= 0.9)
            peers = {who: time["us"] for who, time in times.items() if not is_ours(who)}
            if peers:
                best = min(peers, key=lambda who: peers[who])
                say(name, f"{peers[best] / ours['us']:.2f} times as fast as {best}", peers[best] > ours["us"])
        if name == "decode-b1-1024" and ours:
            say(name, f"{ours['us']:.1f} us, less than 10 promised", ours["us"] < 10)
        if name == "prefill-b1-8192" and ours:
            mma_sync = times.get("ours mma")
            for who, time, tflops in (("mma_sync", mma_sync or ours, 300), ("wgmma", mma_sync and ours, 600)):
                if time:
                    say(name, f"{who} {time['tflops']:.0f} TFLOP/s, {tflops} promised", time["tflops"] >= tflops)
        if name.startswith("decode-kv") and times and int(name.rpartition("-")[2]) >= 2048:
            for kv in ("fp8", "int8"):
                ratio = times["ours bfloat16"]["us"] / times[f"ours {kv}"]["us"]
                say(name, f"{kv} {ratio:.2f} times as fast as bfloat16", ratio > 1)
    return said


if __name__ == "__main__":
    sys.exit(main())
