"""The `weights/` directory: raw little-endian files, one a weight, as weights/README.md draws it.

weights_config.py says which settings describe it. A file of a weight that these do not name is an error: running
without it could change the output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.checkpoint import FileIdentity, Groups, Part, identify_file, is_weights_directory
from llm_decoder.config.files import FILE_NAMES
from llm_decoder.config.schema import WeightFile, WeightPaths
from llm_decoder.errors import MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.models import parse_config
from llm_decoder.packed_tensor import GROUP_WIDTH
from llm_decoder.safetensors_file import to_float32
from llm_decoder.weights_config import (
    INT4_FOLDER,
    INT8_FOLDER,
    find_architecture,
    listed_files,
    standard_int4_file,
    standard_int8_file,
)

__all__ = ["WeightsDirectory", "group_bytes", "is_weights_directory", "stored_bytes"]

FLOAT_DTYPES: dict[str, npt.DTypeLike] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_INTEGER_DTYPES: dict[Part, dict[str, npt.DTypeLike]] = {"int8": {"int8": "i1"}, "int4": {"int4": "u1", "int8": "i1"}}
# Where matrices are taken from, by what is wanted: what loses least first.
_SEARCHED: dict[Part, tuple[Part, ...]] = {
    "float": ("float", "int8", "int4"),
    "int8": ("int8", "float", "int4"),
    "int4": ("int4", "float", "int8"),
}
# A group of int4: its scale, its minimum + 128, and two values a byte, the first of them in the low half.
_GROUP_BYTES = 2 + GROUP_WIDTH // 2
# What a file of a weight is called by standard, whatever the family.
_PART = re.compile(
    r"(embedding|final_norm|lm_head"
    r"|layer_\d+/(ln1|ln2|attn_[qkvo]|mlp_gate|mlp_up|mlp_down|mlp_fc1|mlp_fc2|q_norm|k_norm))(\.bias)?"
)


class WeightsDirectory:
    """The reader of one `weights/` directory.

    Matrices come from the `preferred` part when there are any, else from the next best one; vectors are always float.
    `config_dir` is the settings folder in force, which counts when the directory has no config of its own.

    Checks on construction that every file is there, inside the directory, and of exactly the size that dtype and shape
    ask for, and that no weight is left over. Raises ModelNotFoundError, MalformedFileError, UnsupportedModelError or
    ConfigError.
    """

    def __init__(self, folder: Path, preferred: Part = "int8", *, config_dir: Path | None = None) -> None:
        self.path = folder
        self.config_folder, self.hf_config = find_architecture(folder, config_dir)
        self.config: ModelConfig = parse_config(self.hf_config, str(self.config_folder))
        shapes = weight_shapes(self.config)
        listed = listed_files(self.config_folder, shapes)
        self._refuse_listed_strangers(listed, shapes)
        self._float = dict(listed.float or {})
        self._parts = self._find_parts(listed)
        self.part: Part = next((part for part in _SEARCHED[preferred] if part in self._parts), "float")
        self._quantized = {} if self.part == "float" else self._parts[self.part]
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, shape in shapes.items():
            self._map(name, shape)
        self._refuse_files_left_over(listed, shapes)

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def stored_dtype(self, name: str) -> str:
        return (self._quantized.get(name) or self._float[name]).dtype

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
        if name not in self._quantized:
            return None
        groups = self.grouped_rows(name, begin, end)
        if groups is not None:
            n_in = groups.q.shape[1]
            scale, minimum = (
                np.repeat(values.astype(np.int16), GROUP_WIDTH, axis=1)[:, :n_in]
                for values in (groups.group_scale, groups.group_min)
            )
            return (scale * groups.q + minimum).astype(np.int8), groups.scale
        q = np.array(self._arrays[name][begin:end])
        if q.size and q.min() == -128:
            raise MalformedFileError(
                f"[{self.path / self._quantized[name].path}] need values within -127..127, got -128"
            )
        return q, self._scales(name, begin, end)

    def fp8_rows(self, name: str, begin: int, end: int) -> None:
        return None

    def grouped_rows(self, name: str, begin: int, end: int) -> Groups | None:
        if name not in self._quantized or self._quantized[name].dtype != "int4":
            return None
        stored = self._arrays[name][begin:end]
        scale, minimum = stored[:, :, 0], stored[:, :, 1].astype(np.int16) - 128
        is_legal = (scale >= 1) & (scale <= 16) & (minimum >= -127) & (minimum + 15 * scale.astype(np.int16) <= 127)
        if not is_legal.all():
            raise MalformedFileError(
                f"[{self.path / self._quantized[name].path}] need groups with a scale in 1..16, within -127..127"
            )
        halves = stored[:, :, 2:]
        q = np.stack([halves & 15, halves >> 4], axis=3).reshape(len(stored), -1)
        n_in = self._quantized[name].shape[1]
        return Groups(
            np.ascontiguousarray(q[:, :n_in]),
            np.ascontiguousarray(scale),
            minimum.astype(np.int8),
            self._scales(name, begin, end),
        )

    def _scales(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        scale = np.array(self._arrays[f"{name}.scale"][begin:end], dtype=np.float32)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise MalformedFileError(f"[{self.path / str(self._quantized[name].scale)}] need finite scales above 0")
        return scale

    def identity(self) -> list[FileIdentity]:
        tables = [
            {name: dataclasses.asdict(file) for name, file in table.items()} for table in (self._float, self._quantized)
        ]
        text = json.dumps([self.hf_config, *tables], sort_keys=True)
        files = [file.path for name, file in self._float.items() if name not in self._quantized]
        files += [path for file in self._quantized.values() for path in (file.path, str(file.scale))]
        config_identity = FileIdentity("config", 0, 0, hashlib.sha256(text.encode()).hexdigest())
        return [config_identity] + [identify_file(self.path / path, "") for path in sorted(files)]

    def _find_parts(self, listed: WeightPaths) -> dict[Part, dict[str, WeightFile]]:
        """The parts that are there. One file of a part is enough: what the part lacks is then named, never taken from
        another part."""
        matrices = {name: shape for name, shape in weight_shapes(self.config).items() if len(shape) == 2}
        tables: dict[Part, dict[str, WeightFile]] = {
            "float": {name: file for name, file in self._float.items() if name in matrices},
            "int8": _with_scales(listed.int8 or {}, standard_int8_file),
            "int4": _with_scales(listed.int4 or {}, standard_int4_file),
        }
        return {
            part: table for part, table in tables.items() if any(self._exists(file.path) for file in table.values())
        }

    def _exists(self, relative: str) -> bool:
        return (self.path / relative).exists()

    def _map(self, name: str, shape: tuple[int, ...]) -> None:
        is_matrix = len(shape) == 2
        file = self._quantized.get(name) if self._quantized and is_matrix else self._float.get(name)
        if file is None:
            raise MalformedFileError(
                f"[{self.config_folder / FILE_NAMES['weights']}] need an entry for {name!r}, got none"
            )
        place = f"{self.path / file.path}"
        if file.shape != shape:
            raise MalformedFileError(f"[{place}] need shape {list(shape)} for {name}, got {list(file.shape)}")
        dtypes = _INTEGER_DTYPES[self.part] if name in self._quantized else FLOAT_DTYPES
        if file.dtype not in dtypes:
            raise UnsupportedModelError(f"[{place}] need dtype {' or '.join(dtypes)}, got {file.dtype[:40]!r}")
        self._arrays[name] = _map_file(self.path, file.path, dtypes[file.dtype], _stored_shape(file))
        if name in self._quantized:
            self._arrays[f"{name}.scale"] = _map_file(self.path, str(file.scale), "<f4", shape[:1])

    def _refuse_listed_strangers(self, listed: WeightPaths, shapes: Mapping[str, tuple[int, ...]]) -> None:
        place = self.config_folder / FILE_NAMES["weights"]
        for name in listed.float or {}:
            if name not in shapes:
                raise self._left_over(f"{place}: float", name)
        for part, table in (("int8", listed.int8), ("int4", listed.int4)):
            for name in table or {}:
                if name not in shapes:
                    raise self._left_over(f"{place}: {part}", name)
                if len(shapes[name]) != 2:
                    raise UnsupportedModelError(
                        f"[{place}: {part}] need matrices alone, got the vector {name!r}; remove it"
                    )

    def _refuse_files_left_over(self, listed: WeightPaths, shapes: Mapping[str, tuple[int, ...]]) -> None:
        used = {file.path for table in (listed.float, listed.int8, listed.int4) for file in (table or {}).values()}
        for root in (self.path, self.path / INT8_FOLDER, self.path / INT4_FOLDER):
            for path in sorted([*root.glob("*.bin"), *root.glob("layer_*/*.bin")]):
                name = path.relative_to(root).as_posix().removesuffix(".bin").removesuffix(".scale")
                is_known = _PART.fullmatch(name) is not None
                if is_known and name not in shapes and path.relative_to(self.path).as_posix() not in used:
                    raise self._left_over(str(path), name)

    def _left_over(self, place: str, name: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"[{place}] need weights of the architecture in {self.config_folder}, got {name[:100]!r}, which it has no "
            f"place for ({_knob_of(name, self.config)}); running without it would change the output: correct the "
            "architecture, or remove it"
        )


def group_bytes(groups: Groups) -> npt.NDArray[np.uint8]:
    """Rows in 4 bits as a file has them: uint8 [n, ceil(k / 32), 18]."""
    n_rows, n_in = groups.q.shape
    n_groups = groups.group_scale.shape[1]
    stored = np.zeros((n_rows, n_groups, _GROUP_BYTES), np.uint8)
    stored[:, :, 0] = groups.group_scale
    stored[:, :, 1] = groups.group_min.astype(np.int16) + 128
    q = np.pad(groups.q, ((0, 0), (0, n_groups * GROUP_WIDTH - n_in))).reshape(n_rows, n_groups, -1, 2)
    stored[:, :, 2:] = q[..., 0] | q[..., 1] << 4
    return stored


def stored_bytes(file: WeightFile) -> int:
    """Bytes of a quantised matrix and its scales."""
    return math.prod(_stored_shape(file)) + 4 * file.shape[0]


def _stored_shape(file: WeightFile) -> tuple[int, ...]:
    if file.dtype != "int4":
        return file.shape
    return (file.shape[0], -(-file.shape[1] // GROUP_WIDTH), _GROUP_BYTES)


def _with_scales(
    table: Mapping[str, WeightFile], standard: Callable[[str, tuple[int, ...]], WeightFile]
) -> dict[str, WeightFile]:
    """The files, those that name no scales with those of the standard layout."""
    return {
        name: file if file.scale else dataclasses.replace(file, scale=standard(name, file.shape).scale)
        for name, file in table.items()
    }


def _knob_of(name: str, config: ModelConfig) -> str:
    """What of the architecture decides whether there is such a weight."""
    layer, _, part = name.rpartition("/")
    number = layer.removeprefix("layer_")
    if number.isdecimal() and int(number) >= config.n_layers:
        return f"num_hidden_layers is {config.n_layers}"
    if name == "lm_head":
        return "tie_word_embeddings is true"
    if part in ("q_norm", "k_norm"):
        return f"model_type {config.model_type} has no q/k norm"
    if re.fullmatch(r"attn_[qkvo]\.bias", part):
        return f"attention_bias, or what model_type {config.model_type} stands for"
    if re.fullmatch(r"mlp_(gate|up|down)\.bias", part):
        return "mlp_bias is false"
    return f"model_type {config.model_type} has no such part"


def _map_file(root: Path, relative: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    path = _confined(root, relative)
    need = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"[{path}] need this file of {need:,} bytes, got none") from None
    except OSError as error:
        raise MalformedFileError(f"[{path}] cannot be read: {error}") from error
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
