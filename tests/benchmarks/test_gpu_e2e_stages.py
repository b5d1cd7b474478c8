"""Each stage of make gpu-e2e in small, on the host machine that stands for a GPU, so that it has run before
it first runs on a device. The judges beside transformers are in tests/judge."""

from __future__ import annotations

import importlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_decoder import backends

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools/gpu_e2e"))

import e2e_judges  # noqa: E402
import e2e_sanitizers  # noqa: E402
import e2e_soak  # noqa: E402
import e2e_stage  # noqa: E402
import gpu_model  # noqa: E402
import gpu_waiting  # noqa: E402
from gpu_model_weights import LLAMA_8B  # noqa: E402
from run import STAGES  # noqa: E402


@pytest.fixture(autouse=True)
def _host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_cuda", lambda: importlib.import_module("llm_decoder._cuda_host"))


def test_rows_are_of_the_device() -> None:
    assert e2e_stage.device_name()
    assert e2e_stage.is_alive()


# ---- soak --------------------------------------------------------------------------------------------------------

FEW: dict[str, Any] = {
    "n_clients": 2,
    "kinds_each": 2,
    "max_model_len": 256,
    "kv_cache_bytes": 8 * e2e_soak.PAGE_BYTES,
    "kv_tier_bytes": 8 * e2e_soak.PAGE_BYTES,
}


# However two clients share six requests, a greedy one is read whole.
@pytest.mark.parametrize(("deterministic", "n_requests"), [(True, 4), (False, 6)])
def test_a_soak_compares_answers_and_finds_pages_and_memory_back(
    deterministic: bool, n_requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e2e_soak, "MEMORY_BACK_BYTES", 1 << 40)  # the host's memory is everybody's
    facts = e2e_soak.soak(deterministic=deterministic, n_requests=n_requests, **FEW)
    assert sum(facts["counts"].values()) == facts["n_requests"] == n_requests
    assert (facts["n_compared"] > 0) == deterministic
    assert (facts["n_judged_tokens"] > 0) != deterministic
    assert facts["n_checks"] > 0


def test_a_soak_under_no_pressure_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e2e_soak, "soak", lambda **asked: {"n_preemptions": 3, "n_stored": 0, "n_loaded": 0})
    with pytest.raises(AssertionError, match="n_stored is 0"):
        e2e_soak.pressed(deterministic=True)


def test_another_answer_than_alone_and_a_page_that_is_held_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    few = FEW | {"n_requests": 3, "n_clients": 1}
    monkeypatch.setattr(e2e_soak, "_alone", lambda llm, call: [[([7], "x", "stop")] for _ in call.prompts])
    with pytest.raises(AssertionError, match=r"wrong: .* answered .*, alone "):
        e2e_soak.soak(deterministic=True, **few)
    monkeypatch.setattr(e2e_soak, "REST_S", 0.1)
    monkeypatch.setattr(e2e_soak.Proof, "lost", lambda self: {"n_held": 1})
    with pytest.raises(AssertionError, match=r"yet the cache has \{'n_held': 1\}"):
        e2e_soak.soak(deterministic=False, **few)


# ---- sanitizers --------------------------------------------------------------------------------------------------

# Runs the program that it is given on the host machine, without what a bare machine has not.
BARE = """
import sys

for name in ("fastapi", "flask", "llguidance", "math_core", "nh3", "prompt_toolkit", "pydantic", "uvicorn", "waitress"):
    sys.modules[name] = None
"""
WATCHER = """#!{python}
import importlib, os, runpy
{bare}
from llm_decoder import backends

host = importlib.import_module("llm_decoder._cuda_host")
backends.load_cuda = lambda: host
program, folder = sys.argv[-2:]
sys.argv = [program, folder]
print("graphs", os.environ["LLM_DECODER_CUDA_GRAPHS"])
{found}
try:
    runpy.run_path(program, run_name="__main__")
except SystemExit as end:
    print("========= ERROR SUMMARY: 0 errors")
    sys.exit(end.code)
"""
FINDING = "print('========= Invalid __global__ read of size 4 bytes'); sys.exit(9)"
REFUSAL = "print('========= Error: Device not supported.'); sys.exit(1)"


def watcher(tmp_path: Path, found: str = "") -> str:
    program = tmp_path / "watcher"
    program.write_text(WATCHER.format(python=sys.executable, bare=BARE, found=found))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_every_program_is_there_on_a_bare_machine() -> None:
    names = ("tools/gpu_test.py", "benchmarks/gpu_kernels.py", "benchmarks/attention_methods.py")
    programs = [str(path) for path in (*STAGES.values(), *(ROOT / name for name in names))]
    code = f"{BARE}import runpy\nfor program in {programs!r}:\n    runpy.run_path(program)"
    known = [str(ROOT / "tools/gpu_e2e"), str(ROOT / "benchmarks"), *(path for path in sys.path if "tests" not in path)]
    paths = ":".join(path for path in known if path)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_the_sanitizers_watch_runs_on_a_bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    row = e2e_sanitizers.watch(watcher(tmp_path), "memcheck", graphs=False)
    assert row["passed"] == "========= ERROR SUMMARY: 0 errors"


