"""A bare machine is told what it lacks before anything is built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_prerequisites.sh"


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
