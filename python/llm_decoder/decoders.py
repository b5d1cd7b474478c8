"""INT8Decoder and CUDADecoder for those who bring their own loop: weights in, steps, logits out, with no engine and no
tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import Backend, BackendOptions, KvCache, choose_device, create_backend, usable_gpu
from llm_decoder.checkpoint import Checkpoint
from llm_decoder.engine_core import EngineCore
from llm_decoder.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from llm_decoder.fit import check_fit
from llm_decoder.gpu_weights import GpuDtype, check_gpu_precision
from llm_decoder.loading import WeightsPackedWhenRead, choose_layout, find_model, open_checkpoint, stored_layout
from llm_decoder.model_config import ModelConfig
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor
from llm_decoder.placement import Placement, place_on_gpu
from llm_decoder.quantize import pack_in_memory
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.sequence import Limits, build_request
from llm_decoder.weights_config import INT8_FOLDER
from llm_decoder.weights_dir import WeightsDirectory, is_weights_directory

__all__ = ["CUDADecoder", "INT8Decoder"]

_Integer = TypeVar("_Integer", bound=np.integer[Any])

_NOT_HERE = frozenset(
    {"bad_words", "include_stop_str_in_output", "logprobs", "n", "prompt_logprobs", "skip_special_tokens", "stop"}
)


class _Decoder(ABC):
    """A decoder with a paged KV cache of its own. For one thread. Also a context manager, which closes it."""

    _quantizations: tuple[str, ...] = ("int8", "int4")

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._path: Path | None = None
        self._dtype = "auto"  # as load_weights was told
        self._config: ModelConfig | None = None
        self._backend: Backend | None = None

    def load_weights(self, directory: str | Path, dtype: str = "auto") -> None:
        """Reads float weights, from a Hugging Face folder or a `weights/` directory, as matrices of `dtype`, a name
        that LLM takes for this device or "auto", as there.

        Raises ModelLoadError, ConfigError, or NotEnoughMemoryError before anything large is read.
        """
        self._load(self._folder("load_weights", directory), "none", dtype)

    def quantize_weights(self, quantization: str = "int8") -> None:
        """Puts quantised matrices, "int8" (a scale a row), "int4" (groups of 32) or, on a GPU, "fp8" (a scale a row),
        in the place of those that load_weights read. An empty cache comes with them.

        Raises ConfigError for another name, InvalidRequestError without weights.
        """
        if quantization not in self._quantizations:
            known = " or ".join(self._quantizations)
            raise ConfigError(f"[{self._name}.quantize_weights] need {known}, got {quantization!r:.60}")
        if self._path is None:
            raise InvalidRequestError(
                f"[{self._name}.quantize_weights] needs weights, got none; call load_weights first"
            )
        self._load(self._path, quantization, self._dtype)

    def load_quantized_weights(self, directory: str | Path) -> None:
        """Reads the int8 matrices of a `weights/` directory, or of its int8/ folder.

        Raises ModelNotFoundError when there are none; otherwise as load_weights.
        """
        path = self._folder("load_quantized_weights", directory)
        if path.name == INT8_FOLDER and is_weights_directory(path.parent):
            path = path.parent
        if not is_weights_directory(path) or WeightsDirectory(path, "int8").part != "int8":
            raise ModelNotFoundError(
                f"[{directory}] needs int8 weights (int8/embedding.bin and so on), got none; write them with "
                "`llm-decoder convert`, or call load_weights and quantize_weights"
            )
        self._load(path, "int8", "auto")

    def _load(self, path: Path, quantization: str, dtype: str) -> None:
        checkpoint, placement = self._place(path, quantization, dtype)
        weights = self._pack(checkpoint, placement.layout)
        self.close()
        model = _Model(checkpoint.config, weights, str(path), placement.layout, placement.device, placement.dtype)
        self._backend = create_backend(model, self._options)
        self._path, self._dtype, self._config = path, dtype, checkpoint.config

    @abstractmethod
    def _place(self, path: Path, quantization: str, dtype: str) -> tuple[Checkpoint, Placement]:
        """The reader of what is nearest to the matrices that are wanted, and how these lie on the device."""

    @abstractmethod
    def _pack(self, checkpoint: Checkpoint, layout: MatrixLayout) -> Mapping[str, PackedTensor]: ...

    @property
    def config(self) -> ModelConfig:
        """The model as numbers."""
        self._ready("config")
        assert self._config is not None
        return self._config

    @property
    def cache(self) -> KvCache:
        """The KV cache: admit, reserve, commit, fork, release. What `step` computes must have been reserved."""
        return self._ready("cache").cache

    def step(
        self, tokens: Sequence[int], seq_ids: Sequence[int], counts: Sequence[int], want: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Runs counts[i] tokens of each sequence (ids of `cache`) through the model and writes their KV.

        tokens [sum(counts)], sequences in order; want [n_seqs]: logits of 0 no token, 1 the last, 2 all. Reserve in the
        cache before, commit after. Returns logits, float32 [n_rows, vocab_size]. Raises InvalidRequestError for a
        batch that does not fit the model, the cache or what was reserved.
        """
        backend, place = self._ready("step"), f"{self._name}.step"
        batch = (
            _integers(place, "tokens", tokens, np.int32),
            _integers(place, "seq_ids", seq_ids, np.int64),
            _integers(place, "counts", counts, np.int32),
            _integers(place, "want", want, np.uint8),
        )
        try:
            backend.step(*batch)
        except ValueError as error:  # the core's own words, with their place
            raise InvalidRequestError(str(error)) from error
        return backend.logits()

    def hidden(self) -> npt.NDArray[np.float32]:
        """float32 [n_rows, hidden_size]: the rows of the last step after the final norm."""
        return self._ready("hidden").hidden()

    def generate(
        self, token_ids: Sequence[int], max_tokens: int | None = 16, *, temperature: float = 0.0, **sampling: Any
    ) -> list[int]:
        """The tokens that follow, greedy unless a temperature is given. `sampling`: fields of SamplingParams, but for
        those that ask for text or for more than one list of tokens; tokens that end the answer go into stop_token_ids.
        Raises as LLM.generate."""
        backend = self._ready("generate")
        refused = sorted(_NOT_HERE.intersection(sampling))
        if refused:
            raise InvalidRequestError(
                f"[{self._name}.generate] {refused[0]} needs an engine or a tokenizer; use LLM", param=refused[0]
            )
        params = resolve_params(SamplingParams(max_tokens=max_tokens, temperature=temperature, **sampling))
        sent: list[StreamEvent | RequestOutput | Exception] = []
        request = build_request(
            token_ids,
            params,
            Limits(backend.vocab_size, backend.max_model_len, backend.cache.max_tokens(backend.max_tokens_per_step)),
            _NoText(),
            request_id="generate",
            seed=params.seed or 0,
            sink=sent.append,
        )
        core = EngineCore(backend, _NoText())
        core.add(request)
        try:
            while core.step():
                pass
        except BaseException:
            core.cancel(request.request_id)
            raise
        (output,) = sent
        if isinstance(output, Exception):
            raise output
        assert isinstance(output, RequestOutput)
        return output.outputs[0].token_ids

    def info(self) -> dict[str, Any]:
        """What was chosen: device, layout of the matrices, kv_cache_dtype, sizes in bytes, and what its device has."""
        return self._ready("info").info()

    def close(self) -> None:
        """Lets weights, cache and workspace go."""
        if self._backend is not None:
            self._backend.close()
        self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, verb: str) -> Backend:
        if self._backend is None:
            raise InvalidRequestError(
                f"[{self._name}.{verb}] needs weights, got none; call load_weights or load_quantized_weights first"
            )
        return self._backend

    def _folder(self, verb: str, directory: str | Path) -> Path:
        if not isinstance(directory, (str, Path)):
            raise ModelNotFoundError(
                f"[{self._name}.{verb}] needs the path of a folder with weights, got {directory!r:.60}"
            )
        return find_model(Path(directory))

    @property
    def _name(self) -> str:
        return type(self).__name__


