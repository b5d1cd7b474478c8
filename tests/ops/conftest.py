"""Which implementation computes on NumPy arrays: the CPU's, or the GPU kernels on the host machine."""

from __future__ import annotations

import importlib

import pytest

from llm_decoder.ops import machines


def gpu_kernels_on_the_host() -> machines.GpuKernels:
    return importlib.import_module("llm_decoder._cuda_host")  # type: ignore[return-value]


@pytest.fixture
def host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays in host memory go to the GPU kernels, compiled for the host."""
    monkeypatch.setattr(machines, "_host_memory_kernels", gpu_kernels_on_the_host())


@pytest.fixture(params=["cpu", "host machine"])
def any_machine(request: pytest.FixtureRequest) -> str:
    """One after the other."""
    if request.param == "host machine":
        request.getfixturevalue("host_machine")
    return str(request.param)


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on CUDA device 0 are in host memory, and the host machine computes on them."""
    monkeypatch.setattr(machines, "load_cuda", gpu_kernels_on_the_host)
