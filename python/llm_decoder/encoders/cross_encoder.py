"""Cross-encoders: a query and a document read together, one number how well they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_decoder.encoders.encoder import Encoder, Progress, as_texts
from llm_decoder.encoders.pair_tokenizer import Part, Tokens
from llm_decoder.errors import InvalidRequestError

__all__ = ["CrossEncoder", "RankedDocument", "ReadPairs"]

Floats = npt.NDArray[np.float32]
_ACTIVATIONS = ("none", "sigmoid")


@dataclass(frozen=True)
class RankedDocument:
    """One of the documents that were ranked: its place among those given, and its score."""

    index: int
    score: float


@dataclass(frozen=True)
class ReadPairs:
    """Pairs that were scored. scores: float32 [n_pairs]. n_tokens: int32 [n_pairs], of each pair as it was read.
    is_cut: bool [n_pairs], whether it was longer than max_length."""

    scores: Floats
    n_tokens: npt.NDArray[np.int32]
    is_cut: npt.NDArray[np.bool_]


class CrossEncoder:
    """A reranker: scores how well documents answer a query (Nogueira and Cho 2019). Safe to use from several threads.

    folder: with config.json, safetensors and a tokenizer, as transformers and sentence-transformers save one: BERT,
    DistilBERT, RoBERTa, XLM-R, CamemBERT or ModernBERT for sequence classification with one label. quantization:
    "int8" (the matrices, when they are loaded), or "none" (float32). threads: None = LLM_DECODER_THREADS, else one a
    physical core that this process may use. max_length: tokens of a pair; None = as many as model and tokenizer take.
    A longer pair loses the end of its longer text and is counted in n_truncated.

    Scores are logits as the model gives them, of any size; a pair's score never depends on what else is scored.
    Raises ModelNotFoundError, UnsupportedModelError, MalformedFileError, ConfigError or BackendError.
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
        self._encoder = Encoder(
            folder, with_head=True, quantization=quantization, threads=threads, max_length=max_length, isa=isa
        )
        assert self._encoder.head is not None
        self._head = self._encoder.head
        self._last_query: dict[str, Part] = {}  # a search by steps asks about one again and again

    @property
    def name(self) -> str:
        """What the model is called: its folder's name."""
        return self._encoder.path.name

    @property
    def path(self) -> Path:
        """Where it was read from."""
        return self._encoder.path

    @property
    def max_length(self) -> int:
        """Tokens of a pair, those that the model puts around it included."""
        return self._encoder.tokenizer.max_length

    @property
    def n_truncated(self) -> int:
        """How many of the pairs scored so far were longer than max_length."""
        return self._encoder.n_truncated

    def score(
        self,
        query: str,
        documents: Sequence[str],
        *,
        activation: str = "none",
        progress: Progress | None = None,
    ) -> Floats:
        """float32 [n_documents]: how well each document fits the query.

        activation: "none" (logits), or "sigmoid" (in 0..1, the same order). progress(n_done, n_total).
        Raises InvalidRequestError for what is no text or no list, RequestFailedError where a score is not finite.
        """
        pairs = [(query, document) for document in as_texts(documents, "documents")]
        if not pairs:
            self._encoder.tokenizer.encode(query, place="query")  # a query that is none is refused all the same
        places = [("query", f"documents[{index}]") for index in range(len(pairs))]
        return self._read(pairs, places, activation, progress).scores

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        activation: str = "none",
        progress: Progress | None = None,
    ) -> Floats:
        """float32 [n_pairs]: the scores of (query, document) pairs. Else as `score`."""
        return self.read_pairs(pairs, activation=activation, progress=progress).scores

    def read_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        activation: str = "none",
        progress: Progress | None = None,
    ) -> ReadPairs:
        """As `score_pairs`, with the numbers of tokens that were read."""
        pairs = as_texts(pairs, "pairs")
        for index, pair in enumerate(pairs):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise InvalidRequestError(
                    f"[pairs[{index}]] need a query and a document, got {type(pair).__name__}", param="pairs"
                )
        places = [(f"pairs[{index}][0]", f"pairs[{index}][1]") for index in range(len(pairs))]
        return self._read(pairs, places, activation, progress)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        activation: str = "none",
        progress: Progress | None = None,
    ) -> list[RankedDocument]:
        """The documents, the best first; of equal ones the one that stands first. top_n: only so many of them.

        Raises as `score`, and InvalidRequestError for a top_n below 1.
        """
        if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
            raise InvalidRequestError(f"[top_n] need an integer of at least 1, got {top_n!r:.40}", param="top_n")
        scores = self.score(query, documents, activation=activation, progress=progress)
        order = np.argsort(-scores, kind="stable")[:top_n]
        return [RankedDocument(int(index), float(scores[index])) for index in order]

    def count_tokens(self, query: str, documents: Sequence[str]) -> npt.NDArray[np.int32]:
        """int32 [n_documents]: tokens of each pair as it is read, cut to max_length. Raises as `score`."""
        pairs = [(query, document) for document in as_texts(documents, "documents")]
        tokenize = self._tokenize(pairs, [("query", f"documents[{index}]") for index in range(len(pairs))])
        return np.array([len(tokenize(index).ids) for index in range(len(pairs))], np.int32)

    def _tokenize(self, pairs: Sequence[tuple[str, str]], places: Sequence[tuple[str, str]]) -> Callable[[int], Tokens]:
        """Makes tokens of a pair by its index. A query that stands in many is read once, however long it is."""
        tokenizer = self._encoder.tokenizer
        queries = dict(self._last_query)

        def tokenize(index: int) -> Tokens:
            (query, document), (place, other_place) = pairs[index], places[index]
            part = queries.get(query) if isinstance(query, str) else None
            if part is None:
                part = queries[query] = tokenizer.part(query, place=place)
                self._last_query = {query: part}
            return tokenizer.pair(part, tokenizer.part(document, place=other_place))

        return tokenize

    def _read(
        self,
        pairs: Sequence[tuple[str, str]],
        places: Sequence[tuple[str, str]],
        activation: str,
        progress: Progress | None,
    ) -> ReadPairs:
        if activation not in _ACTIVATIONS:
            raise InvalidRequestError(
                f"[activation] need {' or '.join(_ACTIVATIONS)}, got {activation!r:.40}", param="activation"
            )
        n_tokens, is_cut = np.zeros(len(pairs), np.int32), np.zeros(len(pairs), np.bool_)
        tokenize = self._tokenize(pairs, places)

        def counted(index: int) -> Tokens:
            tokens = tokenize(index)
            n_tokens[index], is_cut[index] = len(tokens.ids), tokens.is_cut
            return tokens

        logits = self._encoder.run(
            len(pairs), counted, self._head.config.pooling, finish=self._head.logits, progress=progress
        )
        return ReadPairs(logits if activation == "none" else _sigmoid(logits), n_tokens, is_cut)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x.astype(np.float64))), np.float32)