class INT8Decoder(_Decoder):
    """A decoder on the CPU with a paged KV cache of its own. For one thread. Also a context manager, which closes it.

    threads, kv_cache_dtype, kv_cache_bytes, page_size, max_model_len, max_tokens_per_step, isa: as for LLM.

        decoder = INT8Decoder()
        decoder.load_weights("path/to/a/model")
        decoder.quantize_weights()
        tokens = decoder.generate([1, 2, 3], max_tokens=16)
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        kv_cache_dtype: str = "auto",
        kv_cache_bytes: int | None = None,
        page_size: int | None = None,
        max_model_len: int | None = None,
        max_tokens_per_step: int | None = None,
        isa: str = "auto",
    ) -> None:
        super().__init__(
            BackendOptions(
                device="cpu",
                threads=threads,
                kv_cache_dtype=kv_cache_dtype,
                kv_cache_bytes=kv_cache_bytes,
                page_size=page_size,
                max_model_len=max_model_len,
                max_tokens_per_step=max_tokens_per_step,
                isa=isa,
            )
        )

    def _place(self, path: Path, quantization: str, dtype: str) -> tuple[Checkpoint, Placement]:
        wanted = choose_layout(quantization, dtype)
        checkpoint = open_checkpoint(path, wanted)
        layout = wanted or stored_layout(checkpoint)
        pool_bytes = self._options.kv_cache_bytes
        check_fit(checkpoint.config, layout, name=str(path), is_mapped=False, kv_cache_bytes=pool_bytes)
        return checkpoint, Placement("cpu", layout)

    def _pack(self, checkpoint: Checkpoint, layout: MatrixLayout) -> Mapping[str, PackedTensor]:
        return pack_in_memory(checkpoint, layout)


class CUDADecoder(_Decoder):
    """A decoder on an NVIDIA GPU, weights and the pages of its KV cache in the GPU's memory. For one thread. Also a
    context manager, which closes it.

    device: "cuda", the first one, or "cuda:1" and so on. kv_cache_dtype, kv_cache_bytes, page_size, max_model_len,
    max_tokens_per_step, deterministic: as for LLM.

        decoder = CUDADecoder()
        decoder.load_weights("path/to/a/model")
        tokens = decoder.generate([1, 2, 3], max_tokens=16)
    """

    _quantizations = ("int8", "int4", "fp8")

    def __init__(
        self,
        *,
        device: str = "cuda",
        kv_cache_dtype: str = "auto",
        kv_cache_bytes: int | None = None,
        page_size: int | None = None,
        max_model_len: int | None = None,
        max_tokens_per_step: int | None = None,
        deterministic: bool = False,
    ) -> None:
        options = BackendOptions(
            device=device,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=kv_cache_bytes,
            kv_tier_bytes=0,  # no sequence of a loop of one's own gives way to another
            page_size=page_size,
            max_model_len=max_model_len,
            max_tokens_per_step=max_tokens_per_step,
            deterministic=deterministic,
        )
        if device in ("auto", "cpu"):
            raise ConfigError(f"[device] must be cuda, or cuda:1 and so on, got {device!r}; INT8Decoder is for the CPU")
        super().__init__(options)

    def _place(self, path: Path, quantization: str, dtype: str) -> tuple[Checkpoint, Placement]:
        check_gpu_precision(quantization, dtype)
        gpu = usable_gpu(choose_device(self._options.device))
        checkpoint = open_checkpoint(path, choose_layout("none" if quantization == "fp8" else quantization, "auto"))
        return checkpoint, place_on_gpu(checkpoint, gpu, self._options, quantization, dtype, name=str(path))

    def _pack(self, checkpoint: Checkpoint, layout: MatrixLayout) -> Mapping[str, PackedTensor]:
        return WeightsPackedWhenRead(checkpoint, layout)


def _integers(place: str, name: str, values: Sequence[int], dtype: type[_Integer]) -> npt.NDArray[_Integer]:
    """A flat array of `dtype`, refused rather than rounded or wrapped."""
    array = np.asarray(values)
    limits = np.iinfo(dtype)
    if array.size == 0:
        return np.zeros(0, dtype)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        raise InvalidRequestError(
            f"[{place}] {name} must be a flat list of integers from {limits.min} to {limits.max}, got {values!r:.60}",
            param=name,
        )
    return array.astype(dtype)


@dataclass(frozen=True)
class _Model:
    config: ModelConfig
    weights: Mapping[str, PackedTensor]
    name: str
    layout: MatrixLayout
    device: str
    dtype: GpuDtype | None


class _NoText:
    """Stands for a tokenizer where there is none."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise InvalidRequestError("[prompt] needs token ids, got text; LLM takes text", param="prompt")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""
