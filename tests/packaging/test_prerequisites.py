"""A bare machine is told what it lacks before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_prerequisites.sh"
N_CORES = len(os.sched_getaffinity(0))


def check(python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(["sh", str(SCRIPT), python], env=env, capture_output=True, text=True)


def test_a_complete_machine_passes_in_silence() -> None:
    done = check(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_python_is_named() -> None:
    done = check("no-such-python")
    assert done.returncode == 1
    assert "Python >= 3.11" in done.stderr


def test_a_missing_compiler_is_named() -> None:
    done = check(sys.executable, CXX="no-such-compiler")
    assert done.returncode == 1
    assert "C++17 compiler" in done.stderr


@pytest.mark.parametrize(
    ("failing_import", "named"), [("import venv", "venv"), ("import os, sys, sysconfig", "headers")]
)
def test_missing_venv_and_headers_are_named(tmp_path: Path, failing_import: str, named: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in "{failing_import}"*) exit 1 ;; *) exec {sys.executable} "$@" ;; esac\n')
    python.chmod(0o755)
    done = check(str(python))
    assert done.returncode == 1
    assert named in done.stderr


def printed_by(script: str, *arguments: str | Path, **environment: str) -> str:
    command = ["sh", str(SCRIPT.parent / script), *map(str, arguments)]
    env = {"PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("free_kb", "jobs"), [(100, 1), (1_600_000, 1), (10**12, N_CORES)])
def test_compilers_at_once_have_the_memory_that_they_need(free_kb: int, jobs: int, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {10**12} kB\nMemAvailable: {free_kb} kB\n")
    assert printed_by("count_jobs.sh", meminfo) == str(jobs)


def test_where_memory_is_not_told_there_is_a_compiler_a_core(tmp_path: Path) -> None:
    assert printed_by("count_jobs.sh", tmp_path / "none") == str(N_CORES)


def test_the_nvcc_that_is_named_or_on_the_path_is_taken(tmp_path: Path) -> None:
    make_program(tmp_path / "nvcc")
    assert printed_by("find_nvcc.sh", "no-python", CUDACXX="/named/nvcc") == "/named/nvcc"
    assert printed_by("find_nvcc.sh", "no-python", PATH=f"{tmp_path}:/usr/bin:/bin") == str(tmp_path / "nvcc")


def test_where_there_is_no_nvcc_its_wheels_are_installed(tmp_path: Path) -> None:
    """A Python that notes what it is asked to install, and has its packages here."""
    toolkit = tmp_path / "nvidia" / "cu13"
    toolkit.mkdir(parents=True)
    script = f'if [ "$1" = -m ]; then echo "$@" > {tmp_path}/asked; else echo {tmp_path}; fi'
    python = make_program(tmp_path / "python", script)
    assert printed_by("find_nvcc.sh", python, PATH=str(make_path_without_nvcc(tmp_path))) == f"{toolkit}/bin/nvcc"
    assert "pip install -q nvidia-cuda-nvcc==" in (tmp_path / "asked").read_text()
    assert (toolkit / "lib64").readlink() == Path("lib")


def make_path_without_nvcc(tmp_path: Path) -> Path:
    """A folder with nothing but what the script runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "ln"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def make_program(place: Path, script: str = "exit 1") -> Path:
    place.write_text(f"#!/bin/sh\n{script}\n")
    place.chmod(0o755)
    return place
