"""INT8Decoder for those who bring their own loop: weights in, steps, logits out, with no engine and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import BackendOptions, CpuBackend, KvCache
from llm_decoder.engine_core import EngineCore
from llm_decoder.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from llm_decoder.fit import check_fit
from llm_decoder.loading import choose_layout, find_model, open_checkpoint, stored_layout
from llm_decoder.model_config import ModelConfig
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor
from llm_decoder.quantize import pack_in_memory
from llm_decoder.sampling import SamplingParams, resolve_params
from llm_decoder.sequence import Limits, build_request
from llm_decoder.weights_config import INT8_FOLDER
from llm_decoder.weights_dir import WeightsDirectory, is_weights_directory

__all__ = ["INT8Decoder"]

_Integer = TypeVar("_Integer", bound=np.integer[Any])

_NOT_HERE = frozenset(
    {"bad_words", "include_stop_str_in_output", "logprobs", "n", "prompt_logprobs", "skip_special_tokens", "stop"}
)


class INT8Decoder:
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
        max_tokens_per_step: int = 512,
        isa: str = "auto",
    ) -> None:
        self._options = BackendOptions(
            threads=threads,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=kv_cache_bytes,
            page_size=page_size,
            max_model_len=max_model_len,
            max_tokens_per_step=max_tokens_per_step,
            isa=isa,
        )
        self._path: Path | None = None
        self._config: ModelConfig | None = None
        self._backend: CpuBackend | None = None

    def load_weights(self, directory: str | Path, dtype: str = "auto") -> None:
        """Reads float weights, from a Hugging Face folder or a `weights/` directory, as matrices of `dtype`: "float32",
        "bfloat16", or "auto", which is bfloat16 when all matrices are stored so, else float32.

        Raises ModelLoadError, ConfigError, or NotEnoughMemoryError before anything large is read.
        """
        self._load(_folder("load_weights", directory), choose_layout("none", dtype))

    def quantize_weights(self, quantization: str = "int8") -> None:
        """Puts quantised matrices, "int8" (a scale a row) or "int4" (groups of 32), in the place of those that
        load_weights read. An empty cache comes with them.

        Raises ConfigError for another name, InvalidRequestError without weights.
        """
        if quantization not in ("int8", "int4"):
            raise ConfigError(f"[INT8Decoder.quantize_weights] need int8 or int4, got {quantization!r:.60}")
        if self._path is None:
            raise InvalidRequestError("[INT8Decoder.quantize_weights] needs weights, got none; call load_weights first")
        self._load(self._path, choose_layout(quantization, "auto"))

    def load_quantized_weights(self, directory: str | Path) -> None:
        """Reads the int8 matrices of a `weights/` directory, or of its int8/ folder.

        Raises ModelNotFoundError when there are none; otherwise as load_weights.
        """
        path = _folder("load_quantized_weights", directory)
        if path.name == INT8_FOLDER and is_weights_directory(path.parent):
            path = path.parent
        if not is_weights_directory(path) or not WeightsDirectory(path, prefer_int8=True).is_int8:
            raise ModelNotFoundError(
                f"[{directory}] needs int8 weights (int8/embedding.bin and so on), got none; write them with "
                "`llm-decoder convert`, or call load_weights and quantize_weights"
            )
        self._load(path, "w8")

    def _load(self, path: Path, layout: MatrixLayout | None) -> None:
        """`layout`: of the matrices; None = the checkpoint's own."""
        checkpoint = open_checkpoint(path, prefer_int8=layout == "w8")
        layout = layout or stored_layout(checkpoint)
        check_fit(
            checkpoint.config, layout, name=str(path), is_mapped=False, kv_cache_bytes=self._options.kv_cache_bytes
        )
        weights = pack_in_memory(checkpoint, layout)
        self.close()
        self._backend = CpuBackend(_Model(checkpoint.config, weights, str(path)), self._options)
        self._path, self._config = path, checkpoint.config

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
        backend = self._ready("step")
        batch = (
            _integers("tokens", tokens, np.int32),
            _integers("seq_ids", seq_ids, np.int64),
            _integers("counts", counts, np.int32),
            _integers("want", want, np.uint8),
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
                f"[INT8Decoder.generate] {refused[0]} needs an engine or a tokenizer; use LLM", param=refused[0]
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
        """What was chosen: isa, threads, kv_cache_dtype, sizes in bytes."""
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

    def _ready(self, verb: str) -> CpuBackend:
        if self._backend is None:
            raise InvalidRequestError(
                f"[INT8Decoder.{verb}] needs weights, got none; call load_weights or load_quantized_weights first"
            )
        return self._backend


def _folder(verb: str, directory: str | Path) -> Path:
    if not isinstance(directory, (str, Path)):
        raise ModelNotFoundError(f"[INT8Decoder.{verb}] needs the path of a folder with weights, got {directory!r:.60}")
    return find_model(Path(directory))


def _integers(name: str, values: Sequence[int], dtype: type[_Integer]) -> npt.NDArray[_Integer]:
    """A flat array of `dtype`, refused rather than rounded or wrapped."""
    array = np.asarray(values)
    limits = np.iinfo(dtype)
    if array.size == 0:
        return np.zeros(0, dtype)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        raise InvalidRequestError(
            f"[INT8Decoder.step] {name} must be a flat list of integers from {limits.min} to {limits.max}, "
            f"got {values!r:.60}",
            param=name,
        )
    return array.astype(dtype)


@dataclass(frozen=True)
class _Model:
    config: ModelConfig
    weights: dict[str, PackedTensor]
    name: str


class _NoText:
    """Stands for a tokenizer where there is none."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        raise InvalidRequestError("[INT8Decoder] needs token ids, got text; LLM takes text", param="prompt")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""