def test_what_a_sanitizer_finds_fails_the_row_and_a_refusal_skips_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    with pytest.raises(RuntimeError, match=r"exit status 9: .*\n========= Invalid __global__ read"):
        e2e_sanitizers.watch(watcher(tmp_path, FINDING), "memcheck", graphs=True)
    assert (
        "Device not supported" in e2e_sanitizers.watch(watcher(tmp_path, REFUSAL), "racecheck", graphs=True)["skipped"]
    )
    assert e2e_sanitizers.watch(None, "racecheck", graphs=True) == {"skipped": "compute-sanitizer is not on PATH"}


def test_every_tool_watches_with_graphs_and_without() -> None:
    assert len(e2e_sanitizers.rows()) == 8
    step = e2e_sanitizers.step("/bin/compute-sanitizer", "initcheck", False, Path("model"), 10.0)
    assert step.command[:3] == ["/bin/compute-sanitizer", "--tool", "initcheck"]
    assert step.environment == {"LLM_DECODER_CUDA_GRAPHS": "0", "LLM_DECODER_GEMM": "ours"}
    step = e2e_sanitizers.step("/bin/compute-sanitizer", "memcheck", True, Path("model"), 10.0)
    assert step.environment == {"LLM_DECODER_CUDA_GRAPHS": "1"}


# ---- judges ------------------------------------------------------------------------------------------------------


def test_rows_of_the_judges_cover_families_dtypes_layouts_and_pages() -> None:
    cases = e2e_judges.cases()
    assert len({case.name for case in cases}) == len(cases)
    for family in e2e_judges.FAMILIES:
        own = [case for case in cases if case.family == family]
        assert {case.dtype for case in own} == {"bfloat16", "float16"}
        assert {case.quantization for case in own} == {"none", "int8", "int4", "fp8"}
        assert {"auto", "fp8", "int8"} <= {case.kv_cache_dtype for case in own}
        assert {case.size for case in own} == {"tiny", "small"}


def test_a_story_is_that_of_int8_decoder() -> None:
    facts = e2e_judges.judge_stories(n_new=2, n_stories=1)
    assert facts["n_tokens"] == facts["n_as_int8_decoder"] == 2
    assert facts["texts"][0].startswith("Once upon a time")


# ---- speed -------------------------------------------------------------------------------------------------------

TINY = LLAMA_8B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 16384,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Profile:
    """torch.profiler.profile, that saw four kernels."""

    def __init__(self, **options: Any) -> None:
        """options: what to watch."""

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *error: object) -> None:
        """Ends."""

    def events(self) -> list[Any]:
        kernels = ((0.0, 5.0), (20.0, 90.0), (100.0, 110.0), (195.0, 200.0))
        return [
            SimpleNamespace(device_type="cuda", time_range=SimpleNamespace(start=start, end=end))
            for start, end in kernels
        ]


class FakeTorch:
    class cuda:
        is_available = staticmethod(lambda: False)

    class profiler:
        profile = Profile

        class ProfilerActivity:
            CUDA = "cuda"

    class autograd:
        class DeviceType:
            CUDA = "cuda"


@pytest.fixture(scope="module")
def participants() -> Iterator[Any]:
    scale = gpu_model.Scale(
        hf_config=TINY,
        n_prompt=4,
        n_new={1: 3, 2: 5},
        first_tokens=(20,),
        n_watched=2,
        n_samples=1,
        warm_s=0.0,
        kv_cache_bytes=1 << 20,
        max_tokens_per_step=64,
    )
    participants = gpu_model.Participants(FakeTorch, scale)
    yield participants
    participants.close()


@pytest.fixture
def rows(participants: Any) -> Any:
    return gpu_model.all_rows(participants)


@pytest.mark.parametrize("name", ["bfloat16", "int4", "int8", "fp8", "bfloat16-no-graphs"])
def test_ours_is_timed_through_the_engine(rows: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_CUDA_GRAPHS", "1")
    for size in (1, 2):
        row = rows[f"bench-{name}-decode-{size}"].make()
        assert json.loads(json.dumps(row))["tokens_per_s"] > 0
        assert row["n_sequences"] == size
    layout = {"int4": "gpu_w4", "int8": "gpu_w8", "fp8": "gpu_f8"}.get(name, "gpu_bf16")
    assert row["backend"]["layout"] == layout
    assert bool(row["backend"]["n_graph_steps"]) == ("no-graphs" not in name)
    if "no-graphs" not in name:
        assert rows[f"bench-{name}-first-token-20"].make()["seconds"] > 0


def test_the_profiler_watches_steps_in_the_middle_of_answers(participants: Any) -> None:
    rows = gpu_waiting.all_rows(participants)
    assert list(rows) == ["bench-bfloat16-waiting-1", "bench-bfloat16-waiting-2"]
    row = rows["bench-bfloat16-waiting-2"].make()
    assert row["waiting_us"] == 10.0
    assert row["step_us"] > 0


def test_rows_are_named_for_the_page(rows: Any) -> None:
    assert {"bench-limits", "bench-fp8-decode-1", "bench-transformers-decode-2"} <= set(rows)
    assert next(iter(rows)) == "bench-limits"
