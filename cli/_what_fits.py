"""How large a model a device has room for now, told by the usual sizes, and whether a given one fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llm_decoder.backends import DeviceInfo
    from llm_decoder.model_config import ModelConfig
    from llm_decoder.packed_tensor import MatrixLayout

__all__ = ["CONTEXT", "SIZES", "what_fits", "where_it_fits"]

CONTEXT = 8192  # tokens that the KV cache holds beside the weights


class Shape(NamedTuple):
    """A model with 8 KV heads."""

    n_layers: int
    hidden_size: int
    n_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool = False  # the output layer is the embedding


# As published, the smallest first: Llama 3.2 1B and 3B, Llama 3.1 8B, Qwen3 14B and 32B, Llama 3.1 70B.
SIZES = {
    "1B": Shape(16, 2048, 32, 64, 8192, 128256, is_tied=True),
    "3B": Shape(28, 3072, 24, 128, 8192, 128256, is_tied=True),
    "8B": Shape(32, 4096, 32, 128, 14336, 128256),
    "14B": Shape(40, 5120, 40, 128, 17408, 151936),
    "32B": Shape(64, 5120, 64, 128, 25600, 151936),
    "70B": Shape(80, 8192, 64, 128, 28672, 128256),
}
_CPU_LAYOUTS: dict[str, MatrixLayout] = {"bfloat16": "bf16", "int8": "w8", "int4": "w4"}
_GPU_LAYOUTS: dict[str, MatrixLayout] = {"bfloat16": "gpu_bf16", "int8": "gpu_w8", "int4": "gpu_w4"}


def what_fits(device: DeviceInfo) -> dict[str, str | None]:
    """bfloat16, int8 and int4, of weights -> the largest of SIZES that has room with a context of CONTEXT tokens, whose
    keys and values are in the dtype that is the default beside such weights; None = not even the smallest."""
    layouts = _CPU_LAYOUTS if device.name == "cpu" else _GPU_LAYOUTS
    found: dict[str, str | None] = dict.fromkeys(layouts)
    for name in SIZES:
        config = _config(name)
        for precision, layout in layouts.items():
            if _needed_bytes(config, layout, is_cpu=device.name == "cpu") <= device.memory_bytes:
                found[precision] = name
    return found


def where_it_fits(name: str, path: Path, config_dir: Path | None, device: str, quantization: str) -> tuple[bool, str]:
    """Whether the model in the folder `path` has room on the device ("auto": on any) as it would be loaded, with what
    it needs there, or why it has none on each.

    Raises BackendError for a GPU that cannot be used, ConfigError for a name that is none, ModelLoadError.
    """
    from llm_decoder.backends import BackendOptions, choose_device
    from llm_decoder.cli._output import size
    from llm_decoder.errors import NotEnoughMemoryError, UnsupportedModelError
    from llm_decoder.fit import available_memory_bytes, check_fit, gpu_need
    from llm_decoder.loading import choose_layout, open_checkpoint, stored_layout
    from llm_decoder.placement import gpus_for, place_on_gpu

    options = BackendOptions(device=device)
    tried: list[str] = []
    for gpu in gpus_for(options, quantization, "auto"):
        stored = _CPU_LAYOUTS.get(quantization)  # the integers that a weights/ directory may hold; else its floats
        checkpoint = open_checkpoint(path, stored, config_dir=config_dir)
        try:
            place = place_on_gpu(checkpoint, gpu, options, quantization, "auto", name=name)
        except (NotEnoughMemoryError, UnsupportedModelError) as error:
            tried.append(str(error))
            continue
        need = gpu_need(
            checkpoint.config,
            place.layout,
            kv_dtype=str(place.dtype),
            kv_cache_bytes=None,
            max_tokens_per_step=options.tokens_per_step(on_gpu=True),
        )
        return True, f"{name} fits {gpu.name}: at least {need}; {size(gpu.memory_bytes)} are free"
    if choose_device(device) in ("auto", "cpu"):
        layout = choose_layout(quantization, "auto")
        checkpoint = open_checkpoint(path, layout, config_dir=config_dir)
        try:
            needed = check_fit(checkpoint.config, layout or stored_layout(checkpoint), name=name, is_mapped=True)
        except NotEnoughMemoryError as error:
            tried.append(str(error))
        else:
            free = size(available_memory_bytes())
            return True, "; ".join(
                [*tried, f"{name} fits the CPU: at least {size(needed.total_bytes)}; {free} are free"]
            )
    return False, "; ".join(tried)


def _needed_bytes(config: ModelConfig, layout: MatrixLayout, *, is_cpu: bool) -> int:
    from llm_decoder.backends import BackendOptions
    from llm_decoder.fit import auto_kv_dtype, gpu_need, kv_bytes_per_token, memory_need

    if is_cpu:
        pool_bytes = CONTEXT * kv_bytes_per_token(config, auto_kv_dtype(layout))
        return memory_need(config, layout, is_mapped=False, kv_cache_bytes=pool_bytes).total_bytes
    pool_bytes = CONTEXT * kv_bytes_per_token(config, "bfloat16", on_gpu=True)
    n_tokens = BackendOptions().tokens_per_step(on_gpu=True)
    need = gpu_need(config, layout, kv_dtype="bfloat16", kv_cache_bytes=pool_bytes, max_tokens_per_step=n_tokens)
    return need.total_bytes


def _config(name: str) -> ModelConfig:
    """With the sizes that memory depends on, and any rotation."""
    from llm_decoder.model_config import ModelConfig

    shape = SIZES[name]
    return ModelConfig(
        model_type="llama",
        n_layers=shape.n_layers,
        hidden_size=shape.hidden_size,
        n_heads=shape.n_heads,
        n_kv_heads=8,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_model_len=CONTEXT,
        norm_eps=1e-5,
        attention_scale=shape.head_dim**-0.5,
        windows=(0,) * shape.n_layers,
        rope_inv_freq=(1.0,) * (shape.head_dim // 2),
        tie_word_embeddings=shape.is_tied,
    )
