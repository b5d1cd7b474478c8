"""Devices and what computes on them. The only file of the package that imports the compiled core."""

from __future__ import annotations

import importlib
import math
import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder._core import (
    STEP_PARTS,
    KvCache,
    MachineLimits,
    PromptLookup,
    append_kv_op,
    best_of_beams_op,
    dlpack_array,
    embed_op,
    expand_w4,
    fused_moe_op,
    gated_op,
    isas,
    layer_norm_op,
    log_probs_op,
    merge_states_op,
    moe_routing_op,
    moe_sort_op,
    pack_bf16,
    pack_f32,
    pack_w4,
    pack_w8,
    paged_attention_op,
    product_op,
    quantize_weight_groups,
    quantize_weight_rows,
    read_dlpack,
    rms_norm_op,
    sample_op,
    unpack_w8,
)
from llm_decoder._core import Encoder as CoreEncoder
from llm_decoder._core import INT8Decoder as CoreDecoder
from llm_decoder.cpu_topology import cpu_name, last_cache_bytes, usable_cores
from llm_decoder.device_info import DeviceInfo, cuda_devices, gpu_name
from llm_decoder.errors import BackendError, ConfigError, DeviceLostError, NotEnoughMemoryError
from llm_decoder.fit import auto_kv_dtype, available_memory_bytes
from llm_decoder.kv_pool import KvPool, divide_pool

if TYPE_CHECKING:
    from llm_decoder.encoders.config import EncoderConfig
    from llm_decoder.gpu_weights import GpuDtype
    from llm_decoder.model_config import ModelConfig
    from llm_decoder.packed_tensor import MatrixLayout, PackedTensor
    from llm_decoder.quantize import Progress

