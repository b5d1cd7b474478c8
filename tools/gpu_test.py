"""Runs every test of the GPU kernels on this machine's GPU, and goes on where it was stopped.

    python tools/gpu_test.py build-gpu --out benchmarks/results/gpu_test.json    # `make gpu-test` builds and does it

First the C++ tests of the kernels, each a program; then tests/ops on the device, a process for each file, with the
whole pairwise cover of attention; then compute-sanitizer over few of them. A test that takes too long is ended with its
process, and so is a file after an error that the device does not recover from. After each step its result goes into
--out and its output into BUILD/gpu_test/STEP.log: the next run takes what has not passed, or everything where the
sources or the device are others. No step begins or goes on past --limit-s.

Exit status: 0 all passed, or were skipped for the reason that is told; 1 a step failed; 3 steps are left, run it again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from resumed import KERNELS, ROOT, id_of, sources

from llm_decoder.gpu_libraries import cublaslt_libraries

TESTED = (*KERNELS, "decoder", "kv_cache", "python/llm_decoder/ops", "tests/cpp", "tests/ops")
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
DONE = (PASSED, SKIPPED)
NOT_RUN = 77  # exit status of a C++ test that found no device
LEAST_S = 10.0  # that a step is begun with
LAST_LINES = 40  # that are told of a step that failed
NO_TESTS = 5  # of pytest: none of a file is for a device
CPP_LIMIT_S, OPS_LIMIT_S, SANITIZER_LIMIT_S = 60.0, 200.0, 200.0
TEST_LIMIT_S, SANITIZED_TEST_LIMIT_S = 45.0, 120.0  # of a test of tests/ops
# Of compute-sanitizer itself: what it tells of a call that failed has no "Error:" in front.
REFUSAL = re.compile("=+ Error: .*(not supported|unable to|failed to initialize)", re.IGNORECASE)
# What a file with tests for a device says. Of others compute-sanitizer would say that they never came to a call.
ON_A_DEVICE = re.compile(r"any_machine|mark\.device")


@dataclass(frozen=True)
class Step:
    """command: what passes when its exit status is 0. Checked by compute-sanitizer: is_sanitized."""

    name: str
    command: Sequence[str]
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    is_sanitized: bool = False


@dataclass(frozen=True)
class Outcome:
    result: str
    reason: str = ""
    seconds: float = 0.0
    said: str = ""  # the end of its output, where it failed


Run = Callable[[Step, float, Path], Outcome]


def steps_of(build: Path, sanitizer: str | None, is_thorough: bool = False) -> list[Step]:
    """sanitizer: path of compute-sanitizer. The first of its steps tells whether it runs here. is_thorough: with those
    that do not fit into one call beside the others."""
    programs = sorted((build / "tests/cpp/on_device").glob("*_test"))
    files = [path for path in sorted((ROOT / "tests/ops").glob("test_*.py")) if ON_A_DEVICE.search(path.read_text())]
    steps = [Step(f"cpp-{program.name}", [str(program)], CPP_LIMIT_S, library_path()) for program in programs]
    steps += [Step(name_of(path), pytest_of(path), OPS_LIMIT_S, watched(TEST_LIMIT_S)) for path in files]
    if sanitizer is None:
        return steps
    few = {"LLM_DECODER_GRID": "few", **watched(SANITIZED_TEST_LIMIT_S)}

    def checked(tool: str, name: str, command: Sequence[str]) -> Step:
        watch = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--launch-timeout", "60", *command]
        return Step(f"{tool}-{name}", watch, SANITIZER_LIMIT_S, few, is_sanitized=True)

    small = [program for program in programs if program.name == "widen_bytes_test"]
    without_torch = [path for path in files if "torch" not in path.name]
    steps += [checked("memcheck", program.name, [str(program)]) for program in small]
    for tool in ("memcheck", "racecheck"):
        steps += [checked(tool, name_of(path), pytest_of(path)) for path in without_torch]
    if is_thorough:
        steps += [checked("racecheck", program.name, [str(program)]) for program in programs]
        steps += [checked("initcheck", name_of(path), pytest_of(path)) for path in without_torch]
    return steps


def library_path() -> dict[str, str]:
    """Where C++ tests find cuBLASLt, if pip has installed it."""
    folders = [str(Path(library).parent) for library in cublaslt_libraries()]
    known = [path for path in [os.environ.get("LD_LIBRARY_PATH", "")] if path]
    return {"LD_LIBRARY_PATH": ":".join(folders + known)} if folders else {}


def name_of(tests: Path) -> str:
    return tests.stem.replace("test_", "ops-", 1)


def pytest_of(tests: Path) -> list[str]:
    """Each test is told before it begins, and what it says is not held back: its process may be ended."""
    options = ["-v", "-s", "-m", "device", "-W", "default", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *options, str(tests)]


def watched(limit_s: float) -> dict[str, str]:
    """limit_s: seconds that a test of tests/ops may take."""
    return {"LLM_DECODER_NEEDS_DEVICE": "1", "LLM_DECODER_TEST_LIMIT_S": str(limit_s)}


def fingerprint(device: str) -> str:
    """Of what is tested, of its tests, and of the device."""
    return f"{id_of(*sources(*TESTED))} on {device}"


def device_name() -> str:
    """As the driver has it, without a context on the device."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


