"""llm-decoder cache: packed weights kept on disk, so that a checkpoint is packed once."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from llm_decoder.cli._options import ConfigFlag, JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, emit_table, size

CacheFlag = Annotated[
    Path | None,
    typer.Option(metavar="DIR", envvar="LLM_DECODER_CACHE_DIR", show_envvar=False, help="The folder, as elsewhere."),
]


def list_cache(*, config: ConfigFlag = None, cache_dir: CacheFlag = None, as_json: JsonFlag = False) -> None:
    """List the packed weights on disk.

    The most recently used first. What a process left that was killed while it wrote is shown, too; the next one that
    writes deletes it.
    """
    from llm_decoder.weight_cache import list_entries, max_cache_bytes

    folder = _folder(config, cache_dir)
    entries = list_entries(folder)
    total = sum(entry.n_bytes for entry in entries)
    if as_json:
        emit_json({"folder": folder, "max_bytes": max_cache_bytes(), "n_bytes": total, "entries": entries})
        return
    if entries:
        rows = [
            (
                "left by a killed process" if entry.is_leftover else entry.model,
                entry.layout,
                size(entry.n_bytes),
                _day(entry.last_used_s),
            )
            for entry in entries
        ]
        emit_table(("MODEL", "LAYOUT", "SIZE", "LAST USED"), rows)
    n_models = sum(not entry.is_leftover for entry in entries)
    emit_line(f"{folder}: {n_models} models, {size(total)} of at most {size(max_cache_bytes())}")


def clear_cache(*, config: ConfigFlag = None, cache_dir: CacheFlag = None, as_json: JsonFlag = False) -> None:
    """Delete the packed weights on disk. They are made again when a model is next loaded."""
    from llm_decoder.weight_cache import clear

    folder = _folder(config, cache_dir)
    freed = clear(folder)
    if as_json:
        emit_json({"folder": folder, "freed_bytes": freed})
    else:
        emit_line(f"{folder}: {size(freed)} freed")


def _folder(config: Path | None, cache_dir: Path | None) -> Path:
    from llm_decoder.config.files import load_settings
    from llm_decoder.weight_cache import cache_folder

    return cache_folder(cache_dir or load_settings(config).paths.cache)


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
