"""Does a model fit the memory of this machine, or of a GPU? Asked before anything large is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llm_decoder.errors import NotEnoughMemoryError
from llm_decoder.model_config import ModelConfig
from llm_decoder.packed_tensor import Layout, MatrixLayout, core_tensors

__all__ = [
    "GPU_RESERVE_BYTES",
    "GpuNeed",
    "MemoryNeed",
    "auto_kv_dtype",
    "available_memory_bytes",
    "check_fit",
    "check_gpu_fit",
    "gpu_need",
    "kv_bytes_per_token",
    "memory_need",
    "packed_bytes",
]

# The interpreter, the tokenizer and the decoder's workspace at the default step size.
_BASE_BYTES = 128 * 2**20
_LEAST_CONTEXT = 256  # tokens; a model that cannot hold so many is of no use
_PACKING_BYTES = 256 * 2**20  # blocks under way while weights are packed

# Memory of a GPU that the KV pool leaves free: for rows of logits and what draws from them, recorded steps, and what
# the driver and others take meanwhile.
GPU_RESERVE_BYTES = 2**30
_GPU_PRODUCT_BYTES = 128 * 2**20  # scratch of products: a slice of unpacked weights, cuBLASLt's, partial sums


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes a model takes. Mapped bytes come from a file and can be read again when memory is short; anonymous ones
    cannot. `kv_bytes_per_token` is of one position over all layers."""

    mapped_bytes: int
    anonymous_bytes: int
    kv_bytes_per_token: int

    @property
    def total_bytes(self) -> int:
        return self.mapped_bytes + self.anonymous_bytes


def packed_bytes(config: ModelConfig, layout: MatrixLayout) -> int:
    """Bytes of all packed weights."""
    return sum(tensor.data_bytes + tensor.scale_bytes for tensor in core_tensors(config, layout))


def auto_kv_dtype(layout: Layout) -> str:
    """Keys and values are as precise as the weights unless the caller says otherwise."""
    return {"f32": "float32", "bf16": "bfloat16"}.get(layout, "int8")


def kv_bytes_per_token(config: ModelConfig, kv_dtype: str, *, on_gpu: bool = False) -> int:
    """Bytes of one position's keys and values over all layers; `kv_dtype` is float32, bfloat16 or int8, on a GPU
    bfloat16, float16, fp8 or int8."""
    head_dim = config.head_dim if on_gpu else -(-config.head_dim // 16) * 16
    value_bytes = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}[kv_dtype]
    scale_bytes = 4 if value_bytes == 1 else 0  # one float32 a head
    return 2 * config.n_layers * config.n_kv_heads * (value_bytes * head_dim + scale_bytes)


def memory_need(
    config: ModelConfig, layout: MatrixLayout, *, is_mapped: bool, kv_cache_bytes: int | None
) -> MemoryNeed:
    """What running `config` takes; without `kv_cache_bytes` the least useful cache is counted."""
    kv_each = kv_bytes_per_token(config, auto_kv_dtype(layout))
    kv_bytes = kv_each * min(_LEAST_CONTEXT, config.max_model_len) if kv_cache_bytes is None else kv_cache_bytes
    weights = packed_bytes(config, layout)
    anonymous = _BASE_BYTES + kv_bytes + (_PACKING_BYTES if weights > _PACKING_BYTES else 0)
    return MemoryNeed(weights if is_mapped else 0, anonymous if is_mapped else anonymous + weights, kv_each)


def check_fit(
    config: ModelConfig,
    layout: MatrixLayout,
    *,
    name: str,
    is_mapped: bool,
    kv_cache_bytes: int | None = None,
    available_bytes: int | None = None,
) -> MemoryNeed:
    """What the model needs. Raises NotEnoughMemoryError with what is needed, what is there and what to try."""
    need = memory_need(config, layout, is_mapped=is_mapped, kv_cache_bytes=kv_cache_bytes)
    available = available_memory_bytes() if available_bytes is None else available_bytes
    if need.total_bytes > available:
        raise NotEnoughMemoryError(
            f"[{name}] needs {_size(need.total_bytes)} ({_size(packed_bytes(config, layout))} of weights), this "
            f"machine has {_size(available)} free; try {_advice(config, layout, need, available, kv_cache_bytes)}"
        )
    return need