class Record:
    """Outcomes by step, on disk after each."""

    def __init__(self, path: Path, tested: str) -> None:
        """tested: what outcomes are of; those of something else are forgotten."""
        self._path, self._tested = path, tested
        self.outcomes: dict[str, Outcome] = {}
        if path.exists():
            before = json.loads(path.read_text())
            if before["tested"] == tested:
                self.outcomes = {name: Outcome(**outcome) for name, outcome in before["steps"].items()}

    def put(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        self._path.parent.mkdir(parents=True, exist_ok=True)
        steps = {step: asdict(one) for step, one in self.outcomes.items()}
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps({"tested": self._tested, "steps": steps}, indent=1))
        beside.replace(self._path)


def run_steps(
    steps: Sequence[Step],
    record: Record,
    logs: Path,
    limit_s: float,
    run: Run,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """The exit status. What failed before comes after what has not run yet."""
    end = clock() + limit_s
    known = record.outcomes
    todo = [step for step in steps if step.name not in known or known[step.name].result not in DONE]
    n_left = 0
    for step in sorted(todo, key=lambda step: step.name in known):
        refusals = [known[one.name].reason for one in steps if one.is_sanitized and is_skipped(known.get(one.name))]
        time_s = min(step.limit_s, end - clock())
        if step.is_sanitized and refusals:
            outcome = Outcome(SKIPPED, refusals[0])
        elif time_s < LEAST_S:
            n_left += 1
            continue
        else:
            outcome = run(step, time_s, logs / f"{step.name}.log")
            if outcome.seconds >= time_s < step.limit_s:  # stopped, and not for its own limit
                n_left += 1
                continue
        record.put(step.name, outcome)
        print(f"{outcome.result:8}{step.name:44}{outcome.seconds:6.1f} s  {outcome.reason}".rstrip(), flush=True)
        if outcome.said:
            print("    " + outcome.said.replace("\n", "\n    "), flush=True)
    results = [known[step.name].result for step in steps if step.name in known]
    counts = ", ".join(f"{results.count(one)} {one}" for one in (PASSED, FAILED, SKIPPED))
    print(f"{counts}, {n_left} left{'; run it again' if n_left else ''}; output in {logs}", flush=True)
    return 1 if FAILED in results else 3 if n_left else 0


def is_skipped(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.result == SKIPPED


def run_step(step: Step, time_s: float, log: Path) -> Outcome:
    """On this machine, its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(step.environment),
            start_new_session=True,
        )
        status = wait_for(process, time_s)
    said = log.read_text(errors="replace")
    if status is None:
        return Outcome(FAILED, f"not done after {time_s:.0f} s", time_s, end_of(said))
    return judge(step, status, said, round(time.monotonic() - begin, 1))


def wait_for(process: subprocess.Popen[bytes], time_s: float) -> int | None:
    """The exit status of the first process of a session; None where the time was over. Whatever ends the wait, a signal
    too, nothing of the session is left on the device."""
    try:
        return process.wait(time_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_by_signal() -> None:
    """What is asked to end does so as by Ctrl-C: what it has started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def judge(step: Step, status: int, output: str, seconds: float) -> Outcome:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    if step.is_sanitized:
        for line in lines:
            if REFUSAL.match(line):
                return Outcome(SKIPPED, f"compute-sanitizer refuses this machine: {line.lstrip('= ')}", seconds)
    if status == 0 or (status == NO_TESTS and "pytest" in step.command):
        return Outcome(PASSED, last, seconds)
    if status == NOT_RUN:
        return Outcome(FAILED, last, seconds)
    return Outcome(FAILED, f"exit status {status}: {last}", seconds, end_of(output))


def end_of(output: str) -> str:
    return "\n".join(output.splitlines()[-LAST_LINES:])


def main() -> int:
    end_by_signal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="the folder of make gpu-build")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; what has passed there is not run again")
    parser.add_argument("--limit-s", type=float, default=450.0, help="seconds in all (default 450)")
    parser.add_argument("--thorough", action="store_true", help="also initcheck, and racecheck of the C++ tests")
    args = parser.parse_args()
    if not list(args.build.glob("python/llm_decoder/_cuda.*")):
        parser.error(f"{args.build} has no GPU kernels; make gpu-build makes them")
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("skipped compute-sanitizer: it is not on PATH")
    logs = args.build / "gpu_test"
    record = Record(args.out, fingerprint(device_name()))
    return run_steps(steps_of(args.build, sanitizer, args.thorough), record, logs, args.limit_s, run_step)


if __name__ == "__main__":
    sys.exit(main())
