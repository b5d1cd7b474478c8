"""Who computes on a device: the CPU core, or an extension of GPU kernels."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import choose_threads, load_cuda
from llm_decoder.errors import BackendError, InvalidArgumentError
from llm_decoder.ops.tensors import Tensor, current_stream

RawTensor = tuple[int, str, tuple[int, ...], tuple[int, ...]]


class GpuKernels(Protocol):
    """An extension of GPU kernels: `_cuda`, or `_cuda_host`, on which the host's memory is the device's."""

    AttentionPlan: Any
    DeviceCopy: Any
    UNBOUNDED: int

    def paged_attention(self, *args: Any) -> None: ...
    def merge_states(self, *args: Any) -> None: ...
    def copy_to_host(self, to: npt.NDArray[Any], address: int, stream: int) -> None: ...
    def synchronize(self, stream: int) -> None: ...


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
        if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
            raise InvalidArgumentError(f"[{place}] stream must be the handle of a CUDA stream, got {stream!r}")
        return stream
    return 0 if device == "cpu" else current_stream(value, device_index(device))


class Addresses:
    """Where the arrays of one call are in the memory of its device. Host arrays are copied there when the device is a
    GPU's; the copies live as long as this does, and `finish` must come before that."""

    def __init__(self, place: str, kernels: GpuKernels, device: str, stream: int) -> None:
        self._place, self._kernels, self._device, self._stream = place, kernels, device, stream
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
            self._kernels.synchronize(self._stream)
