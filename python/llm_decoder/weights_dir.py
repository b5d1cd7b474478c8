"""The `weights/` directory: raw little-endian files, one a weight, as weights/README.md draws it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.checkpoint import FileIdentity, identify_file, is_weights_directory
from llm_decoder.config.files import FILE_NAMES, read_table, read_weight_paths
from llm_decoder.config.schema import WeightFile, WeightPaths
from llm_decoder.errors import MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.json_file import read_json_object
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.models import parse_config
from llm_decoder.safetensors_file import to_float32

__all__ = ["INT8_FOLDER", "WeightsDirectory", "is_weights_directory", "standard_float_path", "standard_int8_paths"]

INT8_FOLDER = "int8"
FLOAT_DTYPES: dict[str, npt.DTypeLike] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


def standard_float_path(name: str) -> str:
    return f"{name}.bin"


def standard_int8_paths(name: str) -> tuple[str, str]:
    """(values, scales)"""
    return f"{INT8_FOLDER}/{name}.bin", f"{INT8_FOLDER}/{name}.scale.bin"


class WeightsDirectory:
    """The reader of one `weights/` directory.

    Matrices come from int8/ when `prefer_int8` and there are any, or when there are no float ones; vectors are always
    float. Checks on construction that every file is there, inside the directory, and of exactly the size that
    dtype and shape ask for. Raises ModelNotFoundError, MalformedFileError, UnsupportedModelError or ConfigError.
    """

    def __init__(self, folder: Path, *, prefer_int8: bool = True) -> None:
        self.path = folder
        self.config_folder = folder / "config" if (folder / "config").is_dir() else folder
        self.hf_config = _read_architecture(self.config_folder)
        self.config: ModelConfig = parse_config(self.hf_config, str(self.config_folder))
        shapes = weight_shapes(self.config)
        listed = _listed_files(self.config_folder, shapes)
        self._float = {name: file for name, file in (listed.float or {}).items() if name in shapes}
        self._int8 = self._choose_int8(listed, shapes, prefer_int8)
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, shape in shapes.items():
            self._map(name, shape)

    @property
    def is_int8(self) -> bool:
        """Whether matrices come from int8/."""
        return bool(self._int8)

    def names(self) -> Iterable[str]:
        return weight_shapes(self.config)

    def read(self, name: str) -> npt.NDArray[np.float32]:
        return self.rows(name, 0, self._arrays[name].shape[0])

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        stored = self.quantized_rows(name, begin, end)
        if stored is not None:
            return stored[0].astype(np.float32) * stored[1][:, np.newaxis]
        return to_float32(self._arrays[name][begin:end])

    def quantized_rows(
        self, name: str, begin: int, end: int
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
        if name not in self._int8:
            return None
        q = np.array(self._arrays[name][begin:end])
        scale = np.array(self._arrays[f"{name}.scale"][begin:end], dtype=np.float32)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise MalformedFileError(f"[{self.path / str(self._int8[name].scale)}] need finite scales above 0")
        if q.size and q.min() == -128:
            raise MalformedFileError(f"[{self.path / self._int8[name].path}] need values within -127..127, got -128")
        return q, scale

    def identity(self) -> list[FileIdentity]:
        text = json.dumps([self.hf_config, sorted(self._int8)], sort_keys=True)
        files = [file.path for name, file in self._float.items() if name not in self._int8]
        files += [path for file in self._int8.values() for path in (file.path, str(file.scale))]
        config_identity = FileIdentity("config", 0, 0, hashlib.sha256(text.encode()).hexdigest())
        return [config_identity] + [identify_file(self.path / path, "") for path in sorted(files)]

    def _choose_int8(
        self, listed: WeightPaths, shapes: Mapping[str, tuple[int, ...]], prefer_int8: bool
    ) -> dict[str, WeightFile]:
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        int8 = {name: file for name, file in (listed.int8 or {}).items() if name in matrices}
        # One file of a part is enough: what the part lacks is then named, never taken from the other part.
        has_float = any(name in self._float and self._exists(self._float[name].path) for name in matrices)
        has_int8 = any(self._exists(file.path) for file in int8.values())
        return int8 if has_int8 and (prefer_int8 or not has_float) else {}

    def _exists(self, relative: str) -> bool:
        return (self.path / relative).exists()

    def _map(self, name: str, shape: tuple[int, ...]) -> None:
        is_matrix = len(shape) == 2
        file = self._int8.get(name) if self._int8 and is_matrix else self._float.get(name)
        if file is None:
            raise MalformedFileError(
                f"[{self.config_folder / FILE_NAMES['weights']}] need an entry for {name!r}, got none"
            )
        place = f"{self.path / file.path}"
        if file.shape != shape:
            raise MalformedFileError(f"[{place}] need shape {list(shape)} for {name}, got {list(file.shape)}")
        dtypes: dict[str, npt.DTypeLike] = {"int8": "i1"} if name in self._int8 else FLOAT_DTYPES
        if file.dtype not in dtypes:
            raise UnsupportedModelError(f"[{place}] need dtype {' or '.join(dtypes)}, got {file.dtype[:40]!r}")
        self._arrays[name] = _map_file(self.path, file.path, dtypes[file.dtype], shape)
        if name in self._int8:
            scale = file.scale or standard_int8_paths(name)[1]
            self._arrays[f"{name}.scale"] = _map_file(self.path, scale, "<f4", shape[:1])


def _read_architecture(folder: Path) -> dict[str, Any]:
    """The HF config: `architecture` of model_config.yaml, or config.json."""
    path = folder / FILE_NAMES["model"]
    if path.exists():
        architecture = read_table(path).get("architecture")
        if isinstance(architecture, dict):
            return architecture
        if architecture is not None:
            raise MalformedFileError(f"[{path}: architecture] need a table, got {type(architecture).__name__}")
    if (folder / "config.json").exists():
        return read_json_object(folder / "config.json")
    raise ModelNotFoundError(f"[{path}] need the model's architecture here or in config.json, got neither")


def _listed_files(config_folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> WeightPaths:
    """weight_paths.yaml, what it leaves out filled in with the standard layout."""
    path = config_folder / FILE_NAMES["weights"]
    given = read_weight_paths(path) if path.exists() else WeightPaths()
    floats = given.float
    if floats is None:
        floats = {name: WeightFile(standard_float_path(name), "float32", shape) for name, shape in shapes.items()}
    int8 = given.int8
    if int8 is None:
        int8 = {}
        for name, shape in shapes.items():
            if len(shape) == 2:
                values, scale = standard_int8_paths(name)
                int8[name] = WeightFile(values, "int8", shape, scale)
    return WeightPaths(floats, int8)


def _map_file(root: Path, relative: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    path = _confined(root, relative)
    need = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"[{path}] need this file of {need:,} bytes, got none") from None
    if not stat.S_ISREG(status.st_mode):
        raise MalformedFileError(f"[{path}] need a regular file, got something else")
    if status.st_size != need:
        raise MalformedFileError(
            f"[{path}] need {need:,} bytes for shape {list(shape)} of {np.dtype(dtype)}, got {status.st_size:,}"
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)


def _confined(root: Path, relative: str) -> Path:
    """`relative` under `root`, refused when it leads out, by its words or by a link."""
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or ".." in parts or "\\" in relative or "\0" in relative:
        raise MalformedFileError(f"[{root}] need paths inside the directory, got {relative[:100]!r}")
    path = root / relative
    try:
        is_inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise MalformedFileError(f"[{path}] cannot be followed: {error}") from error
    if not is_inside:
        raise MalformedFileError(f"[{path}] need a file inside the directory, got a link that leads out of it")
    return path
