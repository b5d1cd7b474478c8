"""A folder opened for reading texts: weights in the core, a tokenizer, and lists of any length in steps of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import EncoderBackend, choose_isa, choose_threads
from llm_decoder.encoders.checkpoint import EncoderCheckpoint, encoder_folder
from llm_decoder.encoders.config import EncoderConfig, weight_shapes
from llm_decoder.encoders.head import ClassifierHead, Pooling
from llm_decoder.encoders.pack import pack_weights
from llm_decoder.encoders.pair_tokenizer import PairTokenizer, Tokens, load_pair_tokenizer
from llm_decoder.errors import (
    BackendError,
    ConfigError,
    InvalidRequestError,
    NotEnoughMemoryError,
    RequestFailedError,
)
from llm_decoder.fit import available_memory_bytes

__all__ = ["Encoder", "Progress", "as_texts"]

Floats = npt.NDArray[np.float32]
# progress(n_done, n_total), in texts
Progress = Callable[[int, int], None]

MAX_TOKENS_PER_STEP = 2048  # whole sequences of at most so many tokens together; more for one that is longer
_TEXTS_A_ROUND = 1024  # tokenised, sorted and computed together: what is held of a long list stays bounded


class Encoder:
    """The encoder of one folder with its tokenizer, and its head where `with_head`. Safe to use from several threads.

    n_truncated: texts so far that were longer than the tokenizer's max_length. Raises ModelLoadError, ConfigError,
    BackendError.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        with_head: bool,
        quantization: str = "int8",
        threads: int | None = None,
        max_length: int | None = None,
        default_length: int | None = None,
        isa: str = "auto",
    ) -> None:
        if quantization not in ("int8", "none"):
            raise ConfigError(f"[quantization] need int8 or none for an encoder, got {quantization!r:.60}")
        n_threads, isa = choose_threads(threads), choose_isa(isa)
        self.path = encoder_folder(folder)
        checkpoint = EncoderCheckpoint(self.path, with_head=with_head)
        shape = checkpoint.shape
        self.config = shape.config
        _check_fit(self.path, self.config, quantization)
        self.tokenizer: PairTokenizer = load_pair_tokenizer(
            self.path,
            model_length=shape.n_tokens,
            default_length=default_length,
            max_length=max_length,
            n_ids=shape.config.vocab_size,
        )
        self.head = ClassifierHead(shape.head, checkpoint.head_weights()) if with_head else None
        self.n_truncated = 0
        self._max_tokens = max(MAX_TOKENS_PER_STEP, self.tokenizer.max_length)
        self._lock = threading.Lock()
        try:
            self._backend = EncoderBackend(self.config, n_threads, isa)
            for name, weight in pack_weights(checkpoint, "w8" if quantization == "int8" else "f32"):
                self._backend.set_weight(name, weight)
            self._backend.finalize(self._max_tokens)
        except ValueError as error:
            raise BackendError(f"[{self.path}] the core refuses the encoder: {error}") from error

    def run(
        self,
        n_texts: int,
        tokenize: Callable[[int], Tokens],
        pooling: Pooling,
        *,
        finish: Callable[[Floats], Floats] | None = None,
        progress: Progress | None = None,
    ) -> Floats:
        """Of text i, whose tokens are tokenize(i), the first hidden state or the mean: float32 [n_texts, hidden_size],
        or what `finish` makes of such rows.

        Raises what tokenize raises, RequestFailedError where a result is not finite.
        """
        result: Floats | None = None
        n_done = 0
        for begin in range(0, n_texts, _TEXTS_A_ROUND):
            tokens = [tokenize(index) for index in range(begin, min(begin + _TEXTS_A_ROUND, n_texts))]
            with self._lock:
                self.n_truncated += sum(item.is_cut for item in tokens)
            for step in self._steps(tokens):
                rows = self._encode([tokens[index] for index in step], pooling)
                rows = finish(rows) if finish is not None else rows
                if not np.isfinite(rows).all():
                    raise RequestFailedError(
                        f"[{self.path.name}] need finite results, got NaN or infinity; its weights cannot be right"
                    )
                result = np.empty((n_texts, *rows.shape[1:]), np.float32) if result is None else result
                result[[begin + index for index in step]] = rows
                n_done += len(step)
                if progress is not None:
                    progress(n_done, n_texts)
        if result is None:
            empty = np.empty((0, self.config.hidden_size), np.float32)
            return empty if finish is None else finish(empty)
        return result

    def _encode(self, tokens: Sequence[Tokens], pooling: Pooling) -> Floats:
        ids = np.concatenate([item.ids for item in tokens])
        counts = np.array([len(item.ids) for item in tokens], np.int32)
        type_ids = np.concatenate([item.type_ids for item in tokens]) if self.config.n_types > 1 else None
        with self._lock:
            return self._backend.encode(ids, counts, type_ids, pooling)

    def _steps(self, tokens: Sequence[Tokens]) -> Iterator[list[int]]:
        """Indices into `tokens`, the longest first, as many together as a step takes."""
        step: list[int] = []
        n_tokens = 0
        for index in sorted(range(len(tokens)), key=lambda index: -len(tokens[index].ids)):
            if step and n_tokens + len(tokens[index].ids) > self._max_tokens:
                yield step
                step, n_tokens = [], 0
            step.append(index)
            n_tokens += len(tokens[index].ids)
        if step:
            yield step


def _check_fit(path: Path, config: EncoderConfig, quantization: str) -> None:
    """Raises NotEnoughMemoryError: before anything large is read."""
    sizes = [math.prod(shape) for shape in weight_shapes(config).values()]
    # The weights, and what the largest takes while it is packed.
    need_bytes = (sum(sizes) + max(sizes)) * (1 if quantization == "int8" else 4)
    available_bytes = available_memory_bytes()
    if need_bytes > available_bytes:
        need, free = (f"{n_bytes / 2**20:,.0f} MiB" for n_bytes in (need_bytes, available_bytes))
        raise NotEnoughMemoryError(
            f"[{path}] needs {need}, this machine has {free} free; close other programs"
            + ("" if quantization == "int8" else ', or use quantization="int8", a byte a weight')
        )


def as_texts(values: Any, param: str) -> list[Any]:
    """A list of what may be texts. Raises InvalidRequestError, with `param`, for what is no list."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidRequestError(f"[{param}] need a list, got {type(values).__name__}", param=param)
    return list(values)
