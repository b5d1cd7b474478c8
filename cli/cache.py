"""llm-decoder cache: quantised weights kept on disk, so that a checkpoint is quantised once."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, emit_table, size

ConfigFlag = Annotated[
    Path | None,
    typer.Option(metavar="DIR", envvar="LLM_DECODER_CONFIG", show_envvar=False, help="Settings files, as elsewhere."),
]


def list_cache(*, config: ConfigFlag = None, as_json: JsonFlag = False) -> None:
    """List the quantised weights on disk, the most recently used first."""
    from llm_decoder.weight_cache import list_entries, max_cache_bytes

    folder = _folder(config)
    entries = list_entries(folder)
    total = sum(entry.n_bytes for entry in entries)
    if as_json:
        emit_json({"folder": folder, "max_bytes": max_cache_bytes(), "n_bytes": total, "entries": entries})
        return
    if entries:
        rows = [(entry.model, entry.layout, size(entry.n_bytes), _day(entry.last_used_s)) for entry in entries]
        emit_table(("MODEL", "LAYOUT", "SIZE", "LAST USED"), rows)
    emit_line(f"{folder}: {len(entries)} models, {size(total)} of at most {size(max_cache_bytes())}")


def clear_cache(*, config: ConfigFlag = None, as_json: JsonFlag = False) -> None:
    """Delete the quantised weights on disk. They are made again when a model is next loaded."""
    from llm_decoder.weight_cache import clear

    folder = _folder(config)
    freed = clear(folder)
    if as_json:
        emit_json({"folder": folder, "freed_bytes": freed})
    else:
        emit_line(f"{folder}: {size(freed)} freed")


def _folder(config: Path | None) -> Path:
    from llm_decoder.config.files import load_settings
    from llm_decoder.weight_cache import cache_folder

    return cache_folder(load_settings(config).paths.cache)


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
