"""What a machine computes on, and why a GPU of it cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_decoder.errors import BackendError
from llm_decoder.gpu_libraries import find_cublaslt

__all__ = ["DeviceInfo", "cuda_devices", "gpu_name"]

_LEAST_COMPUTE_CAPABILITY = (8, 0)
# The first driver that runs programs of a CUDA, by its major version (CUDA Toolkit Release Notes, "CUDA Driver").
_FIRST_DRIVERS = {12: "525", 13: "580"}


@dataclass(frozen=True)
class DeviceInfo:
    """A device of this machine. reason: why it cannot be used, empty when it can. threads: how many compute unless told
    otherwise. cores: physical ones that this process may use. isas: of CPU kernels. memory_bytes: free.

    Of a GPU also: total_bytes; compute_capability, such as "9.0"; the version of its driver, that of the newest CUDA
    which the driver runs (driver_cuda), that of the CUDA in this build (runtime_cuda); where cuBLASLt was found. Empty
    where it is not known, or not there.
    """

    name: str
    description: str
    threads: int
    cores: int
    memory_bytes: int
    isas: tuple[str, ...] = ()
    reason: str = ""
    total_bytes: int = 0
    compute_capability: str = ""
    driver: str = ""
    driver_cuda: str = ""
    runtime_cuda: str = ""
    cublaslt: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.reason


def cuda_devices(load_cuda: Callable[[], ModuleType], only: str | None = None) -> Iterator[DeviceInfo]:
    """Every NVIDIA GPU, or the one that is called `only`, or one entry that says why there is none.

    A GPU is looked at when it is its turn, not before: that takes some of its memory, until the process ends.
    """
    try:
        cuda = load_cuda()
    except BackendError as error:
        yield _none(str(error))
        return
    driver_cuda, runtime_cuda = cuda.cuda_versions()
    facts: dict[str, Any] = {
        "driver": _driver_version(),
        "driver_cuda": _version(driver_cuda),
        "runtime_cuda": _version(runtime_cuda),
    }
    try:
        names = [gpu_name(index) for index in range(cuda.n_devices())]
    except (BackendError, RuntimeError) as error:
        yield _none(_why_no_driver(str(error), driver_cuda, runtime_cuda, facts["driver"]), **facts)
        return
    if not names:
        yield _none("the driver knows no NVIDIA GPU" + _hidden(), **facts)
    elif only is not None and only not in names:
        yield _none(f"there {'is only' if len(names) == 1 else 'are'} {', '.join(names)}{_hidden()}", **facts)
    for index, name in enumerate(names):
        if only in (None, name):
            yield _cuda_device(cuda, index, facts)


def _none(reason: str, index: int = 0, **facts: Any) -> DeviceInfo:
    return DeviceInfo(gpu_name(index), "NVIDIA GPU", threads=0, cores=0, memory_bytes=0, reason=reason, **facts)


def gpu_name(index: int) -> str:
    """cuda, cuda:1, ..."""
    return f"cuda:{index}" if index else "cuda"


def _cuda_device(cuda: ModuleType, index: int, facts: dict[str, Any]) -> DeviceInfo:
    try:
        device = cuda.describe_device(index)
    except (BackendError, RuntimeError) as error:
        return _none(f"it does not answer: {error}", index, **facts)
    capability = device["compute_capability"]
    major, minor = capability
    reason = ""
    if capability < _LEAST_COMPUTE_CAPABILITY:
        reason = f"its compute capability is {major}.{minor}; the kernels need 8.0 or above"
    elif not _runs_on(cuda.TARGETS.split(), capability):
        reason = (
            f"its compute capability is {major}.{minor}, this build has kernels for {cuda.TARGETS} alone; build it on "
            "this machine, or for all devices with LLM_DECODER_CUDA=on"
        )
    return DeviceInfo(
        name=gpu_name(index),
        description=f"{device['name']}, compute capability {major}.{minor}, {device['n_sms']} multiprocessors",
        threads=0,
        cores=0,
        memory_bytes=device["free_bytes"],
        reason=reason,
        total_bytes=device["total_bytes"],
        compute_capability=f"{major}.{minor}",
        cublaslt="" if reason else find_cublaslt() or "",
        **facts,
    )


def _runs_on(targets: list[str], capability: tuple[int, int]) -> bool:
    """Machine code runs on devices of its major version from its minor one on, with an "a" on its own alone; PTX on
    every later device (CUDA C++ Programming Guide, "Compute Capability"). "host" is the machine of tests."""
    for target in targets:
        if target == "host":
            return True
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)", target)
        assert found is not None, "cmake/cuda.cmake names them so"
        code = (int(found[2]), int(found[3]))
        is_bound = found[4] or (found[1] == "sm" and code[0] != capability[0])
        if code == capability or (code < capability and not is_bound):
            return True
    return False


def _why_no_driver(said: str, driver_cuda: int, runtime_cuda: int, driver: str) -> str:
    """said: the runtime's words, with the name of its error."""
    if "cudaErrorNoDevice" in said:
        return said + _hidden()
    major = runtime_cuda // 1000
    remedy = f"install a driver for CUDA {major}, {_FIRST_DRIVERS.get(major, 'the newest')} or later"
    if not driver_cuda:
        return f"no NVIDIA driver is loaded ({said}); {remedy}"
    if driver_cuda // 1000 < major:
        return (
            f"the NVIDIA driver {driver}{' ' * bool(driver)}runs CUDA up to {_version(driver_cuda)}, this build needs "
            f"{_version(runtime_cuda)} ({said}); {remedy}"
        )
    return said


def _hidden() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f"; CUDA_VISIBLE_DEVICES={visible[:80]!r} hides those that it does not name"


def _version(cuda: int) -> str:
    """13000 -> "13.0"; 0 -> "" """
    return f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""


def _driver_version() -> str:
    """Of the kernel's module."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    found = re.search(r"\s(\d{3}(?:\.\d+)+)\s", text)
    return found[1] if found else ""
