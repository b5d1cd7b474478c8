"""Why a GPU cannot be used, reason by reason, and what is known of one that can."""

from __future__ import annotations

import types
from typing import Any

import pytest

from llm_decoder import backends, device_info, devices
from llm_decoder.errors import BackendError, DeviceLostError

H200 = {
    "name": "NVIDIA H200",
    "compute_capability": (9, 0),
    "n_sms": 132,
    "free_bytes": 139 << 30,
    "total_bytes": 140 << 30,
}
TOO_OLD = "[n_devices] cudaErrorInsufficientDriver: CUDA driver version is insufficient"


def extension(
    *found: dict[str, Any] | Exception,
    failure: Exception | None = None,
    versions: tuple[int, int] = (13000, 13000),
    targets: str = "sm_80 sm_89 sm_90a compute_90",
) -> Any:
    """A `_cuda` on a machine with these devices, or whose driver fails."""

    def n_devices() -> int:
        if failure is not None:
            raise failure
        return len(found)

    def describe_device(index: int) -> dict[str, Any]:
        device = found[index]
        if isinstance(device, Exception):
            raise device
        return device

    return types.SimpleNamespace(
        TARGETS=targets, cuda_versions=lambda: versions, n_devices=n_devices, describe_device=describe_device
    )


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_info, "_driver_version", lambda: "580.65.06")
    monkeypatch.setattr(device_info, "find_cublaslt", lambda: "/a/libcublasLt.so.13")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> list[device_info.DeviceInfo]:
    monkeypatch.setattr(backends, "load_cuda", lambda: cuda)
    return devices()[1:]


def test_of_a_gpu_that_can_be_used_everything_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    (gpu,) = gpus(monkeypatch, extension(H200, versions=(13010, 13000)))
    assert gpu.is_usable
    assert (gpu.memory_bytes, gpu.total_bytes, gpu.compute_capability) == (139 << 30, 140 << 30, "9.0")
    assert (gpu.driver, gpu.driver_cuda, gpu.runtime_cuda) == ("580.65.06", "13.1", "13.0")
    assert gpu.cublaslt == "/a/libcublasLt.so.13"


def test_a_build_without_the_extension_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    (none,) = devices()[1:]
    assert not none.is_usable
    assert "this build has no CUDA extension" in none.reason
    assert "LLM_DECODER_CUDA=on pip install ." in none.reason


def test_without_a_driver_the_first_that_would_do_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (none,) = gpus(monkeypatch, extension(failure=RuntimeError(TOO_OLD), versions=(0, 12080)))
    assert none.reason.startswith("no NVIDIA driver is loaded ([n_devices] cudaErrorInsufficientDriver")
    assert none.reason.endswith("install a driver for CUDA 12, 525 or later")


def test_a_driver_that_is_too_old_is_told_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_info, "_driver_version", lambda: "535.104.05")
    (none,) = gpus(monkeypatch, extension(failure=RuntimeError(TOO_OLD), versions=(12020, 13000)))
    assert none.reason == (
        f"the NVIDIA driver 535.104.05 runs CUDA up to 12.2, this build needs 13.0 ({TOO_OLD}); "
        "install a driver for CUDA 13, 580 or later"
    )


def test_another_failure_of_the_driver_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "[n_devices] cudaErrorSystemDriverMismatch: system has unsupported display driver"
    (none,) = gpus(monkeypatch, extension(failure=RuntimeError(said)))
    assert none.reason == said
    (none,) = gpus(monkeypatch, extension(failure=DeviceLostError("[n_devices] cudaErrorUnknown: unknown error")))
    assert "cudaErrorUnknown" in none.reason


def test_devices_that_are_hidden_are_told_by_the_variable_that_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    for cuda in (extension(), extension(failure=RuntimeError("[n_devices] cudaErrorNoDevice: no device"))):
        (none,) = gpus(monkeypatch, cuda)
        assert "CUDA_VISIBLE_DEVICES='7' hides" in none.reason


def test_a_gpu_that_does_not_answer_takes_none_of_the_others_away(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = RuntimeError("[memory_info] cudaErrorDevicesUnavailable: busy")
    first, second = gpus(monkeypatch, extension(busy, H200))
    assert (first.name, first.reason) == ("cuda", f"it does not answer: {busy}")
    assert (second.name, second.is_usable) == ("cuda:1", True)


@pytest.mark.parametrize(
    ("targets", "capability", "runs"),
    [
        ("sm_80 sm_89 sm_90a compute_90", (8, 0), True),
        ("sm_80 sm_89 sm_90a compute_90", (8, 6), True),
        ("sm_80 sm_89 sm_90a compute_90", (9, 0), True),
        ("sm_80 sm_89 sm_90a compute_90", (12, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (8, 0), False),
        ("sm_90a", (10, 0), False),
        ("sm_89", (8, 6), False),
        ("sm_80", (9, 0), False),
        ("host", (8, 0), True),
    ],
)
def test_kernels_run_where_they_were_compiled_for(
    monkeypatch: pytest.MonkeyPatch, targets: str, capability: tuple[int, int], runs: bool
) -> None:
    (gpu,) = gpus(monkeypatch, extension(H200 | {"compute_capability": capability}, targets=targets))
    assert gpu.is_usable == runs
    if not runs:
        assert f"this build has kernels for {targets} alone" in gpu.reason


def test_the_version_of_the_driver_is_read_from_what_its_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    told = {
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024": "550.54.14",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build": "580.65.06",
        "something else": "",
    }
    for text, version in told.items():
        monkeypatch.setattr(
            device_info.Path, "read_text", lambda self, text=text, **_: f"{text}\nGCC version: 12.2.0\n"
        )
        assert device_info._driver_version() == version


def test_the_machine_of_tests_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_host = pytest.importorskip("llm_decoder._cuda_host")
    (gpu,) = gpus(monkeypatch, cuda_host)
    assert gpu.is_usable
    assert 0 < gpu.memory_bytes <= gpu.total_bytes
    assert (gpu.driver_cuda, gpu.runtime_cuda) == ("", "")


def test_a_device_that_is_lost_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_host = pytest.importorskip("llm_decoder._cuda_host")
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: cuda_host)
    cuda = backends.load_cuda()
    cuda.set_host_fault(700)
    try:
        with pytest.raises(DeviceLostError, match=r"the GPU is lost to this process.*compute-sanitizer") as caught:
            cuda.synchronize(0, 0)
    finally:
        cuda.set_host_fault(0)
    assert isinstance(caught.value, BackendError)
    cuda.synchronize(0, 0)


def test_a_gpu_is_looked_at_when_it_is_its_turn_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """For that takes memory of it."""
    cuda = extension(H200, H200, H200)
    seen: list[int] = []
    describe = cuda.describe_device
    cuda.describe_device = lambda index: (seen.append(index), describe(index))[1]
    monkeypatch.setattr(backends, "load_cuda", lambda: cuda)
    assert next(backends.usable_gpus()).name == "cuda"
    assert seen == [0]
    assert backends.usable_gpu("cuda:2").name == "cuda:2"
    assert seen == [0, 2]


def test_a_gpu_that_there_is_not_is_refused_with_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_cuda", lambda: extension(H200, H200))
    with pytest.raises(
        BackendError, match=r"^\[device\] cuda:2 cannot be used: there are cuda, cuda:1; use device='cpu'"
    ):
        backends.usable_gpu("cuda:2")
