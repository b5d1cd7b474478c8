"""`make gpu-test` without a GPU: what it says is missing, and how it goes on where it was stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_test  # noqa: E402
from gpu_test import FAILED, PASSED, SKIPPED, Outcome, Record, Step  # noqa: E402
from resumed import sources  # noqa: E402


class Runner:
    """Gives each step the outcome that is written for it, and notes which ran."""

    def __init__(self, **outcomes: Outcome) -> None:
        self.outcomes, self.ran, self.now = outcomes, list[str](), 0.0

    def __call__(self, step: Step, time_s: float, log: Path) -> Outcome:
        self.ran.append(step.name)
        outcome = self.outcomes.get(step.name, Outcome(PASSED, "", 100.0))
        self.now += min(outcome.seconds, time_s)
        return Outcome(FAILED, "not done", time_s) if outcome.seconds > time_s else outcome

    def run(self, folder: Path, steps: str, limit_s: float = 1000, tested: str = "x") -> int:
        listed = [Step(name, [], 150.0, is_sanitized=name.startswith("s")) for name in steps.split()]
        record = Record(folder / "results.json", tested)
        return gpu_test.run_steps(listed, record, folder, limit_s, self, clock=lambda: self.now)


def test_a_second_call_takes_what_is_left(tmp_path: Path) -> None:
    runner = Runner()
    assert runner.run(tmp_path, "a b c", limit_s=250) == 3
    assert runner.ran == ["a", "b", "c"]  # c was stopped when the time was over
    assert runner.run(tmp_path, "a b c") == 0
    assert runner.ran == ["a", "b", "c", "c"]
    assert runner.run(tmp_path, "a b c") == 0
    assert runner.ran == ["a", "b", "c", "c"]


def test_what_failed_is_run_again_after_the_others(tmp_path: Path) -> None:
    assert Runner(a=Outcome(FAILED, "exit status 1: no", 100)).run(tmp_path, "a b c", limit_s=205) == 1
    again = Runner()
    assert again.run(tmp_path, "a b c") == 0
    assert again.ran == ["c", "a"]


def test_other_kernels_are_tested_from_the_beginning(tmp_path: Path) -> None:
    Runner().run(tmp_path, "a b")
    runner = Runner()
    runner.run(tmp_path, "a b", tested="y")
    assert runner.ran == ["a", "b"]


def test_a_step_that_takes_longer_than_its_own_limit_has_failed(tmp_path: Path) -> None:
    assert Runner(a=Outcome(PASSED, "", 151)).run(tmp_path, "a") == 1


def test_a_sanitizer_that_refuses_the_machine_is_asked_once_and_skipped_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = Outcome(SKIPPED, "compute-sanitizer refuses this machine: Device not supported", 1)
    runner = Runner(s1=refusal)
    assert runner.run(tmp_path, "a s1 s2") == 0
    assert runner.ran == ["a", "s1"]
    assert capsys.readouterr().out.count("Device not supported") == 2
    assert runner.run(tmp_path, "a s1 s2 s3") == 0
    assert runner.ran == ["a", "s1"]


def test_refusals_and_findings_of_a_sanitizer_are_told_apart() -> None:
    step = Step("memcheck-a", [], 1, is_sanitized=True)
    refused = "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the manual\n"
    assert gpu_test.judge(step, 1, refused, 1).result == SKIPPED
    found = "this test says: not supported\n========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error\n"
    judged = gpu_test.judge(step, 9, found, 1)
    assert judged == Outcome(FAILED, "exit status 9: ========= ERROR SUMMARY: 1 error", 1, found.strip())
    call = '========= Program hit cudaErrorNotSupported (error 801) due to "operation not supported" on CUDA API call\n'
    assert gpu_test.judge(step, 9, call, 1).result == FAILED
    assert gpu_test.judge(step, 0, "========= ERROR SUMMARY: 0 errors\n", 1).result == PASSED


def test_a_program_runs_with_its_environment_and_its_output_is_kept(tmp_path: Path) -> None:
    code = "import os; print(os.environ['WORD']); raise SystemExit(int(os.environ['STATUS']))"
    step = Step("a", [sys.executable, "-c", code], 60, {"WORD": "seen", "STATUS": "0"})
    assert gpu_test.run_step(step, 60, tmp_path / "a.log").result == PASSED
    assert (tmp_path / "a.log").read_text() == "seen\n"
    failing = Step("b", step.command, 60, {"WORD": "broken", "STATUS": "1"})
    assert gpu_test.run_step(failing, 60, tmp_path / "b.log").reason == "exit status 1: broken"


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sleeping = Step("a", [sys.executable, "-c", "import time; time.sleep(60)"], 60)
    assert gpu_test.run_step(sleeping, 0.2, tmp_path / "a.log") == Outcome(FAILED, "not done after 0 s", 0.2)


SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
RUNS = """
import sys
from pathlib import Path

