"""The CUDA extension on any machine: it is imported without a driver, says what keeps it from a GPU, and holds what is
shipped and no more."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
LARGEST_WHEEL_BYTES = 100 << 20  # that package indexes take


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run([str(part) for part in command], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


def test_it_says_how_many_gpus_there_are_or_what_keeps_it_from_one(cuda: ModuleType) -> None:
    try:
        found = f"{cuda.n_devices()} devices"
    except RuntimeError as error:
        found = str(error)
    assert re.match(r"[1-9]\d* devices|\[n_devices\] cudaError\w+: \w", found)


def test_it_says_what_it_was_compiled_for(cuda: ModuleType) -> None:
    assert all(re.fullmatch(r"(sm|compute)_\d+a?", target) for target in cuda.TARGETS.split())
    if os.environ.get("LLM_DECODER_CUDA") == "on":
        assert cuda.TARGETS.split() == ["sm_80", "sm_89", "sm_90a", "compute_90"]


def test_importing_it_loads_no_driver(cuda: ModuleType) -> None:
    code = "import llm_decoder._cuda as m; print(m.__file__); print(open('/proc/self/maps').read())"
    loaded = run(sys.executable, "-c", code)
    assert str(cuda.__file__) in loaded
    assert "libcuda" not in loaded


def test_it_needs_neither_the_driver_nor_the_runtime_of_others(cuda: ModuleType) -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", run(tool("readelf"), "-d", str(cuda.__file__)))
    assert needed
    assert not [library for library in needed if "cuda" in library or "nvidia" in library]


def test_it_shows_no_symbol_but_the_module_s(cuda: ModuleType) -> None:
    lines = run(tool("nm"), "-D", "--defined-only", str(cuda.__file__)).splitlines()
    assert [line.split()[-1] for line in lines] == ["PyInit__cuda"]


def test_the_kernels_of_the_study_are_not_in_it(cuda: ModuleType) -> None:
    held = Path(str(cuda.__file__)).read_bytes()
    assert b"paged_flash_attention_kernel_fused" in held
    assert b"5study" not in held  # the namespace, as linkers write it


def test_the_command_line_says_why_there_is_no_gpu_to_use(cuda: ModuleType) -> None:
    told = run(sys.executable, "-m", "llm_decoder", "devices", **NO_GPU)
    (line,) = [line for line in told.splitlines() if line.startswith("cuda: ")]
    assert re.search(r"not used: .*(driver|device)", line), line
    (gpu,) = json.loads(run(sys.executable, "-m", "llm_decoder", "devices", "--json", **NO_GPU))["devices"][1:]
    assert not gpu["is_usable"]
    assert "cudaError" in gpu["reason"]


def test_asking_for_the_gpu_where_there_is_none_says_why(cuda: ModuleType) -> None:
    code = (
        "from llm_decoder import LLM, errors\n"
        "try: LLM(device='cuda')\n"
        "except errors.BackendError as error: print(error)\n"
    )
    said = run(sys.executable, "-c", code, **NO_GPU)
    assert re.match(r"\[device\] cuda cannot be used: .*cudaError.*; use device='cpu'", said)


def test_a_wheel_with_it_is_small_enough_to_be_published(cuda: ModuleType, cuda_build: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    run(*pip, LLM_DECODER_BUILD_DIR=str(cuda_build))
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if re.fullmatch(r"llm_decoder/_cuda\.[^/]*so", name)]
    assert not [name for name in names if re.search("_cuda_host|_study", name)]
    assert wheel.stat().st_size < LARGEST_WHEEL_BYTES
    major = (cuda_build / "cuda_version.txt").read_text().partition(".")[0]
    assert wheel.name.split("-")[2] == f"1cuda{major}"
    assert cuda.cuda_versions()[1] // 1000 == int(major)