__all__ = [
    "AheadBackend",
    "Backend",
    "BackendOptions",
    "CoreBackend",
    "CoreDecoder",
    "CpuBackend",
    "DeviceInfo",
    "EncoderBackend",
    "KvCache",
    "MachineLimits",
    "Model",
    "PromptLookup",
    "StepTimes",
    "append_kv_op",
    "best_of_beams_op",
    "check_integer",
    "check_kv_dtype",
    "check_max_model_len",
    "choose_device",
    "choose_isa",
    "choose_threads",
    "create_backend",
    "create_decoder",
    "devices",
    "dlpack_array",
    "embed_op",
    "expand_w4",
    "fused_moe_op",
    "gated_op",
    "layer_norm_op",
    "load_cuda",
    "log_probs_op",
    "merge_states_op",
    "moe_routing_op",
    "moe_sort_op",
    "open_limits",
    "pack_bf16",
    "pack_f32",
    "pack_w4",
    "pack_w8",
    "paged_attention_op",
    "product_op",
    "quantize_weight_groups",
    "quantize_weight_rows",
    "read_dlpack",
    "rms_norm_op",
    "sample_op",
    "unpack_w8",
    "usable_gpu",
    "usable_gpus",
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
SampleParams = dict[str, npt.NDArray[Any]]
Continuations = tuple[Ints, Floats, Floats, Floats, Ints, Ints, Floats]

DEFAULT_PAGE_SIZE = 32
DEFAULT_TOKENS_PER_STEP = 512
DEFAULT_GPU_TOKENS_PER_STEP = 4096
# The default pool holds so many sequences of full length, or so many tokens for models with a short context, if that is
# no more than a share of the memory that is free. Pages that are never used are never touched.
DEFAULT_POOL_SEQUENCES = 4
DEFAULT_POOL_TOKENS = 32768
DEFAULT_POOL_SHARE = 0.25
MAX_THREADS = 1024
# What is read to measure the memory: so many times the last cache, and no less than this.
_LIMITS_CACHES = 4
_LIMITS_BYTES = 1 << 30
_KV_DTYPES = {"float32": "f32", "bfloat16": "bf16", "int8": "s8"}
_GPU_KV_DTYPES = ("bfloat16", "float16", "fp8", "int8")


class Model(Protocol):
    """What a backend needs of a loaded model: the numbers, the packed weights by core name, what to call it.

    layout: of the matrices. device: that they are packed for, "cpu" or the name of a GPU. dtype: of the rows between
    products on a GPU, None on the CPU.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights(self) -> Mapping[str, PackedTensor]: ...

    @property
    def layout(self) -> MatrixLayout: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> GpuDtype | None: ...

    @property
    def name(self) -> str: ...


class Backend(Protocol):
    """A decoder with its cache, as the engine drives it. For one thread.

    step computes `tokens` int32 [n_tokens] of the sequences `seq_ids` int64 [n_seqs], counts[i] of each, and returns
    how
    many rows of logits there are: of sequence i none, the last token's or all, as want[i] uint8 is 0, 1 or 2. sample,
    log_probs, logits and hidden read these rows until the next step. Sizes in tokens.

    runs_ahead: it is an AheadBackend.
    """

    runs_ahead: bool

    vocab_size: int
    max_model_len: int
    page_size: int
    max_tokens_per_step: int
    cache: KvCache

    def step(self, tokens: Ints, seq_ids: npt.NDArray[np.int64], counts: Ints, want: npt.NDArray[np.uint8]) -> int: ...

    def sample(self, rows: Ints, params: SampleParams, n_top: int) -> tuple[Ints, Floats, Ints, Ints, Floats]:
        """(tokens [R], logprobs [R], ranks [R], top_ids [R, n_top], top_logprobs [R, n_top]). In the place of a
        token: -1 = the logits are not finite, -2 = the parameters leave none."""

    def continuations(self, rows: Ints, params: SampleParams, n: int, n_top: int) -> Continuations:
        """The n likeliest of each row, the first by key: (tokens, scores, keys, logprobs, ranks [R, n], top_ids,
        top_logprobs [R, n_top]); the last three empty for n_top = -1. Tokens below 0 as of `sample`, -1 behind the
        first also where there are no more. Scores are what a beam's grows by, see decoder/sampler.h."""

    def log_probs(self, targets: Ints, n_top: int) -> tuple[Floats, Ints, Ints, Floats]:
        """(logprobs [n_rows], ranks [n_rows], top_ids [n_rows, n_top], top_logprobs [n_rows, n_top])"""

    def logits(self) -> Floats:
        """[n_rows, vocab_size]"""

    def hidden(self) -> Floats:
        """[n_rows, hidden_size], after the final norm."""

    def info(self) -> dict[str, Any]: ...

    def start_profile(self) -> None:
        """From here on every step notes where its time goes."""

    def stop_profile(self) -> StepTimes:
        """Ends that, and tells."""

    def close(self) -> None: ...


class AheadBackend(Backend, Protocol):
    """A backend whose step returns as soon as everything is queued, so that the next one can be launched before its
    tokens are read.

    In step's `tokens` t < 0 stands for draw number -1 - t of the latest begin_sample, whether that is ended or not; a
    draw that gave no token feeds 0, and the engine throws away what comes of it. Arrays are read before a call returns,
    and what is queued happens in the order of calls, moves of the cache's pages included. close may come with draws
    begun.
    """

    def begin_sample(self, rows: Ints, params: SampleParams, n_top: int) -> None:
        """Queues a draw on the last step's logits. At most two are begun and not ended; none, where sample,
        continuations, log_probs, logits or hidden is called."""

    def end_sample(self) -> tuple[Ints, Floats, Ints, Ints, Floats]:
        """Waits for the oldest draw and returns what sample would. Raising ends the draw too."""


@dataclass(frozen=True)
class StepTimes:
    """Where the time of steps went: seconds float64 [n_steps, n_parts], parts as named in `parts` (what each is stands
    in decoder/step_profile.h); n_tokens and n_sequences int32 [n_steps]. "outside" is what passed until the next step
    began, in the scheduler, the cache and whatever else is not the decoder; the last step has none."""

    parts: tuple[str, ...]
    n_tokens: Ints
    n_sequences: Ints
    seconds: npt.NDArray[np.float64]


@dataclass(frozen=True)
class BackendOptions:
    """device: "auto" (LLM_DECODER_DEVICE, else that of the model), "cpu", "cuda" or "cuda:1". kv_cache_dtype: on the
    CPU "auto" (that of float weights, int8 with quantised ones), "float32", "bfloat16", "int8"; on a GPU "auto" (that
    of the rows between products), "bfloat16" or "float16" (the same), "fp8", "int8". kv_cache_bytes: size of the pool;
    None = on the CPU four sequences of max_model_len, or 32768 tokens if that is more, at most a quarter of the free
    memory, on a GPU what is free (cuda_backend.py). page_size: tokens a page, a multiple of 16.
    max_model_len: tokens of a sequence; None = the model's, or what the pool holds if that is less. isa: a name of
    devices()[0].isas. threads and isa are of what the CPU computes.
    kv_tier_bytes: host memory that pages of a GPU go to when they give way, and come back from; 0 = none, None = on a
    GPU twice the pool, but no more than a quarter of the free host memory and 16 GiB. On the CPU there is none.
    max_tokens_per_step: None = 512 on the CPU, 4096 on a GPU. max_num_seqs: sequences that a GPU records graphs of
    decode steps for.
    deterministic: a sequence's results must not depend on what else is computed; CpuBackend keeps that in float32 and
    int8 alike, so there it changes nothing."""

    device: str = "auto"
    threads: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    kv_tier_bytes: int | None = None
    page_size: int | None = None
    max_model_len: int | None = None
    max_tokens_per_step: int | None = None
    max_num_seqs: int = 64
    isa: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a value of the wrong type or out of its limits: before minutes of loading."""
        check_kv_dtype(choose_device(self.device), self.kv_cache_dtype)
        choose_threads(self.threads)
        check_integer("kv_cache_bytes", self.kv_cache_bytes, 1)
        check_integer("kv_tier_bytes", self.kv_tier_bytes, 0)
        check_integer("page_size", self.page_size, 16, 4096)
        if self.page_size is not None and self.page_size % 16:
            raise ConfigError(f"[page_size] must be a multiple of 16, got {self.page_size}")
        check_integer("max_model_len", self.max_model_len, 1)
        check_integer("max_tokens_per_step", self.max_tokens_per_step, 1, 1 << 16)
        check_integer("max_num_seqs", self.max_num_seqs, 1, optional=False)
        choose_isa(self.isa)
        if not isinstance(self.deterministic, bool):
            raise ConfigError(f"[deterministic] must be True or False, got {self.deterministic!r}")

    def tokens_per_step(self, *, on_gpu: bool) -> int:
        """max_tokens_per_step, or what suits the device: on a GPU each step of a prompt unpacks all weights, which many
        tokens should share; on the CPU more than a few hundred gain nothing, and answers beside them would wait."""
        if self.max_tokens_per_step is not None:
            return self.max_tokens_per_step
        return DEFAULT_GPU_TOKENS_PER_STEP if on_gpu else DEFAULT_TOKENS_PER_STEP


def check_no_tier(options: BackendOptions) -> None:
    """Raises ConfigError where a second tier is asked for on the CPU."""
    if options.kv_tier_bytes:
        raise ConfigError(
            "[kv_tier_bytes] must be 0 or None on the CPU, whose pages are in host memory already, got "
            f"{options.kv_tier_bytes}; raise kv_cache_bytes, or use device='cuda'"
        )


def check_integer(name: str, value: Any, least: int, most: int | None = None, *, optional: bool = True) -> None:
    """Raises ConfigError, naming the option, unless `value` is an integer within its limits, or None where it may."""
    if value is None and optional:
        return
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not least <= operator.index(value) <= (math.inf if most is None else most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise ConfigError(f"[{name}] must be an integer {limits}, got {value!r}")


def choose_device(device: str = "auto") -> str:
    """The device named, or forced by LLM_DECODER_DEVICE, as "auto", "cpu", "cuda" or, of other GPUs than the first,
    "cuda:1". Raises ConfigError for another name."""
    place, name = ("device", device)
    if device == "auto" and os.environ.get("LLM_DECODER_DEVICE"):
        place, name = "LLM_DECODER_DEVICE", os.environ["LLM_DECODER_DEVICE"]
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"[{place}] must be auto, cpu, cuda, or cuda:1 and so on, got {name!r:.60}")
    return gpu_name(int(name.removeprefix("cuda:"))) if name.startswith("cuda:") else name


def check_kv_dtype(device: str, kv_cache_dtype: str) -> None:
    """Raises ConfigError for a name that the device ("auto": any) has no pages of."""
    known = {"auto": (*_KV_DTYPES, *_GPU_KV_DTYPES), "cpu": tuple(_KV_DTYPES)}.get(device, _GPU_KV_DTYPES)
    if kv_cache_dtype not in ("auto", *known):
        names = ", ".join(dict.fromkeys(("auto", *known)))
        place = {"auto": "", "cpu": " on the CPU"}.get(device, " on a GPU")
        raise ConfigError(f"[kv_cache_dtype] must be one of {names}{place}, got {kv_cache_dtype!r:.60}")


def choose_isa(isa: str = "auto") -> str:
    """The kernels that a decoder gets: those named, or forced by LLM_DECODER_CPU_ISA, or the best of this machine.

    Raises ConfigError for a name that this machine does not run.
    """
    place, name = ("isa", isa) if isa != "auto" else ("LLM_DECODER_CPU_ISA", os.environ.get("LLM_DECODER_CPU_ISA", ""))
    known = isas()
    if name in ("", "auto"):
        return known[0]
    if name not in known:
        raise ConfigError(f"[{place}] must be auto or one of {', '.join(known)} (what this machine runs), got {name!r}")
    return name


def choose_threads(threads: int | None = None) -> int:
    """How many threads compute: as many as named, else LLM_DECODER_THREADS, else one a physical core that this process
    may use.

    Raises ConfigError for what is not an integer from 1 to 1024.
    """
    check_integer("threads", threads, 1, MAX_THREADS)
    if threads is not None:
        return operator.index(threads)
    text = os.environ.get("LLM_DECODER_THREADS", "")
    if not text:
        return usable_cores()
    try:
        number: Any = int(text)
    except ValueError:
        number = text
    check_integer("LLM_DECODER_THREADS", number, 1, MAX_THREADS)
    return int(number)


def open_limits(threads: int, isa: str) -> MachineLimits:
    """What this machine can do at most, to be measured with so many threads and these kernels. Holds 1 GiB of memory,
    or four times the last cache if that is more, but no more than a quarter of what is free.

    Raises NotEnoughMemoryError.
    """
    n_bytes = min(max(_LIMITS_BYTES, _LIMITS_CACHES * last_cache_bytes()), available_memory_bytes() // 4)
    try:
        return MachineLimits(threads, n_bytes, isa)
    except MemoryError as error:
        raise NotEnoughMemoryError(
            f"[machine limits] {n_bytes} bytes to read do not fit the memory; free some"
        ) from error


def devices() -> list[DeviceInfo]:
    """The devices of this machine, the ones that cannot be used too, with the reason."""
    cpu = DeviceInfo(
        name="cpu",
        description=cpu_name(),
        threads=choose_threads(),
        cores=usable_cores(),
        memory_bytes=available_memory_bytes(),
        isas=tuple(isas()),
    )
    return [cpu, *cuda_devices(load_cuda)]


def load_cuda() -> ModuleType:
    """The extension with the GPU kernels; importing it touches no driver.

    Raises BackendError with the reason why it is not there.
    """
    try:
        cuda = importlib.import_module("llm_decoder._cuda")
    except ModuleNotFoundError as error:
        raise BackendError(
            "this build has no CUDA extension (a wheel with one has cuda in its name; from the sources, where nvcc is: "
            "LLM_DECODER_CUDA=on pip install .)"
        ) from error
    except ImportError as error:
        raise BackendError(f"the CUDA extension does not load: {error}") from error
    cuda.raise_device_lost_as(DeviceLostError)
    return cuda


def usable_gpus() -> Iterator[DeviceInfo]:
    """Those that can be used, in order; each is looked at when it is its turn."""
    return (gpu for gpu in cuda_devices(load_cuda) if gpu.is_usable)


def usable_gpu(name: str) -> DeviceInfo:
    """The GPU that is called so. Raises BackendError when there is no such or it cannot be used, with the reason."""
    gpu = next(cuda_devices(load_cuda, name))
    if not gpu.is_usable:
        raise BackendError(f"[device] {name} cannot be used: {gpu.reason}; use device='cpu'")
    return gpu


def create_backend(model: Model, options: BackendOptions, progress: Progress | None = None) -> Backend:
    """The backend of `options.device` for a loaded model, "auto" being the device that its weights are packed for.

    progress(n_done_bytes, n_total_bytes, what) is called while weights are copied to a GPU. Raises BackendError for a
    device that is not there, ConfigError for an option out of its limits, NotEnoughMemoryError for a pool that holds
    not one sequence of max_model_len.
    """
    device = choose_device(options.device)
    if device == "cpu" or (device == "auto" and model.device == "cpu"):
        return CpuBackend(model, options)
    from llm_decoder.cuda_backend import CudaBackend

    return CudaBackend(model, options, usable_gpu(model.device if device == "auto" else device), progress)


def check_max_model_len(model: Model, options: BackendOptions) -> None:
    """Raises ConfigError where more tokens are asked for than the model takes."""
    config = model.config
    if options.max_model_len is not None and options.max_model_len > config.max_model_len:
        reason = f"; {config.limit_reason}" if config.limit_reason else ""
        raise ConfigError(
            f"[max_model_len] must be from 1 to {config.max_model_len}, the context of {model.name}, "
            f"got {options.max_model_len}{reason}"
        )


def create_decoder(model: Model, options: BackendOptions, max_model_len: int) -> CoreDecoder:
    """The core's decoder with its weights, ready to step."""
    config = model.config.to_core() | {"max_model_len": max_model_len}
    try:
        decoder = CoreDecoder(config, choose_threads(options.threads), options.isa)
        for name, weight in model.weights.items():
            decoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)
        decoder.finalize(options.tokens_per_step(on_gpu=False))
    except ValueError as error:
        raise BackendError(f"[{model.name}] the core refuses the model: {error}") from error
    return decoder


