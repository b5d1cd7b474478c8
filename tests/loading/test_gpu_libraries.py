"""Where NVIDIA's wheels put the libraries that products of many rows are made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_decoder.gpu_libraries import cublaslt_libraries


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
