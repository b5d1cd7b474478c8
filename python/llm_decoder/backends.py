"""Devices and what computes on them. The only file of the package that imports the compiled core."""

from __future__ import annotations

import importlib
import math
import operator
import os
from collections.abc import Mapping
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
from llm_decoder.errors import BackendError, ConfigError, NotEnoughMemoryError
from llm_decoder.fit import auto_kv_dtype, available_memory_bytes
from llm_decoder.kv_pool import KvPool, divide_pool

if TYPE_CHECKING:
    from llm_decoder.encoders.config import EncoderConfig
    from llm_decoder.model_config import ModelConfig
    from llm_decoder.packed_tensor import PackedTensor

__all__ = [
    "Backend",
    "BackendOptions",
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
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
SampleParams = dict[str, npt.NDArray[Any]]
Continuations = tuple[Ints, Floats, Floats, Floats, Ints, Ints, Floats]

DEFAULT_PAGE_SIZE = 32
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
_LEAST_COMPUTE_CAPABILITY = (8, 0)


class Model(Protocol):
    """What a backend needs of a loaded model: the numbers, the packed weights by core name, what to call it."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def weights(self) -> Mapping[str, PackedTensor]: ...

    @property
    def name(self) -> str: ...


class Backend(Protocol):
    """A decoder with its cache, as the engine drives it. For one thread.

    step computes `tokens` int32 [n_tokens] of the sequences `seq_ids` int64 [n_seqs], counts[i] of each, and returns
    how
    many rows of logits there are: of sequence i none, the last token's or all, as want[i] uint8 is 0, 1 or 2. sample,
    log_probs, logits and hidden read these rows until the next step. Sizes in tokens.
    """

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
class DeviceInfo:
    """A device of this machine. reason: why it cannot be used, empty when it can. threads: how many compute unless told
    otherwise. cores: physical ones that this process may use. isas: of CPU kernels. memory_bytes: free."""

    name: str
    description: str
    threads: int
    cores: int
    memory_bytes: int
    isas: tuple[str, ...] = ()
    reason: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class BackendOptions:
    """device: "auto" or "cpu". kv_cache_dtype: "auto" (that of float weights, int8 with quantised ones),
    "float32", "bfloat16", "int8". kv_cache_bytes: size of the pool; None = four sequences of max_model_len, or 32768
    tokens if that is more, at most a quarter of the free memory. page_size: tokens a page, a multiple of 16.
    max_model_len: tokens of a sequence; None = the model's, or what the pool holds if that is less. isa: a name of
    devices()[0].isas.
    deterministic: a sequence's results must not depend on what else is computed; CpuBackend keeps that in float32 and
    int8 alike, so there it changes nothing."""

    device: str = "auto"
    threads: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    page_size: int | None = None
    max_model_len: int | None = None
    max_tokens_per_step: int = 512
    isa: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a value of the wrong type or out of its limits: before minutes of loading."""
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"[device] must be auto, cpu or cuda, got {self.device!r}")
        if self.kv_cache_dtype not in ("auto", *_KV_DTYPES):
            raise ConfigError(f"[kv_cache_dtype] must be auto, float32, bfloat16 or int8, got {self.kv_cache_dtype!r}")
        choose_threads(self.threads)
        check_integer("kv_cache_bytes", self.kv_cache_bytes, 1)
        check_integer("page_size", self.page_size, 16, 4096)
        if self.page_size is not None and self.page_size % 16:
            raise ConfigError(f"[page_size] must be a multiple of 16, got {self.page_size}")
        check_integer("max_model_len", self.max_model_len, 1)
        check_integer("max_tokens_per_step", self.max_tokens_per_step, 1, 1 << 16, optional=False)
        choose_isa(self.isa)
        if not isinstance(self.deterministic, bool):
            raise ConfigError(f"[deterministic] must be True or False, got {self.deterministic!r}")


def check_integer(name: str, value: Any, least: int, most: int | None = None, *, optional: bool = True) -> None:
    """Raises ConfigError, naming the option, unless `value` is an integer within its limits, or None where it may."""
    if value is None and optional:
        return
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not least <= operator.index(value) <= (math.inf if most is None else most):
        limits = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise ConfigError(f"[{name}] must be an integer {limits}, got {value!r}")


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
    return [cpu, *_cuda_devices()]


