"""Small float arrays of a call: scales of pages, slopes, sinks."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_decoder.ops import checks
from llm_decoder.ops.machines import Addresses
from llm_decoder.ops.tensors import Tensor, view_tensor

Scale = float | Tensor | None  # of all, or [Hkv] or [P, S, Hkv]


def read_floats(place: str, name: str, value: Any, device: str, stream: int, shapes: list[list[int]]) -> Tensor:
    """A float32 array of one of the shapes, on the device or in host memory."""
    tensor = view_tensor(place, name, value, stream=stream)
    checks.check_dtype(place, tensor, "float32")
    if list(tensor.shape) not in shapes:
        wanted = "be a float or have shape " if len(shapes) > 1 else "have shape "
        wanted += " or ".join(str(shape) for shape in shapes)
        hint = "; pass float() of it" if tensor.n_axes == 0 and len(shapes) > 1 else ""
        raise checks.refuse(place, f"{name} must {wanted}, got {list(tensor.shape)}{hint}")
    checks.check_contiguous(place, tensor)
    checks.check_device_or_host(place, tensor, device)
    return tensor


def read_scale(place: str, name: str, value: Any, pages: Tensor, device: str, stream: int) -> Scale:
    """What elements of `pages` [P, S, Hkv, D] are multiplied by; None: 1."""
    if value is None:
        return None
    if np.isscalar(value):
        return checks.check_number(place, name, value, 0.0)
    n_pages, page_size, n_kv_heads, _ = pages.shape
    scale = read_floats(place, name, value, device, stream, [[n_kv_heads], [n_pages, page_size, n_kv_heads]])
    if scale.n_axes == 1 and scale.device == "cpu":
        for number in scale.array().tolist():
            checks.check_number(place, f"every {name}", number, 0.0)
    return scale


def raw_scale(addresses: Addresses, scale: Scale) -> tuple[float, int, int]:
    """As the GPU extensions take it."""
    if isinstance(scale, Tensor):
        address = addresses[scale]
        return (1.0, address, 0) if scale.n_axes == 1 else (1.0, 0, address)
    return (1.0 if scale is None else scale, 0, 0)


def host_value(value: Scale) -> Any:
    """As the CPU core takes it."""
    return value.array() if isinstance(value, Tensor) else value
