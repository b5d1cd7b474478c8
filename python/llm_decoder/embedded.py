"""Where the model that ships inside the package lies."""

from __future__ import annotations

from pathlib import Path

from llm_decoder.errors import ModelNotFoundError

__all__ = ["EMBEDDED_NAME", "embedded_model", "is_embedded"]

EMBEDDED_NAME = "storyteller"


def is_embedded(model: str | Path | None) -> bool:
    """Whether this is what the embedded model is called: None, or its name where there is no such path."""
    return model is None or (model == EMBEDDED_NAME and not Path(EMBEDDED_NAME).exists())


def embedded_model() -> Path:
    """The folder of the embedded model. Raises ModelNotFoundError when this installation was made without it."""
    folder = Path(__file__).parent / "embedded" / EMBEDDED_NAME
    if not (folder / "config.json").exists():
        raise ModelNotFoundError(f"[{folder}] need the embedded model, got none; reinstall llm_decoder or name a model")
    return folder
