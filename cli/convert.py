"""llm-decoder convert: a checkpoint as a weights/ directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from llm_decoder.cli._options import JsonFlag


def convert(
    *,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="HF folder or hub id.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where the weights/ directory is written.")],
    as_json: JsonFlag = False,
) -> None:
    """Write a model as a weights/ directory.

    Raw .bin files, float and int8, with the five settings files beside them.
    """
