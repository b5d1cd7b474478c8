"""Sentence encoders: texts as vectors whose nearness is that of what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_decoder.encoders.encoder import Encoder, Progress, as_texts
from llm_decoder.encoders.pair_tokenizer import Tokens
from llm_decoder.encoders.sentence_modules import read_modules

__all__ = ["SentenceEncoder"]

Floats = npt.NDArray[np.float32]


class SentenceEncoder:
    """Texts as vectors (Reimers and Gurevych 2019). Safe to use from several threads.

    folder: as sentence-transformers saves one: a Transformer (BERT, DistilBERT, RoBERTa, XLM-R, CamemBERT or
    ModernBERT), Pooling of the first token or the mean, perhaps Normalize; a folder of such an encoder alone is pooled
    by the mean and not normalised. A prompt that the folder puts before every text is put there. quantization, threads,
    max_length: as of CrossEncoder.

    A text's vector never depends on what else is encoded. Raises ModelNotFoundError, UnsupportedModelError (also for
    other modules, such as Dense), MalformedFileError, ConfigError or BackendError.
    """

    def __init__(
        self,
        folder: str | Path,
        quantization: str = "int8",
        threads: int | None = None,
        max_length: int | None = None,
        *,
        isa: str = "auto",
    ) -> None:
        self._modules = read_modules(folder)
        self._name = Path(folder).expanduser().name
        self._encoder = Encoder(
            self._modules.transformer,
            with_head=False,
            quantization=quantization,
            threads=threads,
            max_length=max_length,
            default_length=self._modules.max_length,
            isa=isa,
        )

    @property
    def name(self) -> str:
        """What the model is called: its folder's name."""
        return self._name

    @property
    def hidden_size(self) -> int:
        """Numbers of a vector."""
        return self._encoder.config.hidden_size

    @property
    def max_length(self) -> int:
        """Tokens of a text, those that the model puts around it included."""
        return self._encoder.tokenizer.max_length

    @property
    def n_truncated(self) -> int:
        """How many of the texts encoded so far were longer than max_length, and lost their end."""
        return self._encoder.n_truncated

    def embed(self, texts: str | Sequence[str], *, progress: Progress | None = None) -> Floats:
        """float32 [n_texts, hidden_size]; one text is a list of one. progress(n_done, n_total).

        Raises InvalidRequestError for what is no text, RequestFailedError where a vector is not finite.
        """
        texts = as_texts([texts] if isinstance(texts, str) else texts, "texts")
        return self._encoder.run(
            len(texts),
            lambda index: self._tokens(texts, index),
            self._modules.pooling,
            finish=_normalised if self._modules.is_normalised else None,
            progress=progress,
        )

    def count_tokens(self, texts: str | Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 [n_texts]: tokens of each text as it is read, cut to max_length. Raises as `embed`."""
        texts = as_texts([texts] if isinstance(texts, str) else texts, "texts")
        return np.array([len(self._tokens(texts, index).ids) for index in range(len(texts))], np.int32)

    def _tokens(self, texts: Sequence[str], index: int) -> Tokens:
        text, modules = texts[index], self._modules
        if isinstance(text, str):
            text = modules.prompt + text
            text = text.lower() if modules.is_lowered else text
        return self._encoder.tokenizer.encode(text, place=f"texts[{index}]")


def _normalised(rows: Floats) -> Floats:
    # The least norm is torch's.
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
