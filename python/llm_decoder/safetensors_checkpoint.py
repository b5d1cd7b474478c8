"""A HF folder: config.json and one or more safetensors files, as our names and float32 rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.checkpoint import FileIdentity, identify_file
from llm_decoder.errors import MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.fp8_checkpoint import ACTIVATION_SCALE, BLOCK_SCALE, FP8, SCALE, fp8_values, is_scale_shape
from llm_decoder.json_file import read_json_object
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.models import parse_config, tensor_names
from llm_decoder.safetensors_file import SafetensorsFile

__all__ = ["SafetensorsCheckpoint", "open_weight_files"]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 64 * 2**20
MAX_SHARDS = 4096
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPE_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", FP8: "fp8"}
# Buffers that old versions of transformers saved and that every version recomputes.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias")
_COMPARED_ROWS = 4096


class SafetensorsCheckpoint:
    """The reader of one HF folder. Checks on construction that every weight is there with its shape, and no other.

    Raises ModelNotFoundError, UnsupportedModelError or MalformedFileError; each names the file and the tensor or field.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.config_folder = folder
        self.hf_config: dict[str, Any] = read_json_object(folder / "config.json")
        config = parse_config(self.hf_config, str(folder / "config.json"))
        self._files = [SafetensorsFile(path) for path in _weight_files(folder)]
        self._file_of = _merge(self._files)
        self.config, self._names = self._match(config)

    def stored_dtype(self, name: str) -> str:
        theirs = self._names[name]
        return _DTYPE_NAMES[self._file_of[theirs].entries[theirs].dtype]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        return self._floats(self._names[name], 0, None)

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        return self._floats(self._names[name], begin, end)

    def fp8_rows(self, name: str, begin: int, end: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]] | None:
        theirs = self._names[name]
        return self._codes(theirs, begin, end) if self._is_fp8(theirs) else None

    def quantized_rows(self, name: str, begin: int, end: int) -> None:
        return None

    def grouped_rows(self, name: str, begin: int, end: int) -> None:
        return None

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(sorted({self.stored_dtype(name) for name in weight_shapes(self.config)}))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a weight as they are stored, little-endian and row-major, mapped."""
        theirs = self._names[name]
        return self._file_of[theirs].raw(theirs)

    def identity(self) -> list[FileIdentity]:
        config_hash = hashlib.sha256(json.dumps(self.hf_config, sort_keys=True).encode()).hexdigest()
        config_identity = FileIdentity("config.json", 0, 0, config_hash)
        return [config_identity] + [identify_file(file.path, file.header_hash) for file in self._files]

    def _match(self, config: ModelConfig) -> tuple[ModelConfig, dict[str, str]]:
        """Names of ours -> theirs, with the config's word on tying held against the tensors that are there."""
        names = tensor_names(config)
        if config.tie_word_embeddings and "lm_head.weight" in self._file_of:
            if names["embedding"] not in self._file_of:
                names["embedding"] = "lm_head.weight"
            elif not self._are_equal("lm_head.weight", names["embedding"]):
                # Both are stored and differ: then the flag is wrong, as transformers judges too.
                config = dataclasses.replace(config, tie_word_embeddings=False)
                names = tensor_names(config)
        for ours, shape in weight_shapes(config).items():
            self._check(names[ours], shape)
        extra = {name for name in self._file_of if not name.endswith(IGNORED_SUFFIXES)} - set(names.values())
        extra.discard("lm_head.weight" if config.tie_word_embeddings else "")
        for name in filter(self._is_fp8, names.values()):
            extra -= {_beside(name, SCALE), _beside(name, ACTIVATION_SCALE)}
        if extra:
            raise UnsupportedModelError(
                f"[{self.path}] {len(extra)} tensors have no place in a {config.model_type} model with this config, "
                f"first {min(extra)[:100]!r}; running without them would change the output"
            )
        return config, names

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._file_of:
            raise MalformedFileError(
                f"[{self.path}] need the tensor {name!r} of shape {list(shape)}, got none; is the download complete?"
            )
        entry = self._file_of[name].entries[name]
        if entry.shape != shape:
            raise MalformedFileError(
                f"[{self._file_of[name].path}: {name}] need shape {list(shape)} as config.json says, "
                f"got {list(entry.shape)}"
            )
        if self._is_fp8(name):
            self._check_fp8(name, shape)
        else:
            self._file_of[name].rows(name, 0, 0)  # refuses dtypes that are no floats

    def _check_fp8(self, name: str, shape: tuple[int, ...]) -> None:
        scale = _beside(name, SCALE)
        if _beside(name, BLOCK_SCALE) in self._file_of:
            raise UnsupportedModelError(
                f"[{self.path}: {name}] need fp8 with a scale for each row or one for all, got scales of blocks; "
                "use another checkpoint of this model"
            )
        if scale not in self._file_of:
            raise MalformedFileError(f"[{self.path}: {name}] need its scale {scale!r}, got none")
        entry = self._file_of[scale].entries[scale]
        if len(shape) != 2 or not is_scale_shape(entry.shape, shape[0]):
            raise UnsupportedModelError(
                f"[{self.path}: {scale}] need a scale for each of {shape[0]} rows of a matrix or one for all, "
                f"got shape {list(entry.shape)}"
            )
        self._file_of[scale].rows(scale)

    def _is_fp8(self, name: str) -> bool:
        return self._file_of[name].entries[name].dtype == FP8

    def _codes(self, name: str, begin: int, end: int | None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        file, scale = self._file_of[name], _beside(name, SCALE)
        n_rows, _ = shape = file.entries[name].shape
        codes = np.ascontiguousarray(file.raw(name).reshape(shape)[begin:end])
        scales = np.broadcast_to(self._file_of[scale].rows(scale).reshape(-1), n_rows)[begin:end]
        return codes, np.where((codes & 0x7F == 0x7F).any(axis=1), np.float32(np.nan), scales)

    def _floats(self, name: str, begin: int, end: int | None) -> npt.NDArray[np.float32]:
        if not self._is_fp8(name):
            return self._file_of[name].rows(name, begin, end)
        codes, scale = self._codes(name, begin, end)
        return fp8_values(codes) * scale[:, None]

    def _are_equal(self, one: str, other: str) -> bool:
        files = self._file_of
        a, b = files[one].entries[one], files[other].entries[other]
        if a.shape != b.shape or len(a.shape) != 2:
            return False
        return all(
            np.array_equal(
                files[one].rows(one, begin, begin + _COMPARED_ROWS),
                files[other].rows(other, begin, begin + _COMPARED_ROWS),
            )
            for begin in range(0, a.shape[0], _COMPARED_ROWS)
        )


def _beside(name: str, what: str) -> str:
    """The name of what goes with a matrix."""
    return name.removesuffix("weight") + what


def open_weight_files(folder: Path) -> dict[str, SafetensorsFile]:
    """Every tensor's name in a HF folder -> the file that holds it.

    Raises ModelNotFoundError, UnsupportedModelError (pickles alone) or MalformedFileError.
    """
    return _merge([SafetensorsFile(path) for path in _weight_files(folder)])


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those its index names, else the single one."""
    index = folder / INDEX_NAME
    if index.exists():
        weight_map = read_json_object(index, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise MalformedFileError(f"[{index}: weight_map] need an object of tensor name -> file name")
        file_names = sorted({_checked_name(index, name) for name in weight_map.values()})
        if len(file_names) > MAX_SHARDS:
            raise MalformedFileError(f"[{index}: weight_map] need at most {MAX_SHARDS} files, got {len(file_names)}")
        return [folder / name for name in file_names]
    if (folder / SINGLE_NAME).exists():
        return [folder / SINGLE_NAME]
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    raise _no_weights(folder)


def _checked_name(index: Path, name: object) -> str:
    is_plain = isinstance(name, str) and name.endswith(".safetensors") and name.isprintable()
    if not is_plain or "/" in str(name) or "\\" in str(name):
        raise MalformedFileError(
            f"[{index}: weight_map] need names of .safetensors files in this folder, got {name!r:.100}"
        )
    return str(name)


def _no_weights(folder: Path) -> Exception:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return UnsupportedModelError(
            f"[{folder}] need safetensors, got only pickle files ({pickles[0]}), which can run code when opened and "
            "are never read; convert them where you trust them: transformers' from_pretrained(folder) and "
            "save_pretrained(new_folder)"
        )
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return UnsupportedModelError(f"[{folder / ggufs[0]}] GGUF files are not read by this build; use a HF folder")
    return ModelNotFoundError(f"[{folder}] need {SINGLE_NAME} or {INDEX_NAME}, got neither; is the download complete?")


def _merge(files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    file_of: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file.entries:
            if name in file_of:
                raise MalformedFileError(f"[{file.path}: {name}] the tensor is in {file_of[name].path.name} too")
            file_of[name] = file
    return file_of
