"""make soak: 10,000 mixed requests of 32 clients at once on each server, and bursts of ten times its queue.

    PYTHONPATH=tests:tests/answers python tests/soak/soak.py --out benchmarks/results/soak.json

Exit code 1 when an answer was wrong, a page lost, a canary seen elsewhere, or memory grew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from soak_run import FLAT, BurstReport, SoakReport, make_model, run_bursts, run_soak

from llm_decoder.cli.bench import machine

MIB = 1 << 20
_SHOWN_WRONG = 20
_SHOWN_S = 5.0


class Bar:
    """A line that is written again where somebody looks, and now and then where nobody does."""

    def __init__(self) -> None:
        self._shown_s = 0.0

    def __call__(self, what: str, n_done: int, n_all: int) -> None:
        is_seen = sys.stderr.isatty()
        now_s = time.monotonic()
        if n_done < n_all and now_s - self._shown_s < (0.1 if is_seen else _SHOWN_S):
            return
        self._shown_s = now_s
        n_full = 40 * n_done // max(1, n_all)
        line = f"{what:16} [{'#' * n_full}{'.' * (40 - n_full)}] {n_done:6} / {n_all}"
        sys.stderr.write(f"\r{line}" if is_seen else f"{line}\n")
        sys.stderr.flush()


def soak_faults(report: SoakReport) -> list[str]:
    """What a soak must not show."""
    faults = report.wrong[:_SHOWN_WRONG]
    if report.growth > FLAT:
        faults.append(f"resident memory moved by {report.growth:.1%}, need at most {FLAT:.0%}")
    if not report.n_preemptions:
        faults.append("nobody was preempted")
    return faults


def burst_faults(report: BurstReport) -> list[str]:
    faults = report.wrong[:_SHOWN_WRONG]
    if min(report.n_good) < report.queue:
        faults.append(f"only {min(report.n_good)} of a burst were served, the queue takes {report.queue}")
    if not all(report.n_refused):
        faults.append("a burst in which nobody was refused")
    if burst_growth(report) > FLAT:
        faults.append(f"bursts: resident memory moved by {burst_growth(report):.1%}, need at most {FLAT:.0%}")
    return faults


def burst_growth(report: BurstReport) -> float:
    """Of the second half of the bursts; the first fills pools and stacks of threads."""
    later = report.resident_bytes[len(report.resident_bytes) // 2 :]
    return (max(later) - later[0]) / later[0]


def show(soaks: list[SoakReport], bursts: list[BurstReport]) -> None:
    write = sys.stdout.write
    for soak in soaks:
        write(f"\n{soak.server}: {soak.n_requests} requests of {soak.n_clients} clients in {soak.wall_s:.0f} s\n")
        for kind, n in soak.counts.items():
            write(f"  {kind:32} {n:6}\n")
        mib = " ".join(f"{each / MIB:.1f}" for each in soak.windows)
        write(f"  resident MiB, a tenth at a time: {mib}: moved by {soak.growth:.2%}\n")
        write(f"  {soak.n_checks} steps, the cache whole after each; {soak.n_preemptions} preemptions\n")
        write(f"  {len(soak.wrong)} wrong, {soak.n_more_objects} more Python objects than before\n")
        write(f"  threads {soak.n_threads}, open files {soak.n_files} (before, after)\n")
    for burst in bursts:
        write(f"\n{burst.server}, bursts of {burst.n_sent} on a queue of {burst.queue}\n")
        write(f"  served {burst.n_good}, refused {burst.n_refused}, wrong {len(burst.wrong)}\n")
        mib = " ".join(f"{each / MIB:.1f}" for each in burst.resident_bytes)
        write(f"  resident MiB after each: {mib}: moved by {burst_growth(burst):.2%}\n")


# As parts of the requests that are measured. Flask's threads, some fifty, each grow until they have had a request of
# every kind; FastAPI has thirteen.
WARM_UPS = {"fastapi": 0.5, "flask": 2.5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="on each server, after those of the warm-up")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--bursts", type=int, default=10)
    parser.add_argument("--servers", default="fastapi,flask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON")
    asked = parser.parse_args()
    bar = Bar()
    soaks: list[SoakReport] = []
    bursts: list[BurstReport] = []
    faults: list[str] = []
    alone = None
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        for server in asked.servers.split(","):
            if asked.requests:
                soak, alone = run_soak(
                    server,
                    model,
                    n_requests=asked.requests,
                    n_warmup=int(WARM_UPS[server] * asked.requests),
                    n_clients=asked.clients,
                    alone=alone,
                    seed=asked.seed,
                    progress=bar,
                )
                soaks.append(soak)
                faults += [f"{server}: {fault}" for fault in soak_faults(soak)]
            if asked.bursts:
                bursts.append(run_bursts(server, n_bursts=asked.bursts, progress=bar))
                faults += [f"{server}: {fault}" for fault in burst_faults(bursts[-1])]
    show(soaks, bursts)
    if asked.out is not None:
        asked.out.write_text(json.dumps(record(soaks, bursts), indent=1) + "\n", encoding="utf-8")
    for fault in faults:
        sys.stdout.write(f"WRONG: {fault}\n")
    sys.stdout.write("failed\n" if faults else "held\n")
    return 1 if faults else 0


def record(soaks: list[SoakReport], bursts: list[BurstReport]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": machine(),
        "soaks": [asdict(soak) | {"growth": soak.growth} for soak in soaks],
        "bursts": [asdict(burst) | {"growth": burst_growth(burst)} for burst in bursts],
    }


if __name__ == "__main__":
    sys.exit(main())
