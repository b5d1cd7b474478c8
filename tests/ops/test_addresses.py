"""Host arrays of a call on a GPU: copied there, and kept until the kernels have read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from exported_tensor import CUDA, ExportedTensor

from llm_decoder.ops.machines import Addresses
from llm_decoder.ops.tensors import view_tensor


class FakeKernels:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def DeviceCopy(self, array: np.ndarray, device: int, stream: int) -> Any:
        self.asked.append((array.tolist(), device, stream))
        return type("Copy", (), {"address": 4096})

    def synchronize(self, device: int, stream: int) -> None:
        self.asked.append((device, stream))


def test_an_array_of_the_host_is_copied_and_the_call_waits() -> None:
    kernels = FakeKernels()
    addresses = Addresses(kernels, "cuda:1", 77)
    assert addresses[view_tensor("here", "sinks", np.arange(6)[::2])] == 4096
    addresses.finish()
    assert kernels.asked == [([0, 2, 4], 1, 77), (1, 77)]


def test_what_is_there_already_is_neither_copied_nor_waited_for() -> None:
    kernels = FakeKernels()
    addresses = Addresses(kernels, "cuda:0", 77)
    array = np.arange(4, dtype=np.int32)
    assert addresses[view_tensor("here", "x", ExportedTensor(array, device=CUDA))] == array.ctypes.data
    assert addresses[None] == 0
    addresses.finish()
    assert kernels.asked == []


def test_what_a_call_holds_is_waited_for() -> None:
    kernels = FakeKernels()
    addresses = Addresses(kernels, "cuda:0", 5)
    addresses.hold(object())
    addresses.finish()
    assert kernels.asked == [(0, 5)]
