"""What an argument must be, before a kernel sees it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops.tensors import Tensor

FLOATS = ("float32", "bfloat16", "float16")  # that rows may be of
MAX_HEAD_DIM = 256
VECTOR_BYTES = 16  # that GPU kernels read at once
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_INT32 = 2**31 - 1


def refuse(place: str, message: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"[{place}] {message}")


def check_shape(place: str, tensor: Tensor, axes: str, need: Sequence[int | None]) -> None:
    """axes: how the shape is written, "[T, Hq, D]"; None in `need`: any size."""
    is_right = len(tensor.shape) == len(need) and all(
        want is None or want == got for want, got in zip(need, tensor.shape, strict=True)
    )
    if not is_right:
        wanted = ", ".join("any" if n is None else str(n) for n in need)
        raise refuse(place, f"{tensor.name} must have shape {axes} = [{wanted}], got {list(tensor.shape)}")


def check_dtype(place: str, tensor: Tensor, *dtypes: str) -> None:
    if tensor.dtype in dtypes:
        return
    hint = ""
    if len(dtypes) == 1 and dtypes[0] in ("int32", "int64", "float32"):
        hint = f"; pass it as {dtypes[0]}"
    raise refuse(place, f"{tensor.name} must be {' or '.join(dtypes)}, got {tensor.dtype}{hint}")


def check_contiguous(place: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous:
        raise refuse(
            place,
            f"{tensor.name} must be contiguous, got shape {list(tensor.shape)} with strides {list(tensor.strides)}; "
            "pass a contiguous copy",
        )


def check_last_axis(place: str, tensor: Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.strides[-1] != 1 and 0 not in tensor.shape:
        raise refuse(
            place,
            f"the elements of the last axis of {tensor.name} must lie beside each other, got strides "
            f"{list(tensor.strides)}; pass a contiguous copy",
        )


def check_vectors(place: str, tensor: Tensor) -> None:
    """That rows of the last axis begin where GPU kernels can read them: a matter of views into other tensors."""
    item = tensor.item_bytes
    step = min(VECTOR_BYTES, 8 * item)  # rows of bytes are read 8 at a time
    offsets = [tensor.address] + [
        stride * item for n, stride in zip(tensor.shape[:-1], tensor.strides[:-1], strict=True) if n > 1
    ]
    if any(offset % step for offset in offsets):
        raise refuse(
            place,
            f"the rows of {tensor.name} must begin at multiples of {step} bytes, got address {tensor.address:#x} and "
            f"strides {list(tensor.strides)} of {item} bytes; pass a contiguous copy",
        )


def check_aligned(place: str, tensor: Tensor) -> None:
    """That an array without gaps begins where GPU kernels can read it."""
    if tensor.address % VECTOR_BYTES:
        raise refuse(
            place,
            f"{tensor.name} must begin at a multiple of {VECTOR_BYTES} bytes, got address {tensor.address:#x}; pass a "
            "copy",
        )


def check_one_half(place: str, tensors: Sequence[Tensor]) -> None:
    """That rows are float32 or, all of them, of one other dtype."""
    first = next((tensor for tensor in tensors if tensor.dtype != "float32"), None)
    for tensor in tensors:
        if first is not None and tensor.dtype not in ("float32", first.dtype):
            raise refuse(
                place, f"{tensor.name} must be float32 or {first.dtype}, like {first.name}, got {tensor.dtype}"
            )


def check_ids(place: str, name: str, ids: npt.NDArray[Any], n: int) -> None:
    is_wrong = (ids < 0) | (ids >= n)
    if is_wrong.any():
        i = int(np.argmax(is_wrong))
        raise refuse(place, f"{name} must be in [0, {n}), got {ids[i]} at {i}")


def check_choice(place: str, name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise refuse(place, f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_device(place: str, device: Any) -> str:
    name, _, index = str(device).partition(":")
    if name == "cuda" and (index.isdigit() or not index):
        return f"cuda:{index or 0}"
    if isinstance(device, str) and device == "cpu":
        return "cpu"
    raise refuse(place, f"device must be cpu, cuda or cuda:N, got {device!r}")


def check_same_device(place: str, tensor: Tensor, device: str, of: str = "q") -> None:
    if tensor.device != device:
        raise refuse(
            place, f"{tensor.name} must be on the device of {of}, {device}, got {tensor.device}; move it there"
        )


def check_device_or_host(place: str, tensor: Tensor, device: str) -> None:
    if tensor.device not in (device, "cpu"):
        where = "in host memory" if device == "cpu" else f"on {device} or in host memory"
        raise refuse(place, f"{tensor.name} must be {where}, got {tensor.device}")


def check_writeable(place: str, tensor: Tensor) -> None:
    if not tensor.is_writeable:
        raise refuse(place, f"{tensor.name} must be writeable, got a read-only array")


def check_page_size(place: str, page_size: int) -> None:
    if page_size < 16 or page_size % 16:
        raise refuse(place, f"pages must have a multiple of 16 slots (axis 1 of k_cache), got {page_size}")


def check_number(place: str, name: str, value: Any, least: float = -math.inf) -> float:
    """One that float32 holds, in which kernels compute."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf or value < least:
        limit = "" if least == -math.inf else f" of at least {least:g}"
        raise refuse(place, f"{name} must be a finite number{limit}, got {value!r}")
    if abs(value) > MAX_FLOAT32:
        raise refuse(place, f"{name} must be a number that float32 holds, up to {MAX_FLOAT32:.3g}, got {value!r}")
    return float(value)


def check_count(place: str, name: str, value: Any, least: int = 0, most: int | None = MAX_INT32) -> int:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise refuse(place, f"{name} must be a whole number of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise refuse(place, f"{name} must be a whole number of at most {most}, got {value!r}")
    return int(value)


def check_list(place: str, name: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise refuse(place, f"{name} must be a list, got {type(values).__name__}") from None


def check_window(place: str, window: Any) -> tuple[int, int]:
    try:
        left, right = window
    except (TypeError, ValueError):
        raise refuse(place, f"window must be (left, right), -1 for no limit, got {window!r}") from None
    sides = (check_count(place, f"window[{i}]", side, -1, most=None) for i, side in enumerate((left, right)))
    left, right = (min(side, MAX_INT32) for side in sides)  # no key is further away
    return left, right


def check_flag(place: str, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise refuse(place, f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_heads(place: str, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    if n_kv_heads < 1 or n_heads < 1 or n_heads % n_kv_heads:
        raise refuse(
            place,
            f"query heads must be a whole multiple of KV heads, got {n_heads} and {n_kv_heads}; any ratio will do",
        )
    if head_dim < 8 or head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise refuse(
            place,
            f"head_dim must be a multiple of 8 up to {MAX_HEAD_DIM}, got {head_dim}; pad q, k_cache and v_cache "
            "with zeros",
        )
