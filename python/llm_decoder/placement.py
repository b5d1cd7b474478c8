"""Which device runs a model, with its matrices in which layout?

"auto" is the first GPU that can be used and that the model fits, unless something is asked for that only the CPU has;
else the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_decoder.backends import BackendOptions, DeviceInfo, choose_device, usable_gpu, usable_gpus
from llm_decoder.checkpoint import Checkpoint
from llm_decoder.errors import ConfigError
from llm_decoder.fit import check_gpu_fit, gpu_need
from llm_decoder.gpu_weights import GpuDtype, check_gpu_precision, choose_gpu_dtype, choose_gpu_layout
from llm_decoder.packed_tensor import MatrixLayout

__all__ = ["Placement", "choose_gpu_kv_dtype", "gpus_for", "place_on_gpu"]


@dataclass(frozen=True)
class Placement:
    """device: "cpu" or the name of a GPU. layout: of the matrices. dtype: of the rows between products on a GPU, None
    on the CPU."""

    device: str
    layout: MatrixLayout
    dtype: GpuDtype | None = None


def gpus_for(options: BackendOptions, quantization: str, dtype: str) -> Iterator[DeviceInfo]:
    """The GPUs to try, in order, each looked at when it is its turn; none = the CPU is meant.

    Raises BackendError for a GPU that is named and cannot be used, ConfigError for a precision that it does not have.
    """
    device = choose_device(options.device)
    if device == "cpu":
        return iter(())
    if device != "auto":
        check_gpu_precision(quantization, dtype)
        return iter((usable_gpu(device),))
    try:
        check_gpu_precision(quantization, dtype)
    except ConfigError:
        return iter(())
    return iter(()) if options.kv_cache_dtype == "float32" else usable_gpus()


def place_on_gpu(
    checkpoint: Checkpoint, gpu: DeviceInfo, options: BackendOptions, quantization: str, dtype: str, *, name: str
) -> Placement:
    """How the model called `name` lies on this GPU.

    Raises NotEnoughMemoryError where it does not fit, UnsupportedModelError for sizes that no kernel takes, ConfigError
    for a kv_cache_dtype that the rows do not go with.
    """
    chosen = choose_gpu_dtype(checkpoint, dtype)
    layout = choose_gpu_layout(checkpoint.config, quantization, chosen)
    need = gpu_need(
        checkpoint.config,
        layout,
        kv_dtype=choose_gpu_kv_dtype(options.kv_cache_dtype, chosen),
        kv_cache_bytes=options.kv_cache_bytes,
        max_tokens_per_step=options.tokens_per_step(on_gpu=True),
    )
    check_gpu_fit(checkpoint.config, layout, need, name=name, gpu=gpu.name, free=gpu.memory_bytes)
    return Placement(gpu.name, layout, chosen)


def choose_gpu_kv_dtype(kv_cache_dtype: str, dtype: GpuDtype) -> str:
    """What pages hold beside rows of `dtype`, which they are like unless they are of bytes. Raises ConfigError."""
    if kv_cache_dtype == "auto":
        return dtype
    if kv_cache_dtype in (dtype, "fp8", "int8"):
        return kv_cache_dtype
    raise ConfigError(
        f"[kv_cache_dtype] must be auto, {dtype} like the rows, fp8 or int8 on a GPU, got {kv_cache_dtype!r}"
    )