class CoreBackend:
    """What a decoder of the core does for any backend."""

    _decoder: Any
    cache: KvCache

    def step(self, tokens: Ints, seq_ids: npt.NDArray[np.int64], counts: Ints, want: npt.NDArray[np.uint8]) -> int:
        return self._decoder.step(self.cache, tokens, seq_ids, counts, want)

    def sample(self, rows: Ints, params: SampleParams, n_top: int) -> tuple[Ints, Floats, Ints, Ints, Floats]:
        return self._decoder.sample(rows, params, n_top)

    def continuations(self, rows: Ints, params: SampleParams, n: int, n_top: int) -> Continuations:
        return self._decoder.continuations(rows, params, n, n_top)

    def log_probs(self, targets: Ints, n_top: int) -> tuple[Floats, Ints, Ints, Floats]:
        return self._decoder.log_probs(targets, n_top)

    def logits(self) -> Floats:
        return self._decoder.logits()

    def hidden(self) -> Floats:
        return self._decoder.hidden()

    def start_profile(self) -> None:
        self._decoder.start_profile()

    def stop_profile(self) -> StepTimes:
        return StepTimes(STEP_PARTS, *self._decoder.stop_profile())

    def close(self) -> None:
        """Lets the pool, the workspace and the weights go."""
        del self._decoder, self.cache


