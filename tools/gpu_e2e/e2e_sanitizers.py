"""Stage of make gpu-e2e: compute-sanitizer finds nothing in a tiny model's steps, with CUDA graphs and without."""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import e2e_stage
from e2e_stage import Row
from gpu_test import FAILED, Outcome, Step, run_step
from models_factory import make_checkpoint

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LIMIT_S = 150.0
PROGRAM = Path(__file__).with_name("e2e_program.py")
_LAST_LINES = 12


def watch(sanitizer: str | None, tool: str, graphs: bool, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """The row of one run. Raises RuntimeError with the end of what the tool said, unless it passed or was skipped."""
    if sanitizer is None:
        return {"skipped": "compute-sanitizer is not on PATH"}
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name) / "model", "qwen3", dtype="BF16")
        log = Path(name) / "log"
        outcome = run_step(step(sanitizer, tool, graphs, folder, limit_s), limit_s, log)
        return told(outcome, log.read_text(errors="replace"))


def step(sanitizer: str, tool: str, graphs: bool, folder: Path, limit_s: float) -> Step:
    environment = {"LLM_DECODER_CUDA_GRAPHS": "1" if graphs else "0"}
    # A library's kernels may read what they then leave out, and share memory in ways that look like a race.
    if tool in ("initcheck", "racecheck"):
        environment["LLM_DECODER_GEMM"] = "ours"
    options = ["--tool", tool, "--error-exitcode", "9", "--launch-timeout", "60"]
    command = [sanitizer, *options, sys.executable, str(PROGRAM), str(folder)]
    return Step(f"{tool}-{'graphs' if graphs else 'no-graphs'}", command, limit_s, environment, is_sanitized=True)


def told(outcome: Outcome, log: str) -> dict[str, Any]:
    if outcome.result == FAILED:
        lines = [line for line in log.splitlines() if line.strip()]
        findings = [line for line in lines if line.startswith("=====")] or lines
        raise RuntimeError("\n".join([outcome.reason, *findings[:_LAST_LINES]]))
    return {outcome.result: outcome.reason, "seconds": outcome.seconds}


def rows() -> dict[str, Row]:
    sanitizer = shutil.which("compute-sanitizer")
    return {
        f"{tool}-{'graphs' if graphs else 'no-graphs'}": Row(
            functools.partial(watch, sanitizer, tool, graphs), LIMIT_S + 10.0
        )
        for tool in TOOLS
        for graphs in (False, True)
    }


def main() -> int:
    return e2e_stage.run_stage(rows, e2e_stage.arguments(__doc__.splitlines()[0]).parse_args())


if __name__ == "__main__":
    sys.exit(main())
