"""Where the models that ship inside the package lie."""

from __future__ import annotations

from pathlib import Path

from llm_decoder.errors import ModelNotFoundError

__all__ = ["EMBEDDED_NAME", "embedded_model", "embedded_reranker", "is_embedded"]

EMBEDDED_NAME = "storyteller"
_RERANKER_NAME = "reranker"


def is_embedded(model: str | Path | None) -> bool:
    """Whether this is what the embedded model is called: None, or its name where there is no such path."""
    return model is None or (model == EMBEDDED_NAME and not Path(EMBEDDED_NAME).exists())


def embedded_model() -> Path:
    """The folder of the embedded model. Raises ModelNotFoundError when this installation was made without it."""
    return _embedded(EMBEDDED_NAME, "model")


def embedded_reranker() -> Path:
    """The folder of the embedded cross-encoder. Raises ModelNotFoundError when this installation was made without
    it."""
    return _embedded(_RERANKER_NAME, "reranker")


def _embedded(name: str, what: str) -> Path:
    folder = Path(__file__).parent / "embedded" / name
    if not (folder / "config.json").exists():
        raise ModelNotFoundError(
            f"[{folder}] need the embedded {what}, got none; reinstall llm_decoder or name a {what}"
        )
    return folder