sys.path.append({tools!r})
import gpu_test

gpu_test.end_by_signal()
gpu_test.run_step(gpu_test.Step("a", [sys.executable, "-c", {sleeps!r}], 60), 60, Path({log!r}))
"""


def test_who_is_asked_to_end_leaves_nothing_on_the_device(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    code = RUNS.format(tools=str(ROOT / "tools"), sleeps=SLEEPS, log=str(log))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    runner = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not (log.exists() and log.read_text().endswith("\n")):
        assert runner.poll() is None
        time.sleep(0.01)
    runner.terminate()
    assert runner.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_the_end_of_what_a_failed_step_said_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "for i in range(100): print('line', i)\nraise SystemExit(1)"
    step = Step("a", [sys.executable, "-c", code], 60)
    record = Record(tmp_path / "results.json", "x")
    assert gpu_test.run_steps([step], record, tmp_path, 100, gpu_test.run_step) == 1
    assert record.outcomes["a"].said.splitlines() == [f"line {i}" for i in range(60, 100)]
    assert "    line 60\n" in capsys.readouterr().out
    assert Record(tmp_path / "results.json", "x").outcomes == record.outcomes


def test_results_are_of_the_sources_and_not_of_what_a_compiler_made_of_them() -> None:
    suffixes = {path.suffix for path in sources(*gpu_test.TESTED)}
    assert {".h", ".cpp", ".py"} <= suffixes
    assert ".so" not in suffixes
    assert gpu_test.fingerprint("NVIDIA H200") == gpu_test.fingerprint("NVIDIA H200")
    assert gpu_test.fingerprint("NVIDIA H200") != gpu_test.fingerprint("NVIDIA A100")


def test_steps_are_programs_then_files_of_ops_then_sanitizers(tmp_path: Path) -> None:
    for name in ("norm_test", "widen_bytes_test"):
        (tmp_path / "tests/cpp/on_device").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests/cpp/on_device" / name).touch()
    names = [step.name for step in gpu_test.steps_of(tmp_path, "/bin/compute-sanitizer")]
    assert names[:3] == ["cpp-norm_test", "cpp-widen_bytes_test", "ops-append_kv_op"]
    alone = [step.name for step in gpu_test.steps_of(tmp_path, None)]
    assert names[: len(alone)] == alone
    assert {"ops-attention_grid", "ops-torch_on_a_device"} <= set(alone)
    assert names[len(alone)] == "memcheck-widen_bytes_test"
    assert {"memcheck-ops-row_ops", "racecheck-ops-row_ops"} <= set(names)
    thorough = [step.name for step in gpu_test.steps_of(tmp_path, "/bin/compute-sanitizer", is_thorough=True)]
    assert thorough[: len(names)] == names
    assert {"racecheck-norm_test", "initcheck-ops-row_ops"} <= set(thorough[len(names) :])
    assert not [name for name in names[len(alone) :] if "torch" in name]


def test_programs_find_the_cublaslt_that_pip_has_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tests/cpp/on_device/dense_gemm_test"
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    monkeypatch.setattr(gpu_test, "cublaslt_libraries", lambda: ["/site/nvidia/cu13/lib/libcublasLt.so.13"])
    assert gpu_test.steps_of(tmp_path, None)[0].environment == {"LD_LIBRARY_PATH": "/site/nvidia/cu13/lib:/before"}
    monkeypatch.setattr(gpu_test, "cublaslt_libraries", lambda: [])
    assert gpu_test.steps_of(tmp_path, None)[0].environment == {}


def test_every_file_with_tests_for_a_device_is_a_step() -> None:
    said = {path.name for path in (ROOT / "tests/ops").glob("test_*.py") if "device" in path.read_text()}
    steps = {Path(step.command[-1]).name for step in gpu_test.steps_of(Path("nowhere"), None)}
    assert said - steps == {"test_addresses.py", "test_device_rig.py"}  # of fakes
    assert "test_order_of_threads.py" not in steps  # of the host machine alone


def test_a_file_without_a_test_for_a_device_passes_and_a_machine_without_one_does_not() -> None:
    step = next(step for step in gpu_test.steps_of(Path("nowhere"), None) if step.name == "ops-csr_page_lists")
    assert gpu_test.judge(step, 5, "3 deselected\n", 1) == Outcome(PASSED, "3 deselected", 1)
    assert gpu_test.judge(Step("cpp-a", ["a"], 1), 5, "", 1).result == FAILED
    assert step.environment["LLM_DECODER_NEEDS_DEVICE"]


def test_without_a_device_tests_for_one_fail_where_it_is_needed(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    step = next(step for step in gpu_test.steps_of(Path("nowhere"), None) if step.name == "ops-csr_page_lists")
    outcome = gpu_test.run_step(step, 60, tmp_path / "log")
    assert outcome.result == FAILED
    assert "no device: " in outcome.reason


WATCHED = """
import time

