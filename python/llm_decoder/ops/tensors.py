"""What an argument is to a kernel: an address, a dtype, a shape, strides, a device. Of NumPy arrays, and of whatever
speaks DLPack; its framework is never imported."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import dlpack_array, read_dlpack
from llm_decoder.errors import InvalidArgumentError

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
# The dtypes that an array of integers may stand for, when they are named.
_HALF_CODES = ("uint16", "int16")
_CODES = {"bfloat16": _HALF_CODES, "float16": _HALF_CODES, "fp8": ("uint8",)}
# What holds their codes in NumPy.
CARRIERS = {"bfloat16": np.uint16, "float16": np.uint16, "fp8": np.uint8}
_ML_DTYPES = {"bfloat16": "bfloat16", "float8_e4m3fn": "fp8"}
_DLPACK_DEVICES = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}  # host, device, pinned and managed memory


@dataclass(frozen=True, slots=True)
class Tensor:
    """name: of the argument. dtype: NumPy's name, "bfloat16" or "fp8". strides: elements. device: "cpu", "cuda:0", ...
    value: what the caller gave; owner keeps the memory alive."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: str
    address: int
    is_writeable: bool
    value: Any
    owner: Any

    @property
    def n_axes(self) -> int:
        return len(self.shape)

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES.get(self.dtype) or np.dtype(self.dtype).itemsize

    @property
    def page_bytes(self) -> int:
        """Of one index of the first axis, where there are no gaps."""
        return math.prod(self.shape[1:]) * self.item_bytes

    @property
    def is_contiguous(self) -> bool:
        if 0 in self.shape:
            return True
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n > 1 and stride != step:
                return False
            step *= n
        return True

    def array(self) -> npt.NDArray[Any]:
        """The same host memory in NumPy; 16-bit floats as uint16, fp8 as uint8."""
        if isinstance(self.owner, np.ndarray):
            codes = CARRIERS.get(self.dtype)
            return self.owner if codes is None else self.owner.view(codes)
        bits: npt.NDArray[Any] = dlpack_array(self.owner)
        return bits if self.dtype in _CODES else bits.view(self.dtype)

    def named(self) -> tuple[npt.NDArray[Any], str]:
        """As the CPU core takes rows: codes and what they stand for."""
        return self.array(), self.dtype

    def raw(self) -> tuple[int, str, tuple[int, ...], tuple[int, ...]]:
        """As the GPU extensions take it."""
        return self.address, self.dtype, self.shape, self.strides


def view_tensor(place: str, name: str, value: Any, dtype: str | None = None, stream: int = 0) -> Tensor:
    """dtype: the name of what integers stand for, where `value` has no dtype of its own for it. stream: the CUDA stream
    that will use the tensor, which waits for what is still being written into it.

    Raises InvalidArgumentError for what is no tensor, is on a device of another kind, or holds something else than
    `dtype` says.
    """
    if isinstance(value, np.ndarray):
        tensor = _view_array(place, name, value)
    else:
        tensor = _view_dlpack(place, name, value, stream)
    return tensor if dtype is None or dtype == tensor.dtype else _with_dtype(place, tensor, dtype)


def view_floats(place: str, name: str, value: Any, dtype: str | None = None, stream: int = 0) -> Tensor:
    """The same where some arrays of a call may be float32 or int8 whatever its dtype: `dtype` is that of integers of 16
    bits alone."""
    tensor = view_tensor(place, name, value, stream=stream)
    return _with_dtype(place, tensor, dtype) if dtype is not None and tensor.dtype in _HALF_CODES else tensor


