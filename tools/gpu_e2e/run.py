"""Judges, soak, sanitizers and benchmarks of models on this machine's GPU, and goes on where it was stopped.

    make gpu-e2e                                                   # builds, then runs this
    python tools/gpu_e2e/run.py --out benchmarks/results/gpu_e2e.json
    python tools/gpu_e2e/run.py --out benchmarks/results/gpu_e2e.json --stages judges,soak

Each stage is a program of its own, e2e_stage.py says how it goes on; one that dies is begun again for the rows that
were not begun yet. No row begins after --limit-s, and no stage goes on long past it. What is known after each row is
in --out; benchmarks/gpu_page.py makes tables of it.

Exit status: 0 all rows are there; 1 a row failed; 2 this machine cannot make them; 3 rows are left, run it again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from e2e_stage import CANNOT, ROOT
from gpu_test import end_by_signal, wait_for
from resumed import DONE, FAILED, LEFT, UNDER_WAY

HERE = Path(__file__).parent
STAGES = {
    "judges": HERE / "e2e_judges.py",
    "bench": ROOT / "benchmarks/gpu_model.py",
    "waiting": ROOT / "benchmarks/gpu_waiting.py",
    "soak": HERE / "e2e_soak.py",
    "sanitizers": HERE / "e2e_sanitizers.py",
}
LEAST_S = 10.0  # that a stage is begun with
GRACE_S = 90.0  # for the row under way when the time is over
KNOWN = (DONE, FAILED, CANNOT, LEFT)

# run(stage's program, its options, the seconds after which it is ended) -> exit status
Run = Callable[[Path, Sequence[str], float], int]


def run_stages(
    names: Sequence[str], out: Path, limit_s: float, run: Run, clock: Callable[[], float] = time.monotonic
) -> int:
    """The exit status."""
    end = clock() + limit_s
    statuses = {}
    for name in names:
        print(f"-- {name}", flush=True)
        statuses[name] = _run_stage(STAGES[name], out, end, run, clock)
    for name, status in statuses.items():
        words = {DONE: "done", FAILED: "failed", LEFT: "left, run it again", CANNOT: "cannot be run here"}
        print(f"{name}: {words[status]}", flush=True)
    found = set(statuses.values())
    return next(status for status in (FAILED, CANNOT, LEFT, DONE) if status in found)


def _run_stage(program: Path, out: Path, end: float, run: Run, clock: Callable[[], float]) -> int:
    """One of KNOWN."""
    has_died = False
    while True:
        left_s = end - clock()
        if left_s < LEAST_S:
            return FAILED if has_died else LEFT
        n_begun, died_of = len(_rows_of(out)), _under_way(out)
        options = ["--limit-s", f"{left_s:.0f}", *(["--new"] if has_died else [])]
        status = run(program, options, left_s + GRACE_S)
        # The watchdog of a row ends its process with the status of a failed row.
        if status in KNOWN and _under_way(out) <= died_of:
            return FAILED if has_died else status
        killers = sorted(name for name, _ in _under_way(out) - died_of)
        print(f"{program.name} ended with {status} {' '.join(killers)}".rstrip(), flush=True)
        if len(_rows_of(out)) == n_begun:  # before its first row
            return FAILED
        has_died = True


def _rows_of(out: Path) -> set[tuple[str, str]]:
    """(name, what it is of) of every row that was begun."""
    return {(name, json.dumps(row["of"])) for name, row in _read(out).items()}


def _under_way(out: Path) -> set[tuple[str, str]]:
    """Those of them that ended a process."""
    return {(name, json.dumps(row["of"])) for name, row in _read(out).items() if row.get("failed") == UNDER_WAY}


def _read(out: Path) -> dict[str, Any]:
    return dict(json.loads(out.read_text())["rows"]) if out.exists() else {}


def run_program(out: Path, program: Path, options: Sequence[str], end_s: float) -> int:
    command = [sys.executable, str(program), "--out", str(out), *options]
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",  # nothing is fetched
    }
    status = wait_for(subprocess.Popen(command, env=os.environ | environment, start_new_session=True), end_s)
    return -signal.SIGKILL if status is None else status


def main() -> int:
    end_by_signal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; rows that are there are kept")
    parser.add_argument("--limit-s", type=float, default=450.0, help="no row begins after this (default 450)")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"some of {', '.join(STAGES)} (default: all)")
    asked = parser.parse_args()
    names = asked.stages.split(",")
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        parser.error(f"--stages need some of {', '.join(STAGES)}, got {unknown[0]!r}")
    out = asked.out.resolve()
    status = run_stages(names, out, asked.limit_s, lambda *stage: run_program(out, *stage))
    if out.exists():
        import gpu_page

        print(gpu_page.markdown(out))
    return status


if __name__ == "__main__":
    sys.exit(main())
