"""llm-decoder convert: a checkpoint as a weights/ directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, loading_bar


def convert(
    *,
    source: Annotated[str, typer.Argument(metavar="MODEL", help="HF folder, hub id, or storyteller.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Where the weights/ directory is written.")],
    float_weights: Annotated[bool, typer.Option("--float/--no-float", help="Write the weights as they are.")] = True,
    int8: Annotated[bool, typer.Option(help="Write the matrices quantised to int8.")] = True,
    int4: Annotated[bool, typer.Option("--int4", help="Write the matrices quantised to int4, too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that has files.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a model as a weights/ directory.

    Raw .bin files, float, int8 and, if asked for, int4, tokenizer and settings beside them. DIR is complete or not
    there at all.
    """
    if not (float_weights or int8 or int4):
        raise typer.BadParameter("one of --float, --int8 and --int4 must be written", param_hint="--no-float")
    from llm_decoder.convert import convert as write_directory

    with loading_bar() as progress:
        written = write_directory(
            source, target, float_weights=float_weights, int8=int8, int4=int4, overwrite=overwrite, progress=progress
        )
    if as_json:
        n_bytes = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
        emit_json({"path": written, "n_bytes": n_bytes})
    else:
        emit_line(str(written))
