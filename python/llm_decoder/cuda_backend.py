"""The backend of a GPU: CUDADecoder, and the KV cache with its pages in the GPU's memory."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm_decoder import backends
from llm_decoder.backends import (
    DEFAULT_PAGE_SIZE,
    BackendOptions,
    CoreBackend,
    DeviceInfo,
    Floats,
    Ints,
    KvCache,
    Model,
    SampleParams,
    check_max_model_len,
)
from llm_decoder.errors import BackendError, NotEnoughMemoryError
from llm_decoder.fit import GPU_RESERVE_BYTES, available_memory_bytes
from llm_decoder.gpu_libraries import cublaslt_libraries
from llm_decoder.kv_pool import KvPool, divide_pool
from llm_decoder.packed_tensor import core_tensors
from llm_decoder.placement import choose_gpu_kv_dtype

if TYPE_CHECKING:
    from llm_decoder.quantize import Progress

__all__ = ["MOST_POOL_SEQUENCES", "CudaBackend"]

# The default pool is what weights and workspace leave free but for GPU_RESERVE_BYTES, or room for so many sequences of
# full length, if that is less: a small model need not take a large GPU.
MOST_POOL_SEQUENCES = 1024
_GRAPH_BYTES = GPU_RESERVE_BYTES // 2  # what graphs of decode steps may take of the reserve
_KV_DTYPES = {"bfloat16": "bf16", "float16": "f16", "fp8": "fp8", "int8": "s8"}


class CudaBackend(CoreBackend):
    """gpu: where `model`, whose weights are packed for it, runs. progress: of its weights' way there.

    Raises BackendError for a model that the core refuses, NotEnoughMemoryError where weights, workspace or pool do not
    fit, ConfigError for an option out of its limits.
    """

    runs_ahead = True

    def __init__(
        self, model: Model, options: BackendOptions, gpu: DeviceInfo, progress: Progress | None = None
    ) -> None:
        config = model.config
        if model.dtype is None:
            raise BackendError(
                f"[{model.name}] needs weights packed for {gpu.name}, got those of the CPU; load it with that device"
            )
        check_max_model_len(model, options)
        self.page_size = options.page_size or DEFAULT_PAGE_SIZE
        self.vocab_size = config.vocab_size
        self.max_tokens_per_step = options.tokens_per_step(on_gpu=True)
        self.kv_cache_dtype = choose_gpu_kv_dtype(options.kv_cache_dtype, model.dtype)
        self._gpu, self._layout = gpu, model.layout
        cuda = backends.load_cuda()
        index = int(gpu.name.partition(":")[2] or 0)
        try:
            self._decoder = _decoder_of(cuda, model, options, gpu, index, progress)
        except MemoryError as error:
            raise NotEnoughMemoryError(
                f"[{model.name}] weights and workspace do not fit {gpu.name}: {error}; lower max_tokens_per_step, or "
                'use quantization="int8" or "int4"'
            ) from error
        wanted_len = options.max_model_len or config.max_model_len
        pool = divide_pool(
            config,
            self.kv_cache_dtype,
            page_size=self.page_size,
            wanted_len=wanted_len,
            least_len=self.page_size if options.max_model_len is None else wanted_len,
            max_step=self.max_tokens_per_step,
            n_sequences=MOST_POOL_SEQUENCES,
            pool_bytes=options.kv_cache_bytes,
            most_bytes=max(0, cuda.describe_device(index)["free_bytes"] - GPU_RESERVE_BYTES),
            on_gpu=True,
            tier_bytes=options.kv_tier_bytes,
            host_bytes=available_memory_bytes(),
        )
        self.max_model_len = pool.max_len
        self.cache = self._make_cache(cuda, model, pool)
        self._capture(model, options, gpu)

    def _capture(self, model: Model, options: BackendOptions, gpu: DeviceInfo) -> None:
        try:
            self._decoder.capture(self.cache, options.max_num_seqs, _GRAPH_BYTES)
        except MemoryError as error:
            raise NotEnoughMemoryError(
                f"[{model.name}] graphs of decode steps do not fit {gpu.name}: {error}; lower kv_cache_bytes or "
                "max_num_seqs"
            ) from error
        except RuntimeError as error:  # of the driver
            raise BackendError(
                f"[{model.name}] {gpu.name} cannot record graphs of decode steps: {error}; LLM_DECODER_CUDA_GRAPHS=0 "
                "does without"
            ) from error

    def _make_cache(self, cuda: ModuleType, model: Model, pool: KvPool) -> KvCache:
        try:
            cache: KvCache = cuda.KvCache(
                self._decoder,
                n_pages=pool.n_pages,
                page_size=self.page_size,
                layers=pool.layer_groups,
                n_kv_heads=model.config.n_kv_heads,
                head_dim=model.config.head_dim,
                dtype=_KV_DTYPES[self.kv_cache_dtype],
                window=pool.windows,
                n_tier_slots=pool.n_tier_slots,
            )
        except MemoryError as error:
            raise NotEnoughMemoryError(
                f"[KV cache] {pool.pool_bytes} bytes, and {pool.tier_bytes} of host memory for its second tier, do not "
                f"fit {self._gpu.name}: {error}; lower kv_cache_bytes or kv_tier_bytes"
            ) from error
        self._tier_bytes = pool.tier_bytes
        return cache

    def begin_sample(self, rows: Ints, params: SampleParams, n_top: int) -> None:
        self._decoder.begin_sample(rows, params, n_top)

    def end_sample(self) -> tuple[Ints, Floats, Ints, Ints, Floats]:
        return self._decoder.end_sample()

    def info(self) -> dict[str, Any]:
        """What was chosen: device, its name, layout of the matrices, dtype of the rows between them, who multiplies
        many rows, kv_cache_dtype, sizes in tokens and bytes. graphs: sequences of each graph of a decode step;
        why_no_more_graphs: why larger batches have none, empty where all have; n_graph_steps: steps by graph."""
        return {
            "device": self._gpu.name,
            "gpu": self._gpu.description,
            "layout": self._layout,
            "dtype": self._decoder.dtype,
            "gemm": self._decoder.gemm,
            "graphs": self._decoder.graphs,
            "why_no_more_graphs": self._decoder.why_no_more_graphs,
            "n_graph_steps": self._decoder.n_graph_steps,
            "max_tokens_per_step": self.max_tokens_per_step,
            "kv_cache_dtype": self.kv_cache_dtype,
            "kv_cache_bytes": self.cache.stats()["pool_bytes"],
            "kv_tier_bytes": self._tier_bytes,
            "weight_bytes": self._decoder.weight_bytes,
            "workspace_bytes": self._decoder.workspace_bytes,
        }


def _decoder_of(
    cuda: ModuleType,
    model: Model,
    options: BackendOptions,
    gpu: DeviceInfo,
    index: int,
    progress: Progress | None,
) -> Any:
    """The core's decoder with its weights, copied one by one, ready to step."""
    tensors = core_tensors(model.config, model.layout)
    n_done, n_total = 0, sum(tensor.data_bytes for tensor in tensors)
    try:
        decoder = cuda.CUDADecoder(
            model.config.to_core(),
            dtype=model.dtype,
            device=index,
            deterministic=options.deterministic,
            gemm_libraries=cublaslt_libraries(),
        )
        for name, weight in model.weights.items():
            decoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)
            n_done += weight.data.nbytes
            if progress is not None:
                progress(n_done, n_total, f"copying {name}")
        decoder.finalize(options.tokens_per_step(on_gpu=True))
    except (ValueError, RuntimeError) as error:  # of the core, the driver, or a library that it wants
        raise BackendError(f"[{model.name}] {gpu.name} cannot load it: {error}") from error
    return decoder
