"""The encoders beside a language model: one scores its answers, one makes vectors of texts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from llm_decoder.embedded import embedded_reranker
from llm_decoder.errors import ConfigError, InvalidRequestError, ModelNotFoundError
from llm_decoder.search.scorers import Reranker

if TYPE_CHECKING:
    from llm_decoder.encoders.sentence_encoder import SentenceEncoder

__all__ = ["Companions"]


class Companions:
    """reranker: a folder, an object with `score`, or None, the embedded one. embedder: a folder, a SentenceEncoder or
    None, no such encoder. threads, isa: of what is opened here.

    Folders that are named are opened at once, so that what is wrong with them is said before anything else is loaded;
    the embedded one when it is first asked for. Raises ModelLoadError, ConfigError, BackendError.
    """

    def __init__(
        self,
        reranker: Reranker | str | Path | None = None,
        embedder: SentenceEncoder | str | Path | None = None,
        *,
        threads: int | None = None,
        isa: str = "auto",
    ) -> None:
        self._threads, self._isa = threads, isa
        self._opening = threading.Lock()
        self.is_reranker_embedded = reranker is None
        self._reranker: Reranker | None = self._open(reranker) if isinstance(reranker, str | Path) else reranker
        if reranker is not None and not callable(getattr(self._reranker, "score", None)):
            raise ConfigError(f"[reranker] need a folder, or an object with score(), got {type(reranker).__name__}")
        self.embedder: SentenceEncoder | None = None
        if isinstance(embedder, str | Path):
            from llm_decoder.encoders.sentence_encoder import SentenceEncoder

            self.embedder = SentenceEncoder(embedder, threads=threads, isa=isa)
        elif embedder is not None:
            if not callable(getattr(embedder, "embed", None)):
                raise ConfigError(f"[embedder] need a folder, or a SentenceEncoder, got {type(embedder).__name__}")
            self.embedder = embedder

    def has_reranker(self) -> bool:
        if self._reranker is not None:
            return True
        try:
            embedded_reranker()
        except ModelNotFoundError:
            return False
        return True

    def reranker(self) -> Reranker:
        """Raises InvalidRequestError where none was given and this installation has none."""
        with self._opening:
            if self._reranker is None:
                try:
                    folder = embedded_reranker()
                except ModelNotFoundError as error:
                    raise InvalidRequestError(
                        f'[scorer] "reranker" needs one: {error}; or make the LLM with LLM(..., reranker=FOLDER)',
                        param="scorer",
                    ) from error
                self._reranker = self._open(folder)
            return self._reranker

    @property
    def reranker_name(self) -> str | None:
        """What the reranker is called, None where there is none; opens nothing."""
        if self._reranker is None:
            try:
                return embedded_reranker().name
            except ModelNotFoundError:
                return None
        return _name(self._reranker)

    @property
    def embedder_name(self) -> str | None:
        """What the embedder is called, None where there is none."""
        return None if self.embedder is None else _name(self.embedder)

    def _open(self, folder: str | Path) -> Reranker:
        from llm_decoder.encoders.cross_encoder import CrossEncoder

        return CrossEncoder(folder, threads=self._threads, isa=self._isa)


def _name(encoder: object) -> str:
    """That of its folder; an object of somebody else's may have none."""
    return str(getattr(encoder, "name", type(encoder).__name__))
