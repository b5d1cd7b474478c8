"""A real GPU in the place of the host machine: the same tests, with arrays in host memory, run on it.

What a door is given in host memory gets a mirror in the device's, of exactly its size and at the same alignment. The
door hands the mirrors' addresses to the kernels of `_cuda`; when a launch has returned and the device is done, what it
was given and can be written is copied back, element by element, so that views into one array do not meet.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import load_cuda
from llm_decoder.errors import BackendError
from llm_decoder.ops import machines, tensors
from llm_decoder.ops.tensors import Tensor

ALIGNMENT = 256  # of the device's memory
# Functions of an extension that take addresses and follow none.
ASKS = ("_workspace", "_workspace_bytes")
DEVICE, STREAM = 0, 0

Bytes = npt.NDArray[np.uint8]


@dataclasses.dataclass
class Mirror:
    """Of the bytes of host memory from `low` on: `content`, as it was when it was copied, at `offset` of what `copy`
    owns on the device. tensors: views of it."""

    low: int
    offset: int
    content: Bytes
    copy: Any
    tensors: list[Tensor] = dataclasses.field(default_factory=list)

    def address_of(self, host_address: int) -> int:
        return int(self.copy.address) + self.offset + host_address - self.low

    def holds(self, address: int) -> bool:
        return 0 <= address - int(self.copy.address) < self.offset + len(self.content)


class DeviceRig:
    """Stands for an extension of GPU kernels that compute on host memory."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self._mirrors: list[Mirror] = []
        self._unused: dict[
            tuple[int, int], Mirror
        ] = {}  # that no kernel has seen: two views of an array are one memory

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if isinstance(found, type) or not callable(found) or name.endswith(ASKS):
            return found

        def call(*arguments: Any) -> Any:
            result = found(*arguments)
            numbers = list(numbers_in(arguments))
            reached = [mirror for mirror in self._mirrors if any(map(mirror.holds, numbers))]
            if reached:  # a launch
                self._kernels.synchronize(DEVICE, STREAM)
                for mirror in reached:
                    self._fetch(mirror)
                self._unused = {}
            return result

        return call

    def mirrored(self, tensor: Tensor) -> Tensor:
        """The same with the address of its mirror, which holds what host memory holds now."""
        if tensor.device != "cpu" or 0 in tensor.shape:
            return tensor
        low, n_bytes = extent(tensor)
        content = host_bytes(low, n_bytes)
        mirror = self._unused.get((low, n_bytes))
        if mirror is None or not np.array_equal(mirror.content, content):
            offset = low % ALIGNMENT
            padded = np.zeros(offset + n_bytes, np.uint8)
            padded[offset:] = content
            mirror = Mirror(low, offset, content.copy(), self._kernels.DeviceCopy(padded, DEVICE, STREAM))
            self._mirrors.append(mirror)
            self._unused[low, n_bytes] = mirror
        mirror.tensors.append(tensor)
        return dataclasses.replace(tensor, address=mirror.address_of(tensor.address))

    def _fetch(self, mirror: Mirror) -> None:
        n_bytes = len(mirror.content)
        there = np.empty(mirror.offset + n_bytes, np.uint8)
        self._kernels.copy_to_host(there, int(mirror.copy.address), DEVICE, STREAM)
        here = host_bytes(mirror.low, n_bytes)
        for tensor in mirror.tensors:
            if tensor.is_writeable:
                elements(here, tensor, mirror.low)[...] = elements(there[mirror.offset :], tensor, mirror.low)


def numbers_in(argument: Any) -> Iterator[int]:
    """All whole numbers of nested arguments: addresses are among them."""
    if isinstance(argument, int):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for one in argument:
            yield from numbers_in(one)
    elif isinstance(argument, dict):
        yield from numbers_in(list(argument.values()))


def extent(tensor: Tensor) -> tuple[int, int]:
    """(address of the first byte, bytes to the last): what a strided tensor spans."""
    steps = [stride * (n - 1) * tensor.item_bytes for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
    low = tensor.address + sum(step for step in steps if step < 0)
    high = tensor.address + sum(step for step in steps if step > 0) + tensor.item_bytes
    return low, high - low


def host_bytes(address: int, n_bytes: int) -> Bytes:
    return np.frombuffer((ctypes.c_uint8 * n_bytes).from_address(address), np.uint8)


def elements(memory: Bytes, tensor: Tensor, low: int) -> npt.NDArray[Any]:
    """The tensor's elements, as unsigned integers, in memory that begins where its extent does."""
    strides = [stride * tensor.item_bytes for stride in tensor.strides]
    dtype = np.dtype(f"u{tensor.item_bytes}")
    return np.ndarray(tensor.shape, dtype, memory, offset=tensor.address - low, strides=strides)


@functools.cache
def why_no_device() -> str:
    """Empty where a GPU can be used."""
    try:
        return "" if load_cuda().n_devices() else "the driver knows no NVIDIA GPU"
    except (BackendError, RuntimeError) as error:
        return str(error)


@contextlib.contextmanager
def rigged(kernels: Any) -> Iterator[DeviceRig]:
    """Host memory is mirrored, and computed on by `kernels`."""
    rig = DeviceRig(kernels)

    def mirror_of(view: Any) -> Any:
        return lambda *arguments: rig.mirrored(view(*arguments))

    with (
        mock.patch.object(machines, "_host_memory_kernels", rig),
        mock.patch.object(tensors, "_view_array", mirror_of(tensors._view_array)),
        mock.patch.object(tensors, "_view_dlpack", mirror_of(tensors._view_dlpack)),
    ):
        yield rig


@contextlib.contextmanager
def on_the_device() -> Iterator[None]:
    """Inside it arrays in host memory are computed on by the GPU."""
    with rigged(load_cuda()):
        yield
