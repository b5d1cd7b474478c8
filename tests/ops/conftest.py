"""Which implementation computes on NumPy arrays: the CPU's, or the GPU kernels, on the host machine or on a GPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from device_rig import on_the_device, why_no_device
from device_watch import pytest_runtest_makereport, pytest_runtest_protocol  # noqa: F401 - pytest's hooks
from host_orders import ORDERS, order_for

from llm_decoder.ops import machines

NEEDS_DEVICE = "LLM_DECODER_NEEDS_DEVICE"  # where a test that finds none has failed


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("device") and why_no_device():
        if NEEDS_DEVICE in os.environ:
            pytest.exit(f"no device: {why_no_device()}", returncode=1)
        pytest.skip(why_no_device())  # said once for all of them


def gpu_kernels_on_the_host() -> machines.GpuKernels:
    return importlib.import_module("llm_decoder._cuda_host")  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def order_of_threads(request: pytest.FixtureRequest) -> Iterator[tuple[str, int] | None]:
    """In which kernels run on the host machine, another from test to test. None: a device has its own."""
    if request.node.get_closest_marker("device"):
        yield None
        return
    kernels: Any = gpu_kernels_on_the_host()
    order = order_for(request.node.name)
    kernels.set_order_of_threads(*order)
    yield order
    kernels.set_order_of_threads(*ORDERS[0])


@pytest.fixture
def host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays in host memory go to the GPU kernels, compiled for the host."""
    monkeypatch.setattr(machines, "_host_memory_kernels", gpu_kernels_on_the_host())


@pytest.fixture
def device() -> Iterator[None]:
    """Arrays in host memory go to a GPU and back."""
    with on_the_device():
        yield


@pytest.fixture(params=["cpu", "host machine", pytest.param("device", marks=pytest.mark.device)])
def any_machine(request: pytest.FixtureRequest) -> str:
    """One after the other."""
    if request.param != "cpu":
        request.getfixturevalue(request.param.replace(" ", "_"))
    return str(request.param)


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on CUDA device 0 are in host memory, and the host machine computes on them."""
    monkeypatch.setattr(machines, "load_cuda", gpu_kernels_on_the_host)