def _view_array(place: str, name: str, array: npt.NDArray[Any]) -> Tensor:
    item = array.dtype.itemsize
    if not array.dtype.isnative or any(stride % item for stride in array.strides):
        raise InvalidArgumentError(
            f"[{place}] {name} must be an array of native elements at whole steps, got dtype {array.dtype.str} "
            f"and strides {array.strides} bytes; pass np.ascontiguousarray of a native dtype"
        )
    dtype = array.dtype.name
    strides = tuple(stride // item for stride in array.strides)
    address = array.__array_interface__["data"][0]
    dtype = _ML_DTYPES.get(dtype, dtype)
    return Tensor(name, dtype, array.shape, strides, "cpu", address, array.flags.writeable, array, array)


def device_of(place: str, name: str, value: Any) -> str:
    """ "cpu", "cuda:0", ... Raises InvalidArgumentError for what is no tensor or elsewhere."""
    if isinstance(value, np.ndarray):
        return "cpu"
    if not hasattr(value, "__dlpack_device__"):
        raise InvalidArgumentError(
            f"[{place}] {name} must be a NumPy array or a tensor that speaks DLPack, got {type(value).__name__}"
        )
    kind, index = value.__dlpack_device__()
    device = _DLPACK_DEVICES.get(int(kind))
    if device is None:
        raise InvalidArgumentError(
            f"[{place}] {name} must be in host memory or on a CUDA device, got DLPack device type {int(kind)}"
        )
    return f"cuda:{int(index)}" if device == "cuda" else "cpu"


def _view_dlpack(place: str, name: str, value: Any, stream: int) -> Tensor:
    device = device_of(place, name, value)
    try:
        # The default stream's handle 0 is 1 in DLPack.
        capsule = value.__dlpack__() if device == "cpu" else value.__dlpack__(stream=stream or 1)
        address, dtype, shape, strides, is_writeable = read_dlpack(capsule)
    except (BufferError, ValueError) as error:
        raise InvalidArgumentError(f"[{place}] {name}: {error}") from error
    return Tensor(name, dtype, shape, strides, device, address, is_writeable, value, capsule)


def _with_dtype(place: str, tensor: Tensor, dtype: str) -> Tensor:
    if dtype not in ITEM_BYTES:
        raise InvalidArgumentError(
            f"[{place}] the dtype of {tensor.name} must be one of {', '.join(ITEM_BYTES)}, got {dtype!r}"
        )
    if tensor.dtype not in _CODES.get(dtype, ()):
        codes = f" or {_CODES[dtype][0]}" if dtype in _CODES else ""
        raise InvalidArgumentError(
            f"[{place}] {tensor.name} was said to hold {dtype}: must be {dtype}{codes}, got {tensor.dtype}"
        )
    return replace(tensor, dtype=dtype)


def make_like(place: str, like: Tensor, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """A new tensor of the kind and on the device of `like`, its elements anything. dtype: a name that the framework and
    NumPy share; None: that of `like`.

    Raises InvalidArgumentError for tensors of a framework whose way to make one is not known.
    """
    value = like.value
    if isinstance(value, np.ndarray):
        return np.empty(shape, value.dtype if dtype is None else dtype)
    framework = framework_of(value)
    if framework is None:
        raise InvalidArgumentError(
            f"[{place}] results cannot be made of {type(value).__name__}, which has no array namespace; need NumPy "
            "arrays, torch tensors or the array API's, or out and no return_lse"
        )
    return framework.empty(
        shape, dtype=value.dtype if dtype is None else getattr(framework, dtype), device=value.device
    )


def framework_of(value: Any) -> Any | None:
    """The module that makes tensors of the kind of `value`: its array namespace, or the loaded package of its class."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    for cls in type(value).__mro__:
        package = sys.modules.get(cls.__module__.partition(".")[0])
        if hasattr(package, "empty") and hasattr(package, "from_dlpack"):
            return package
    return None


def current_stream(value: Any, device_index: int) -> int:
    """The CUDA stream on which the framework of `value` works now; 0, the device's own, where that is not known."""
    cuda: Any = getattr(framework_of(value), "cuda", None)
    if hasattr(cuda, "current_stream"):  # torch
        return int(cuda.current_stream(device_index).cuda_stream)
    if hasattr(cuda, "get_current_stream"):  # CuPy
        return int(cuda.get_current_stream().ptr)
    return 0
