"""llm-decoder list and show: which models are here, and what one of them is."""

from __future__ import annotations

from typing import Annotated

import typer
from llm_decoder.cli._options import JsonFlag, ModelOptions


def list_models(*, as_json: JsonFlag = False) -> None:
    """List the models on this machine."""


def show_model(
    *,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    model: ModelOptions,
    as_json: JsonFlag = False,
) -> None:
    """Show a model."""
