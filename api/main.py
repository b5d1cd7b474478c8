"""`uvicorn api.main:app` from a checkout, `uvicorn llm_decoder.api.main:app` from anywhere: what LLM_DECODER_* and the
settings files ask for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    app: FastAPI

__all__ = ["app"]


def __getattr__(name: str) -> FastAPI:
    """`app` is made when it is first asked for: whoever only imports this opens no model."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = _make_app()
    return made


def _make_app() -> FastAPI:
    _find_package()
    from llm_decoder.api.app import create_app
    from llm_decoder.serving.opening import service_from_environment

    return create_app(service_from_environment())


def _find_package() -> None:
    """A checkout that is built but not installed has the package in build/python."""
    tree = Path(__file__).resolve().parents[1] / "build" / "python"
    if importlib.util.find_spec("llm_decoder") is None and any((tree / "llm_decoder").glob("_core*")):
        sys.path.insert(0, str(tree))
