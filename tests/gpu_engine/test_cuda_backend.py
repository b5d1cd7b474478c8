"""What a model on a GPU takes of it, where "auto" puts a model, and what is refused before anything large is read."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_judge import POOL_BYTES, open_gpu
from models_factory import hf_config, make_checkpoint
from tiny_gpu_decoder import gpu_module

from llm_decoder import LLM, backends, cuda_backend, loading, quantize, weight_cache
from llm_decoder.backends import BackendOptions, create_backend
from llm_decoder.errors import BackendError, ConfigError, NotEnoughMemoryError, UnsupportedModelError
from llm_decoder.fit import GPU_RESERVE_BYTES, check_gpu_fit, gpu_need, kv_bytes_per_token, packed_bytes
from llm_decoder.loading import LoadedModel, WeightsPackedWhenRead, load_model
from llm_decoder.models import parse_config
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

GIB = 2**30
EIGHT_B = parse_config(
    hf_config(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
    )
)


def module_with(**changes: Any) -> types.SimpleNamespace:
    """The module of the host machine, but for `changes`."""
    gpu = gpu_module()
    return types.SimpleNamespace(**({name: getattr(gpu, name) for name in dir(gpu)} | changes))


def use_module(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    module = module_with(**changes)
    monkeypatch.setattr(backends, "load_cuda", lambda: module)


def use_gpus(monkeypatch: pytest.MonkeyPatch, *free_bytes: int) -> None:
    """GPUs with so much free memory each; the last one is too old."""

    def describe_device(index: int) -> dict[str, Any]:
        capability = (8, 0) if index < len(free_bytes) else (7, 5)
        facts = {"name": f"GPU {index}", "n_sms": 4, "compute_capability": capability, "total_bytes": 80 * GIB}
        return facts | {"free_bytes": [*free_bytes, 80 * GIB][index]}

    use_module(monkeypatch, n_devices=lambda: len(free_bytes) + 1, describe_device=describe_device)


def on_gpu(folder: Path, **options: Any) -> tuple[LoadedModel, BackendOptions]:
    asked = BackendOptions(device="cuda", **({"kv_cache_bytes": POOL_BYTES} | options))
    return load_model(folder, options=asked), asked


# ---- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [16, 24, 40, 64])
@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", "bf16"), ("float16", "f16"), ("fp8", "fp8"), ("int8", "s8")])
def test_kv_bytes_on_a_gpu_are_those_of_its_cache(head_dim: int, name: str, dtype: str) -> None:
    gpu, config = gpu_module(), parse_config(hf_config("llama", head_dim=head_dim))
    decoder = gpu.CUDADecoder(config.to_core(), dtype="float16" if dtype == "f16" else "bfloat16")
    cache = gpu.KvCache(decoder, n_pages=1, page_size=16, layers=2, n_kv_heads=2, head_dim=head_dim, dtype=dtype)
    assert kv_bytes_per_token(config, name, on_gpu=True) * 16 == cache.page_bytes()[0]


def test_the_pool_takes_what_is_free_but_the_reserve_and_no_more_than_many_sequences(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = on_gpu(folder, kv_cache_bytes=None)
    token_bytes = kv_bytes_per_token(model.config, "bfloat16", on_gpu=True)
    use_gpus(monkeypatch, GPU_RESERVE_BYTES + 1000 * token_bytes)
    backend = create_backend(model, options)
    assert backend.cache.stats()["pool_bytes"] == 1000 // backend.page_size * backend.page_size * token_bytes
    monkeypatch.setattr(cuda_backend, "MOST_POOL_SEQUENCES", 1)
    backend = create_backend(model, options)
    assert backend.cache.stats()["pool_bytes"] == model.config.max_model_len * token_bytes
    use_gpus(monkeypatch, GPU_RESERVE_BYTES - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"one sequence of 32 tokens needs \d+ bytes, the pool has 0"):
        create_backend(model, options)


def test_the_bytes_foreseen_are_no_less_than_those_taken(folder: Path) -> None:
    for quantization in ("none", "int8", "int4", "fp8"):
        with open_gpu(folder, quantization=quantization, max_tokens_per_step=256) as llm:
            llm.logits(list(range(256)))
            backend, config = llm.stats()["backend"], llm.config
        assert config is not None
        need = gpu_need(
            config,
            backend["layout"],
            kv_dtype="bfloat16",
            kv_cache_bytes=POOL_BYTES,
            max_tokens_per_step=256,
        )
        vectors = backend["weight_bytes"] - need.weight_bytes
        assert abs(vectors) < 0.01 * need.weight_bytes
        assert backend["workspace_bytes"] <= need.workspace_bytes + need.reserve_bytes
        assert backend["kv_cache_bytes"] <= need.pool_bytes


def test_a_model_too_large_for_a_gpu_says_by_how_many_bytes_and_what_would_fit() -> None:
    def check(layout: Any, free: int, kv_cache_bytes: int | None = None) -> None:
        need = gpu_need(EIGHT_B, layout, kv_dtype="bfloat16", kv_cache_bytes=kv_cache_bytes, max_tokens_per_step=512)
        check_gpu_fit(EIGHT_B, layout, need, name="big", gpu="cuda", free=free)

    with pytest.raises(NotEnoughMemoryError, match=r"^\[big\] needs .* GiB of weights, .* try int8 weights") as caught:
        check("gpu_bf16", 12 * GIB)
    missing = int(re.findall(r"(\d+) bytes too few", str(caught.value))[0])
    check("gpu_bf16", 12 * GIB + missing)
    with pytest.raises(NotEnoughMemoryError, match="1 bytes too few"):
        check("gpu_bf16", 12 * GIB + missing - 1)
    check("gpu_w8", 12 * GIB)
    with pytest.raises(NotEnoughMemoryError, match=r'try int4 weights \(quantization="int4"'):
        check("gpu_w8", 8 * GIB)
    with pytest.raises(NotEnoughMemoryError, match="try a smaller model, another GPU, or device='cpu'"):
        check("gpu_w4", 4 * GIB)
    with pytest.raises(NotEnoughMemoryError, match=r"try kv_cache_bytes=(\d+) or less") as caught:
        check("gpu_w4", 16 * GIB, kv_cache_bytes=64 * GIB)
    check("gpu_w4", 16 * GIB, kv_cache_bytes=int(re.findall(r"kv_cache_bytes=(\d+)", str(caught.value))[0]))


def test_what_does_not_fit_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, GPU_RESERVE_BYTES)
    monkeypatch.setattr(weight_cache, "load_or_pack", lambda *_, **__: pytest.fail("packed"))
    with pytest.raises(NotEnoughMemoryError, match=r"needs .* of cuda .*, 1\.0 GiB are free, \d+ bytes too few"):
        on_gpu(folder)


def test_a_device_that_has_less_than_it_said_is_told_with_what_to_lower(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = on_gpu(folder)

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError("[allocate_memory] needs 10 bytes")

    use_module(monkeypatch, KvCache=refuse)
    with pytest.raises(
        NotEnoughMemoryError,
        match=r"\[KV cache\] \d+ bytes.* do not fit cuda: .*; lower kv_cache_bytes or kv_tier_bytes",
    ):
        create_backend(model, options)

    class WithoutRoomForGraphs(gpu_module().CUDADecoder):  # type: ignore[misc]
        capture = refuse

    use_module(monkeypatch, CUDADecoder=WithoutRoomForGraphs)
    with pytest.raises(NotEnoughMemoryError, match=r"graphs of decode steps do not fit cuda: .* or max_num_seqs"):
        create_backend(model, options)
    use_module(monkeypatch, CUDADecoder=refuse)
    with pytest.raises(
        NotEnoughMemoryError, match=r"weights and workspace do not fit cuda: .*lower max_tokens_per_step"
    ):
        create_backend(model, options)


# ---- weights on their way ----------------------------------------------------------------------------------------


def test_weights_are_mapped_from_the_cache_and_copied_with_progress(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen2", dtype="BF16")
    asked = BackendOptions(device="cuda", kv_cache_bytes=POOL_BYTES)
    model = load_model(folder, options=asked, cache_dir=tmp_path / "cache")
    assert model.is_mapped
    assert (model.device, model.layout, model.dtype) == ("cuda", "gpu_bf16", "bfloat16")
    calls: list[tuple[int, int, str]] = []
    create_backend(model, asked, lambda *call: calls.append(call))
    assert [what for _, _, what in calls] == [f"copying {name}" for name in model.weights]
    assert calls[-1][0] == calls[-1][1] == sum(weight.data.nbytes for weight in model.weights.values())
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)


@pytest.mark.parametrize("layout", ["gpu_bf16", "gpu_w8", "gpu_w4", "gpu_f8"])
def test_without_a_cache_each_weight_is_packed_when_it_is_copied_and_let_go(layout: Any, folder: Path) -> None:
    checkpoint = SafetensorsCheckpoint(folder)
    packed, whole = WeightsPackedWhenRead(checkpoint, layout), quantize.pack_in_memory(checkpoint, layout)
    assert list(packed) == list(whole)
    for name, weight in packed.items():
        assert (weight.layout, weight.shape) == (whole[name].layout, whole[name].shape)
        np.testing.assert_array_equal(weight.data, whole[name].data)
        np.testing.assert_array_equal(weight.scales, whole[name].scales)
    assert len(packed) == len(whole)
    model = load_model(folder, options=BackendOptions(device="cuda"), use_cache=False)
    assert isinstance(model.weights, WeightsPackedWhenRead)


# ---- where a model goes ------------------------------------------------------------------------------------------


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_DECODER_DEVICE")


def device_of(folder: Path, quantization: str = "auto", dtype: str = "auto", **options: Any) -> str:
    return load_model(folder, quantization=quantization, dtype=dtype, options=BackendOptions(**options)).device


@pytest.mark.usefixtures("auto")
def test_auto_is_the_first_gpu_that_the_model_fits_else_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, 80 * GIB, 80 * GIB)
    assert device_of(folder) == "cuda"
    use_gpus(monkeypatch, GPU_RESERVE_BYTES, 80 * GIB)
    assert device_of(folder) == "cuda:1"
    use_gpus(monkeypatch, GPU_RESERVE_BYTES)
    assert device_of(folder) == "cpu"

    def no_extension() -> None:
        raise BackendError("this build has no CUDA extension")

    monkeypatch.setattr(backends, "load_cuda", no_extension)
    assert device_of(folder) == "cpu"


@pytest.mark.usefixtures("auto")
def test_auto_is_the_cpu_where_only_that_computes_what_is_asked_for(tmp_path: Path, folder: Path) -> None:
    assert device_of(folder) == "cuda"
    assert device_of(folder, dtype="float32") == "cpu"
    assert device_of(folder, kv_cache_dtype="float32") == "cpu"
    assert device_of(folder, dtype="float16") == "cuda"
    assert device_of(folder, kv_cache_dtype="fp8") == "cuda"
    assert device_of(make_checkpoint(tmp_path, "llama", intermediate_size=90)) == "cpu"


@pytest.mark.usefixtures("auto")
def test_what_only_a_gpu_has_is_refused_where_auto_is_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, GPU_RESERVE_BYTES)
    with pytest.raises(ConfigError, match=r"\[kv_cache_dtype\] must be one of auto, .* on the CPU, got 'fp8'"):
        device_of(folder, kv_cache_dtype="fp8")
    with pytest.raises(ConfigError, match=r"\[dtype\] need auto, float32 or bfloat16 on the CPU, got 'float16'"):
        device_of(folder, dtype="float16")


def test_a_variable_says_what_auto_is_and_a_name_goes_over_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_DEVICE", "cpu")
    assert device_of(folder) == "cpu"
    assert device_of(folder, device="cuda:0") == "cuda"
    monkeypatch.setenv("LLM_DECODER_DEVICE", "cuda")
    assert device_of(folder) == "cuda"
    monkeypatch.setenv("LLM_DECODER_DEVICE", "tpu")
    with pytest.raises(ConfigError, match=r"^\[LLM_DECODER_DEVICE\] must be auto, cpu, cuda, or cuda:1 and so on"):
        device_of(folder)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"device": "cuda:1"}, BackendError, r"\[device\] cuda:1 cannot be used: there is only cuda; use device='cpu'"),
        ({"dtype": "float32"}, ConfigError, r"\[dtype\] need auto, bfloat16 or float16 on a GPU, .*; use device='cpu'"),
        ({"quantization": "int3"}, ConfigError, r"\[quantization\] need auto, none, int8, int4.*, got 'int3'"),
        ({"kv_cache_dtype": "float32"}, ConfigError, r"\[kv_cache_dtype\] must be one of auto, .*fp8, int8 on a GPU"),
        ({"kv_cache_dtype": "float16"}, ConfigError, r"must be auto, bfloat16 like the rows, fp8 or int8 on a GPU"),
        ({"max_model_len": 1 << 20}, ConfigError, r"\[max_model_len\] must be from 1 to 512, the context of"),
    ],
)
def test_what_a_gpu_does_not_have_is_refused_by_name(
    folder: Path, options: dict[str, Any], error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "max_model_len" not in options:
        monkeypatch.setattr(loading, "_load_gpu_weights", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(error, match=match):
        open_gpu(folder, **options)


def test_a_named_gpu_says_which_sizes_no_kernel_takes(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="intermediate_size to be a multiple of 8 on a GPU, got 90"):
        open_gpu(make_checkpoint(tmp_path, "llama", intermediate_size=90))


def test_a_library_that_is_missing_is_said_with_its_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("[cublaslt] needs libcublasLt; pip install nvidia-cublas")

    use_module(monkeypatch, CUDADecoder=refuse)
    with pytest.raises(BackendError, match=r"cuda cannot load it: .* pip install nvidia-cublas"):
        open_gpu(folder)


def test_a_driver_that_records_no_graphs_is_told_with_what_does_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("[capture] cudaErrorStreamCaptureUnsupported")

    use_module(monkeypatch, CUDADecoder=type("WithoutGraphs", (gpu_module().CUDADecoder,), {"capture": refuse}))
    with pytest.raises(BackendError, match=r"cuda cannot record graphs .*Unsupported; LLM_DECODER_CUDA_GRAPHS=0"):
        open_gpu(folder)


def test_what_was_chosen_is_told(folder: Path) -> None:
    with open_gpu(folder, threads=1, max_model_len=100, max_num_seqs=4) as llm:
        backend, max_model_len = llm.stats()["backend"], llm.max_model_len
    assert max_model_len == 100
    assert backend.pop("weight_bytes") > packed_bytes(llm.config, "gpu_bf16") * 0.99  # type: ignore[arg-type]
    assert backend.pop("workspace_bytes") > 0
    assert 0 < backend.pop("kv_cache_bytes") <= POOL_BYTES
    assert 0 < backend.pop("kv_tier_bytes") <= 2 * POOL_BYTES
    assert backend == {
        "device": "cuda",
        "gpu": "host machine, compute capability 8.0, 4 multiprocessors",
        "layout": "gpu_bf16",
        "dtype": "bfloat16",
        "gemm": "ours",
        "graphs": [1, 2, 4],
        "why_no_more_graphs": "",
        "n_graph_steps": 0,
        "max_tokens_per_step": 4096,
        "kv_cache_dtype": "bfloat16",
    }


def test_the_parts_of_a_step_are_timed(folder: Path) -> None:
    with open_gpu(folder) as llm:
        llm.start_profile()
        llm.score([5, 6, 7, 8])
        times = llm.stop_profile()
    assert times.n_tokens.tolist() == [4]
    assert times.seconds[0, times.parts.index("attention")] > 0


def test_a_model_that_is_named_nowhere_goes_where_llm_is_told(folder: Path) -> None:
    with LLM(folder, device="cpu", kv_cache_bytes=POOL_BYTES) as llm:
        assert llm.stats()["backend"]["device"] == "cpu"