class CpuBackend(CoreBackend):
    """The INT8Decoder and the KV cache in host memory."""

    runs_ahead = False

    def __init__(self, model: Model, options: BackendOptions) -> None:
        check_no_tier(options)
        config = model.config
        check_max_model_len(model, options)
        self.page_size = options.page_size or DEFAULT_PAGE_SIZE
        self.vocab_size = config.vocab_size
        self.max_tokens_per_step = options.tokens_per_step(on_gpu=False)
        self.kv_cache_dtype = _kv_dtype(model, options)
        self._layout = model.layout
        wanted_len = options.max_model_len or config.max_model_len
        pool = divide_pool(
            config,
            self.kv_cache_dtype,
            page_size=self.page_size,
            wanted_len=wanted_len,
            least_len=self.page_size if options.max_model_len is None else wanted_len,
            max_step=self.max_tokens_per_step,
            n_sequences=max(DEFAULT_POOL_SEQUENCES, -(-DEFAULT_POOL_TOKENS // wanted_len)),
            pool_bytes=options.kv_cache_bytes,
            most_bytes=int(available_memory_bytes() * DEFAULT_POOL_SHARE),
        )
        self.max_model_len = pool.max_len
        self._decoder = create_decoder(model, options, self.max_model_len)
        self.cache = self._make_cache(config, pool)

    def _make_cache(self, config: ModelConfig, pool: KvPool) -> KvCache:
        try:
            return KvCache(
                n_pages=pool.n_pages,
                page_size=self.page_size,
                layers=pool.layer_groups,
                n_kv_heads=config.n_kv_heads,
                head_dim=config.head_dim,
                dtype=_KV_DTYPES[self.kv_cache_dtype],
                window=pool.windows,
            )
        except MemoryError as error:
            raise NotEnoughMemoryError(
                f"[KV cache] {pool.pool_bytes} bytes do not fit the memory; lower kv_cache_bytes"
            ) from error

    def info(self) -> dict[str, Any]:
        """What was chosen: device, isa, threads, layout of the matrices, kv_cache_dtype, sizes in tokens and bytes."""
        return {
            "device": "cpu",
            "isa": self._decoder.isa,
            "threads": self._decoder.threads,
            "layout": self._layout,
            "max_tokens_per_step": self.max_tokens_per_step,
            "kv_cache_dtype": self.kv_cache_dtype,
            "kv_cache_bytes": self.cache.stats()["pool_bytes"],
            "workspace_bytes": self._decoder.workspace_bytes,
        }


def _kv_dtype(model: Model, options: BackendOptions) -> str:
    if options.kv_cache_dtype == "auto":
        return auto_kv_dtype(model.layout)
    check_kv_dtype("cpu", options.kv_cache_dtype)
    return options.kv_cache_dtype


class EncoderBackend:
    """The core's encoder on the CPU: weights in, ragged batches of tokens, hidden states out. For one thread at a time.

    n_threads: how many compute; None = as many as choose_threads says. isa: a name of devices()[0].isas, or "auto".
    Raises ConfigError for either, BackendError for a configuration that the core refuses.
    """

    def __init__(self, config: EncoderConfig, n_threads: int | None = None, isa: str = "auto") -> None:
        n_threads = choose_threads(n_threads)
        try:
            self._encoder = CoreEncoder(config.to_core(), n_threads, isa)
        except ValueError as error:
            raise BackendError(f"[encoder] the core refuses the configuration: {error}") from error

    def set_weight(self, name: str, weight: PackedTensor | Floats) -> None:
        """A weight of encoders.config.weight_shapes, packed, or as float32 [n] or [n_out, n_in]. All matrices are
        quantised or none; tables of positions and types may be either.

        Raises ValueError naming the weight whose layout, shape or dtype is wrong.
        """
        if isinstance(weight, np.ndarray):
            is_matrix = weight.ndim == 2
            data = pack_f32(weight) if is_matrix else weight
            self._encoder.set_weight(name, "f32" if is_matrix else "vector", weight.shape, data)
            return
        self._encoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)

    def finalize(self, max_tokens: int) -> None:
        """Sizes the scratch for batches of so many tokens. Raises ValueError naming the weight at fault."""
        self._encoder.finalize(max_tokens)

    def encode(self, token_ids: Ints, counts: Ints, type_ids: Ints | None = None, pooling: str = "none") -> Floats:
        """Hidden states float32 [n_tokens, hidden_size]; with pooling "first" those of each sequence's first token,
        with "mean" the mean of each sequence's, [n_seqs, hidden_size].

        token_ids int32 [n_tokens], sequences one behind the other; counts int32 [n_seqs], tokens of each; type_ids
        int32 [n_tokens], None = all 0. No row depends on the other sequences, nor on n_threads. Raises ValueError for a
        batch that does not fit.
        """
        return self._encoder.encode(token_ids, counts, type_ids, pooling)

    def info(self) -> dict[str, Any]:
        """What was chosen: device, isa, threads, sizes in tokens."""
        return {
            "device": "cpu",
            "isa": self._encoder.isa,
            "threads": self._encoder.threads,
            "max_tokens": self._encoder.max_tokens,
        }