def load_cuda() -> ModuleType:
    """The extension with the GPU kernels; importing it touches no driver.

    Raises BackendError with the reason why it is not there.
    """
    try:
        return importlib.import_module("llm_decoder._cuda")
    except ModuleNotFoundError as error:
        raise BackendError(
            "this build has no CUDA extension (built where nvcc and a device are, or with LLM_DECODER_CUDA=on)"
        ) from error
    except ImportError as error:
        raise BackendError(f"the CUDA extension does not load: {error}") from error


def _cuda_devices() -> list[DeviceInfo]:
    """Every NVIDIA GPU, or one entry that says why there is none."""
    try:
        cuda = load_cuda()
        found = [_cuda_device(cuda, index) for index in range(cuda.n_devices())]
        reason = "the driver knows no NVIDIA GPU"
    except (BackendError, RuntimeError) as error:
        found, reason = [], str(error)
        if "cudaErrorInsufficientDriver" in reason:
            reason = f"no NVIDIA driver is loaded, or one older than the CUDA runtime of this build ({reason})"
    return found or [DeviceInfo("cuda", "NVIDIA GPU", threads=0, cores=0, memory_bytes=0, reason=reason)]


def _cuda_device(cuda: ModuleType, index: int) -> DeviceInfo:
    device = cuda.describe_device(index)
    capability = device["compute_capability"]
    major, minor = capability
    reason = ""
    if capability < _LEAST_COMPUTE_CAPABILITY:
        reason = f"its compute capability is {major}.{minor}; the kernels need 8.0 or above"
    return DeviceInfo(
        name=f"cuda:{index}" if index else "cuda",
        description=f"{device['name']}, compute capability {major}.{minor}, {device['n_sms']} multiprocessors",
        threads=0,
        cores=0,
        memory_bytes=device["free_bytes"],
        reason=reason,
    )


def create_backend(model: Model, options: BackendOptions) -> Backend:
    """The backend of `options.device` for a loaded model.

    Raises BackendError for a device that is not there, ConfigError for an option out of its limits,
    NotEnoughMemoryError for a pool that holds not one sequence of max_model_len.
    """
    if options.device == "cuda":
        reason = _cuda_devices()[0].reason or "models are computed on the CPU; on the GPU there is llm_decoder.ops"
        raise BackendError(f"[device] cuda cannot be used: {reason}; use device='cpu'")
    return CpuBackend(model, options)


def create_decoder(model: Model, options: BackendOptions, max_model_len: int) -> CoreDecoder:
    """The core's decoder with its weights, ready to step."""
    config = model.config.to_core() | {"max_model_len": max_model_len}
    try:
        decoder = CoreDecoder(config, choose_threads(options.threads), options.isa)
        for name, weight in model.weights.items():
            decoder.set_weight(name, weight.layout, weight.shape, weight.data, weight.scales)
        decoder.finalize(options.max_tokens_per_step)
    except ValueError as error:
        raise BackendError(f"[{model.name}] the core refuses the model: {error}") from error
    return decoder


class CpuBackend:
    """The INT8Decoder and the KV cache in host memory."""

    def __init__(self, model: Model, options: BackendOptions) -> None:
        config = model.config
        if options.max_model_len is not None and options.max_model_len > config.max_model_len:
            reason = f"; {config.limit_reason}" if config.limit_reason else ""
            raise ConfigError(
                f"[max_model_len] must be from 1 to {config.max_model_len}, the context of {model.name}, "
                f"got {options.max_model_len}{reason}"
            )
        self.page_size = options.page_size or DEFAULT_PAGE_SIZE
        self.vocab_size = config.vocab_size
        self.max_tokens_per_step = options.max_tokens_per_step
        self.kv_cache_dtype = _kv_dtype(model, options)
        self._layout = model.weights["layer_0/attn_qkv"].layout
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

    def start_profile(self) -> None:
        self._decoder.start_profile()

    def stop_profile(self) -> StepTimes:
        return StepTimes(STEP_PARTS, *self._decoder.stop_profile())

    def close(self) -> None:
        """Lets the pool, the workspace and the weights go."""
        del self._decoder, self.cache


def _kv_dtype(model: Model, options: BackendOptions) -> str:
    if options.kv_cache_dtype == "auto":
        return auto_kv_dtype(model.weights["layer_0/attn_qkv"].layout)
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