import device_watch
import pytest


class Broken:
    def synchronize(self, device, stream):
        raise RuntimeError("an illegal memory access")


device_watch.load_cuda = Broken


@pytest.mark.device
def test_first():
    raise AssertionError("wrong")


def test_second():
    print("second has begun")


def test_waits():
    time.sleep(60)
"""


def run_watched(tmp_path: Path, chosen: str) -> Outcome:
    tests = tmp_path / "test_watched.py"
    tests.write_text(WATCHED)
    command = gpu_test.pytest_of(tests)
    command[command.index("-m", 3)] = "-k"
    command[command.index("device")] = chosen
    paths = os.pathsep.join([str(ROOT / "tests/ops"), *sys.path])
    environment = {**gpu_test.watched(1.0), "PYTHONPATH": paths}
    step = Step("a", [*command, "-p", "device_watch", f"--rootdir={tmp_path}", "-c", os.devnull], 60, environment)
    return gpu_test.run_step(step, 60, tmp_path / "a.log")


def test_after_an_error_that_stays_no_test_of_the_file_is_begun(tmp_path: Path) -> None:
    assert run_watched(tmp_path, "first or second").result == FAILED
    log = (tmp_path / "a.log").read_text()
    assert "the device answers no more after test_watched.py::test_first: an illegal memory access" in log
    assert "second has begun" not in log


def test_a_test_that_takes_too_long_is_ended_and_named(tmp_path: Path) -> None:
    outcome = run_watched(tmp_path, "second or waits")
    assert (outcome.result, outcome.seconds < 30) == (FAILED, True)
    log = (tmp_path / "a.log").read_text()
    assert "test_watched.py::test_waits" in log
    assert "Timeout (0:00:01)!" in log


def check(tmp_path: Path, *programs: str) -> subprocess.CompletedProcess[str]:
    """check_gpu.sh where nothing is on PATH but these and a shell's own."""
    for name in ("grep", *programs):
        found = shutil.which(name)
        (tmp_path / name).symlink_to(found) if found else (tmp_path / name).write_text("#!/bin/sh\n")
        if not found:
            (tmp_path / name).chmod(0o755)
    command = ["/bin/sh", str(ROOT / "tools/check_gpu.sh"), "gpu-test", sys.executable]
    return subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "make gpu-test: missing: an NVIDIA GPU with its driver (nvidia-smi is not on PATH); nvcc"
    )


