"""A framework of one class: tensors that NumPy cannot hold and that are reached through DLPack alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

CPU, CUDA, METAL = 1, 2, 8
_TYPES = {
    "bfloat16": (4, 16),
    "float16": (2, 16),
    "float32": (2, 32),
    "fp8": (10, 8),
    "int8": (0, 8),
    "int32": (0, 32),
    "uint8": (1, 8),
}
_CARRIERS = {"bfloat16": np.uint16, "float16": np.uint16, "fp8": np.uint8}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("n_axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_exports: dict[int, tuple[object, ...]] = {}  # what each living capsule points to, by its address


@_Destructor
def _forget(capsule: int) -> None:
    _exports.pop(capsule, None)


class ExportedTensor:
    """array: codes in host memory, whatever `device` says. version: of DLPack. streams: those asked for so far."""

    def __init__(
        self,
        array: npt.NDArray[Any],
        dtype: str | None = None,
        *,
        device: int = CPU,
        version: int = 0,
        is_read_only: bool = False,
    ) -> None:
        self.array = array
        self.dtype = dtype or array.dtype.name
        self.device = device
        self.version = version
        self.is_read_only = is_read_only
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.streams.append(stream)
        code, bits = _TYPES[self.dtype]
        n_axes = self.array.ndim
        item = self.array.itemsize
        shape = (ctypes.c_int64 * n_axes)(*self.array.shape)
        strides = (ctypes.c_int64 * n_axes)(*(stride // item for stride in self.array.strides))
        offset = 8 * item  # some frameworks keep the begin of their storage in data
        tensor = _Tensor(
            self.array.ctypes.data - offset,
            self.device,
            0,
            n_axes,
            code,
            bits,
            1,
            ctypes.addressof(shape),
            None if self.array.flags.c_contiguous and self.version == 0 else ctypes.addressof(strides),
            offset,
        )
        if self.version == 0:
            managed: Any = _Managed(tensor)
            name = b"dltensor"
        else:
            managed = _Versioned(self.version, 0, None, None, int(self.is_read_only), tensor)
            name = b"dltensor_versioned"
        capsule = _new_capsule(ctypes.addressof(managed), name, ctypes.cast(_forget, ctypes.c_void_p))
        _exports[id(capsule)] = (name, managed, shape, strides, self.array)
        return capsule


class NamespacedTensor(ExportedTensor):
    """One whose framework can make others."""

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


class Namespace:
    """Of NamespacedTensor."""

    float32 = "float32"
    int32 = "int32"
    int8 = "int8"
    uint8 = "uint8"

    @staticmethod
    def empty(shape: tuple[int, ...], *, dtype: str, device: int) -> NamespacedTensor:
        return NamespacedTensor(np.empty(shape, _CARRIERS.get(dtype, dtype)), dtype, device=device)


def n_living_exports() -> int:
    return len(_exports)
