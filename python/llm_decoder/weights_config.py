"""Which settings describe a `weights/` directory: its architecture, and where its files lie.

Both come from the first of these that has an architecture: the directory's own `config/`, the directory itself, the
settings folder in force, the folder `config` beside the directory. A table that nothing reads is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_decoder.checkpoint import is_weights_directory
from llm_decoder.config.files import FILE_NAMES, read_table, read_weight_paths
from llm_decoder.config.schema import WeightFile, WeightPaths
from llm_decoder.errors import ConfigError, MalformedFileError, ModelNotFoundError
from llm_decoder.json_file import read_json_object
from llm_decoder.packed_tensor import W8_IN_COARSER

__all__ = [
    "INT4_FOLDER",
    "INT8_FOLDER",
    "find_architecture",
    "listed_files",
    "refuse_unread_settings",
    "standard_float_path",
    "standard_int4_file",
    "standard_int8_file",
]

INT8_FOLDER = "int8"
INT4_FOLDER = "int4"


def standard_float_path(name: str) -> str:
    return f"{name}.bin"


def standard_int8_file(name: str, shape: tuple[int, ...]) -> WeightFile:
    return WeightFile(f"{INT8_FOLDER}/{name}.bin", "int8", shape, f"{INT8_FOLDER}/{name}.scale.bin")


def standard_int4_file(name: str, shape: tuple[int, ...]) -> WeightFile:
    dtype = "int8" if name in W8_IN_COARSER else "int4"
    return WeightFile(f"{INT4_FOLDER}/{name}.bin", dtype, shape, f"{INT4_FOLDER}/{name}.scale.bin")


def find_architecture(folder: Path, config_dir: Path | None) -> tuple[Path, dict[str, Any]]:
    """(the folder whose config describes the directory `folder`, the architecture as HF's config.json has it)"""
    beside = Path(os.path.abspath(folder)).parent / "config"
    places = [folder / "config", folder, *([] if config_dir is None else [config_dir]), beside]
    passed_over = None
    for place in places:
        architecture = _read_architecture(place)
        if architecture is not None and passed_over is not None:
            raise ConfigError(
                f"[{passed_over}] need null, for the architecture is that of {place}, whose weight paths count; "
                "keep both in one folder"
            )
        if architecture is not None:
            return place, architecture
        passed_over = passed_over or _described_table(place)
    names = ", ".join(dict.fromkeys(map(str, places)))
    raise ModelNotFoundError(
        f"[{folder}] need its architecture, in {FILE_NAMES['model']} or config.json of {names}, got none; "
        "`llm-decoder convert` writes it"
    )


def listed_files(config_folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> WeightPaths:
    """weight_paths.yaml, what it leaves out filled in with the standard layout."""
    path = config_folder / FILE_NAMES["weights"]
    given = read_weight_paths(path) if path.exists() else WeightPaths()
    floats = given.float
    if floats is None:
        floats = {name: WeightFile(standard_float_path(name), "float32", shape) for name, shape in shapes.items()}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    int8, int4 = given.int8, given.int4
    if int8 is None:
        int8 = {name: standard_int8_file(name, shape) for name, shape in matrices.items()}
    if int4 is None:
        int4 = {name: standard_int4_file(name, shape) for name, shape in matrices.items()}
    return WeightPaths(floats, int8, int4)


def refuse_unread_settings(config_dir: Path, model: str | Path | None) -> None:
    """Raises ConfigError when the settings folder has an architecture or weight paths that opening `model` (None: the
    embedded one) does not read, or when it is no folder."""
    if not config_dir.is_dir():
        raise ConfigError(f"[config_dir] need a folder with settings files, got {str(config_dir)!r:.200}")
    table = _described_table(config_dir)
    if table is None:
        return
    folder = None if model is None else _local_weights_directory(model)
    if folder is not None:
        read, _ = find_architecture(folder, config_dir)
        if read.resolve() == config_dir.resolve():
            return
        got = f"one, and {folder} takes its own from {read}"
    else:
        got = f"one, and {model or 'the embedded model'} is no such directory"
    raise ConfigError(
        f"[{table}] need null unless a weights directory without a config of its own is opened, got {got}; name the "
        "directory that it describes as the model, or in paths.json"
    )


def _described_table(config_dir: Path) -> str | None:
    """Where a settings folder describes a weights directory, if it does."""
    for file, keys in (("model", ("architecture",)), ("weights", ("float", "int8", "int4"))):
        path = config_dir / FILE_NAMES[file]
        table = read_table(path) if path.exists() else {}
        for key in keys:
            if table.get(key) is not None:
                return f"{path}: {key}"
    return None


def _local_weights_directory(model: str | Path) -> Path | None:
    try:
        folder = Path(model).expanduser()
        return folder if is_weights_directory(folder) else None
    except (OSError, RuntimeError, ValueError):  # no name of a folder at all: whoever opens it says so
        return None


def _read_architecture(folder: Path) -> dict[str, Any] | None:
    """`architecture` of model_config.yaml, or config.json; None where neither is given."""
    path = folder / FILE_NAMES["model"]
    if path.exists():
        architecture = read_table(path).get("architecture")
        if isinstance(architecture, dict):
            return architecture
        if architecture is not None:
            raise MalformedFileError(f"[{path}: architecture] need a table, got {type(architecture).__name__}")
    return read_json_object(folder / "config.json") if (folder / "config.json").exists() else None