@dataclass(frozen=True)
class GpuNeed:
    """Bytes of a GPU's memory that a model takes; those of the workspace are counted on the safe side."""

    weight_bytes: int
    workspace_bytes: int
    pool_bytes: int
    reserve_bytes: int = GPU_RESERVE_BYTES

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.workspace_bytes + self.pool_bytes + self.reserve_bytes

    def __str__(self) -> str:
        return (
            f"{_size(self.weight_bytes)} of weights, {_size(self.workspace_bytes)} of workspace, "
            f"{_size(self.pool_bytes)} of KV cache, {_size(self.reserve_bytes)} in reserve"
        )


def gpu_need(
    config: ModelConfig, layout: MatrixLayout, *, kv_dtype: str, kv_cache_bytes: int | None, max_tokens_per_step: int
) -> GpuNeed:
    """What running `config` on a GPU takes; without `kv_cache_bytes` the least useful cache is counted."""
    least = kv_bytes_per_token(config, kv_dtype, on_gpu=True) * min(_LEAST_CONTEXT, config.max_model_len)
    hidden, inner, q_width = config.hidden_size, config.intermediate_size, config.q_width
    row_bytes = 4 * hidden  # the residual; the others are of 16 bits
    row_bytes += 2 * max(q_width + 2 * config.kv_width, 2 * inner)
    row_bytes += 2 * 2 * max(hidden, q_width)
    workspace = max_tokens_per_step * row_bytes + _GPU_PRODUCT_BYTES
    return GpuNeed(packed_bytes(config, layout), workspace, least if kv_cache_bytes is None else kv_cache_bytes)


def check_gpu_fit(config: ModelConfig, layout: MatrixLayout, need: GpuNeed, *, name: str, gpu: str, free: int) -> None:
    """Raises NotEnoughMemoryError with what is needed, what is free, how many bytes are missing and what to try."""
    missing = need.total_bytes - free
    if missing <= 0:
        return
    tips = [
        words
        for other, words in _SMALLER_ON_GPU
        if packed_bytes(config, layout) - packed_bytes(config, other) >= missing
    ]
    if need.pool_bytes > missing:
        tips.append(f"kv_cache_bytes={need.pool_bytes - missing} or less")
    tips.append("a smaller model, another GPU, or device='cpu'")
    raise NotEnoughMemoryError(
        f"[{name}] needs {_size(need.total_bytes)} of {gpu} ({need}), {_size(free)} are free, {missing} bytes too few; "
        f"try {tips[0]}"
    )


_SMALLER_ON_GPU: tuple[tuple[MatrixLayout, str], ...] = (
    ("gpu_w8", 'int8 weights (quantization="int8"), which take a byte a weight'),
    ("gpu_w4", 'int4 weights (quantization="int4"), which take a little more than half of int8'),
)


def available_memory_bytes() -> int:
    """Memory that can be taken without swapping: the system's, or the control group's when that is less."""
    candidates = [_meminfo_available(), *(_group_available(folder) for folder in _control_groups())]
    known = [value for value in candidates if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _advice(
    config: ModelConfig, layout: MatrixLayout, need: MemoryNeed, available: int, kv_cache_bytes: int | None
) -> str:
    smaller: tuple[tuple[MatrixLayout, str], ...] = (
        ("w8", 'int8 weights (quantization="int8"), which take a byte a weight'),
        ("w4", 'int4 weights (quantization="int4"), which take a little more than half of int8'),
    )
    for other, words in smaller:
        saved = packed_bytes(config, layout) - packed_bytes(config, other)
        if saved > 0 and need.total_bytes - saved <= available:
            return words
    if kv_cache_bytes is not None and need.total_bytes - kv_cache_bytes < available:
        room = available - (need.total_bytes - kv_cache_bytes)
        return f"kv_cache_bytes={room} ({room // max(1, need.kv_bytes_per_token):,} tokens) or less"
    return "a smaller model, or close other programs"


def _meminfo_available() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_groups() -> list[Path]:
    """The folders of this process's control group and its parents, version 2 and then version 1."""
    folders = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in ("", "memory"):
            group = Path("/sys/fs/cgroup") / ("memory" if controllers else "") / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to("/sys/fs/cgroup")]
    return folders


def _group_available(folder: Path) -> int | None:
    """What the group may still take; file pages it could give back count as free."""
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
    if not limit.isdecimal() or not used.isdecimal():
        return None  # "max": no limit
    reclaimable = 0
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdecimal():
            reclaimable = int(value)
    return max(0, int(limit) - int(used) + reclaimable)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
