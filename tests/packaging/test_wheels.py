"""Wheels with and without the GPU kernels, from the same tree. What compiles them is a stand-in: this is about what
goes into a wheel, and under which name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.packaging
# As cmake with LLM_DECODER_CUDA=on, which is passed on to it, or off.
CMAKE = """#!/bin/sh
case "$*" in
*-DLLM_DECODER_CUDA=on*) mkdir -p "$4" && printf 13.0.88 > "$4/cuda_version.txt" ;;
--build*)
  folder="$2/python/llm_decoder" && mkdir -p "$folder" && : > "$folder/_core.so" && : > "$folder/_cuda_host.so"
  if [ -f "$2/cuda_version.txt" ]; then : > "$folder/_cuda.so"; fi ;;
esac
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("wheels") / "checkout"
    names = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools", "python", "api", "web", "cli", "config")
    ignored = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__", "embedded")
    for name in (*names, "reranker"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the stand-in beside it, where setup.py looks first."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    found = place / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(found), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    cmake = place / "bin" / "cmake"
    cmake.write_text(CMAKE)
    cmake.chmod(0o755)
    return found


def build(python: Path, checkout: Path, cuda: str, target: Path) -> Path:
    pip = [str(python), "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target), "."]
    environment = {name: value for name, value in os.environ.items() if name != "LLM_DECODER_BUILD_DIR"}
    done = subprocess.run(
        pip, cwd=checkout, env=environment | {"LLM_DECODER_CUDA": cuda}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


def contents(wheel: Path) -> tuple[list[str], str]:
    """(compiled modules, the text of WHEEL)"""
    with zipfile.ZipFile(wheel) as archive:
        modules = sorted(re.findall(r"llm_decoder/(_\w+)\.[^/]*so$", "\n".join(archive.namelist()), re.M))
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        return modules, archive.read(about).decode()


def test_a_wheel_with_the_gpu_kernels_is_told_apart_by_its_name(python: Path, checkout: Path, tmp_path: Path) -> None:
    with_cuda = build(python, checkout, "on", tmp_path / "on")
    modules, about = contents(with_cuda)
    assert re.match(r"llm_decoder-[\d.]+-1cuda13-cp", with_cuda.name)
    assert "Build: 1cuda13" in about
    assert modules == ["_core", "_cuda"]
    shutil.rmtree(checkout / "build")
    without = build(python, checkout, "off", tmp_path / "off")
    modules, about = contents(without)
    assert re.match(r"llm_decoder-[\d.]+-cp", without.name)
    assert "Build:" not in about
    assert modules == ["_core"]


def test_kernels_of_an_earlier_build_do_not_get_into_a_wheel_without_them(
    python: Path, checkout: Path, tmp_path: Path
) -> None:
    build(python, checkout, "on", tmp_path / "on")
    for left_over in checkout.glob("build/temp*/**/_cuda.so"):  # as CMake does; setuptools' own copy stays
        left_over.unlink()
        (left_over.parents[2] / "cuda_version.txt").unlink()
    wheel = build(python, checkout, "off", tmp_path / "off")
    assert contents(wheel)[0] == ["_core"]
    assert "cuda" not in wheel.name
