"""Where NVIDIA's wheels put the libraries that products of many rows are made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_decoder.gpu_libraries import cublaslt_libraries, find_cublaslt


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, and no other that has an `nvidia`."""
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(site: Path, name: str) -> str:
    path = site / "nvidia" / name
    path.parent.mkdir(parents=True)
    path.touch()
    return str(path)


def test_the_newest_of_those_installed_comes_first(site: Path) -> None:
    older = install(site, "cublas/lib/libcublasLt.so.12")
    assert cublaslt_libraries() == [older]
    newer = install(site, "cu13/lib/libcublasLt.so.13")
    assert cublaslt_libraries() == [newer, older]


def test_there_are_none_where_no_wheel_is_installed(site: Path) -> None:
    assert cublaslt_libraries() == []
    install(site, "cuda_runtime/lib/libcudart.so.12")
    assert cublaslt_libraries() == []


def test_the_one_that_is_found_can_be_opened(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer, older = install(site, "cu13/lib/libcublasLt.so.13"), install(site, "cublas/lib/libcublasLt.so.12")
    opened: list[str] = []

    def open_library(name: str) -> None:
        opened.append(name)
        if name not in good:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", open_library)
    good = {older}
    assert find_cublaslt() == older
    assert opened == [newer, older]
    good = set()
    assert find_cublaslt() is None


def test_without_wheels_the_systems_loader_is_asked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    assert find_cublaslt() == "libcublasLt.so.13"
