"""Who computes on a device: the CPU core, or an extension of GPU kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import choose_threads, load_cuda
from llm_decoder.errors import BackendError, InvalidArgumentError, NotEnoughMemoryError
from llm_decoder.ops import checks
from llm_decoder.ops.tensors import CARRIERS, Tensor, current_stream, view_tensor

RawTensor = tuple[int, str, tuple[int, ...], tuple[int, ...]]


class GpuKernels(Protocol):
    """An extension of GPU kernels: `_cuda`, or `_cuda_host`, on which the host's memory is the device's."""

    AttentionPlan: Any
    DeviceCopy: Any
    UNBOUNDED: int

    def paged_attention(self, *args: Any) -> None: ...
    def merge_states(self, *args: Any) -> None: ...
    def append_kv(self, *args: Any) -> None: ...
    def copy_blocks(self, *args: Any) -> None: ...
    def fused_moe_workspace_bytes(self, call: tuple[Any, ...]) -> int: ...
    def fused_moe(self, *args: Any) -> None: ...
    def moe_routing(self, *args: Any) -> None: ...
    def moe_sort_workspace(self, n_pairs: int, n_experts: int) -> int: ...
    def moe_sort(self, *args: Any) -> None: ...
    def rms_norm(self, *args: Any) -> None: ...
    def layer_norm(self, *args: Any) -> None: ...
    def gated(self, *args: Any) -> None: ...
    def embed(self, *args: Any) -> None: ...
    def sample_workspace_bytes(self, *args: Any) -> int: ...
    def sample(self, *args: Any) -> None: ...
    def log_probs_workspace_bytes(self, *args: Any) -> int: ...
    def log_probs(self, *args: Any) -> None: ...
    def best_of_beams_workspace_bytes(self, *args: Any) -> int: ...
    def best_of_beams(self, *args: Any) -> None: ...
    def pack_gpu_half(self, w: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
    def pack_gpu_w8(self, q: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
    def pack_gpu_w4(self, *args: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
    def pack_gpu_f8(self, q: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
    def quantize_f8_rows(self, w: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]: ...
    def plan_small_product(self, format: str, n: int, k: int, device: int) -> tuple[int, int]: ...
    def small_product_partials(self, plan: tuple[int, int], m: int, n: int) -> int: ...
    def small_product_counters(self, n: int) -> int: ...
    def small_product(self, *args: Any) -> None: ...
    def swap_blocks(self, *args: Any) -> None: ...
    def copy_to_host(self, to: npt.NDArray[Any], address: int, device: int, stream: int) -> None: ...
    def synchronize(self, device: int, stream: int) -> None: ...


# Of NumPy arrays and other tensors in host memory. Tests let _cuda_host stand for a device here.
_host_memory_kernels: GpuKernels | None = None


def kernels_for(place: str, device: str) -> GpuKernels | None:
    """The extension that computes on a device; None: the CPU core does.

    Raises BackendError where there is none.
    """
    if device == "cpu":
        return _host_memory_kernels
    try:
        return load_cuda()  # type: ignore[return-value]
    except BackendError as error:
        raise BackendError(f"[{place}] {device} cannot be used: {error}; pass arrays in host memory") from error


@contextlib.contextmanager
def compiled_code(place: str) -> Iterator[None]:
    """Around its calls: what it raises becomes an error of this package."""
    try:
        yield
    except MemoryError as error:
        raise NotEnoughMemoryError(_said_at(place, error)) from error
    except ValueError as error:
        raise InvalidArgumentError(_said_at(place, error)) from error
    except RuntimeError as error:
        raise BackendError(_said_at(place, error)) from error


def _said_at(place: str, error: Exception) -> str:
    """Compiled code names its own place, which is mostly the same."""
    return f"[{place}] {str(error).removeprefix(f'[{place}] ').removeprefix(f'[ops.{place}] ')}"


def device_index(device: str) -> int:
    """0 of "cuda", and of the host's memory where GPU kernels compute on it."""
    return int(device.partition(":")[2] or 0)


@functools.cache
def n_threads() -> int:
    """That compute on the CPU."""
    return choose_threads()


def stream_of(place: str, value: Any, device: str, stream: int | None) -> int:
    """The handle of the CUDA stream to work on: the one given, else that of the framework of `value`."""
    if stream is not None:
        if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream < 1 << 64:
            raise checks.refuse(place, f"stream must be the handle of a CUDA stream, got {stream!r}")
        return stream
    return 0 if device == "cpu" else current_stream(value, device_index(device))


class Addresses:
    """Where the arrays of one call are in the memory of its device. Host arrays are copied there when the device is a
    GPU's; the copies live as long as this does, and `finish` must come before that. Inside compiled_code."""

    def __init__(self, kernels: GpuKernels, device: str, stream: int) -> None:
        self._kernels, self._device, self._stream = kernels, device, stream
        self._copies: list[Any] = []

    def __getitem__(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        if tensor.device == self._device:
            return tensor.address
        array = np.ascontiguousarray(tensor.array())
        self._copies.append(self._kernels.DeviceCopy(array, device_index(self._device), self._stream))
        return int(self._copies[-1].address)

    def hold(self, owner: Any) -> None:
        """Something else of this call that kernels still read."""
        self._copies.append(owner)

    def finish(self) -> None:
        """Waits for the kernels if they read what goes with this object."""
        if self._copies:
            self._kernels.synchronize(device_index(self._device), self._stream)


def copy_to_host(place: str, tensor: Tensor, stream: int) -> npt.NDArray[Any]:
    """Its codes in host memory, without gaps; those on a device are waited for."""
    if tensor.device == "cpu":
        return np.ascontiguousarray(tensor.array())
    checks.check_contiguous(place, tensor)
    kernels = kernels_for(place, tensor.device)
    assert kernels is not None
    array = np.empty(tensor.shape, CARRIERS.get(tensor.dtype, tensor.dtype))
    with compiled_code(place):
        kernels.copy_to_host(array, tensor.address, device_index(tensor.device), stream)
    return array


def host_array(
    place: str, name: str, value: Any, stream: int, dtype: str, axes: str, shape: Sequence[int | None]
) -> npt.NDArray[Any]:
    """A contiguous array in host memory of what may be on a device, which is waited for."""
    tensor = view_tensor(place, name, value, stream=stream)
    checks.check_dtype(place, tensor, dtype)
    checks.check_shape(place, tensor, axes, shape)
    return copy_to_host(place, tensor, stream)