def test_a_driver_that_lists_no_gpu_is_told(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    assert "an NVIDIA GPU (nvidia-smi -L lists none)" in check(tmp_path, "nvidia-smi").stderr


def run_word(tmp_path: Path, word: str, **environment: str) -> tuple[int, list[str]]:
    """(exit status of gpu.sh, what it started) where a GPU, nvcc and cmake are, which do nothing, and no make."""
    programs = {
        "nvidia-smi": "echo 'GPU 0: one'",
        "nvcc": "",
        "cmake": """
            echo "cmake $*" >> "$LOG"
            mkdir -p "$GPU_BUILD/python/llm_decoder"
            case $* in *$BROKEN*) exit 1 ;; *python_modules*) : > "$GPU_BUILD/python/llm_decoder/$MODULE.so" ;; esac""",
        # With what models want beside it, which this one may lack.
        "python3": f"""
            case $* in *find_spec*) exit 0 ;; -*) exec {sys.executable} "$@" ;; esac
            echo "$PYTHONPATH: $*" >> "$LOG"
            exit 3""",
    }
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    for name in ("awk", "date", "dirname", "grep", "ls", "mkdir", "nproc", "sh"):
        (folder / name).symlink_to(str(shutil.which(name)))
    own = {"PATH": str(folder), "LOG": str(tmp_path / "log"), "GPU_BUILD": str(tmp_path / "build")}
    own |= {"BROKEN": "none of them", "MODULE": "_cuda"}
    command = ["/bin/sh", str(ROOT / "tools/gpu.sh"), word]
    done = subprocess.run(command, env=own | environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 2, done.stderr
    return done.returncode, (tmp_path / "log").read_text().splitlines()


def test_a_word_builds_what_it_needs_and_runs_it_in_the_time_that_is_left(tmp_path: Path) -> None:
    given = {"GPU_RESULTS": "/out", "PYTHONPATH": "/site", "GPU_S": "1000", "JOBS": "7", "GPU_TEST_ARGS": "--thorough"}
    status, (configured, modules, others, ran) = run_word(tmp_path, "gpu-test", **given)
    assert status == 3
    assert "-DLLM_DECODER_CUDA=auto" in configured
    assert modules.endswith("-j 7 --target python_modules")
    assert "--target on_device_tests -- -k" in others
    build = tmp_path / "build"
    assert ran.startswith(f"{build}/python:/site: tools/gpu_test.py {build} --out /out/gpu_test.json --limit-s ")
    limit_s = int(ran.split()[-2])
    assert 900 < limit_s <= 1000
    assert ran.endswith("--thorough")


def test_models_need_no_test_programs_and_a_row_that_was_begun_has_its_time(tmp_path: Path) -> None:
    status, started = run_word(tmp_path, "gpu-e2e", GPU_RESULTS="/out", GPU_S="1000", GPU_E2E_ARGS="--stages soak")
    assert (status, len(started)) == (3, 3)
    assert "tools/gpu_e2e/run.py --out /out/gpu_e2e.json --limit-s" in started[-1]
    assert started[-1].endswith("--stages soak")
    assert int(started[-1].split()[-3]) <= 910


def test_a_test_program_that_does_not_compile_keeps_no_other_from_running(tmp_path: Path) -> None:
    status, started = run_word(tmp_path, "gpu-bench", BROKEN="_study_cuda")
    assert [line.split()[1] for line in started[-2:]] == [
        "benchmarks/attention_methods.py",
        "benchmarks/gpu_kernels.py",
    ]
    assert status == 3


@pytest.mark.parametrize("lack", [{"BROKEN": "python_modules"}, {"MODULE": "_core"}])
def test_without_kernels_nothing_runs(tmp_path: Path, lack: dict[str, str]) -> None:
    status, started = run_word(tmp_path, "gpu-e2e", **lack)
    assert status == 1
    assert "python_modules" in started[-1]


def test_make_says_the_same_and_builds_nothing(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    command = ["make", "-C", str(ROOT), "gpu-test", f"PYTHON={sys.executable}", f"GPU_BUILD={tmp_path / 'build'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "make gpu-test: missing: an NVIDIA GPU" in done.stderr
    assert not (tmp_path / "build").exists()
