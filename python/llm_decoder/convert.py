"""A HF folder -> a `weights/` directory, float, int8 and int4, complete or not there at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import yaml

from llm_decoder.chat_template import ChatTemplate
from llm_decoder.checkpoint import Groups
from llm_decoder.config.files import FILE_NAMES, packaged_config_dir
from llm_decoder.config.schema import WeightFile
from llm_decoder.errors import ModelLoadError, UnsupportedModelError
from llm_decoder.loading import find_model
from llm_decoder.model_config import weight_shapes
from llm_decoder.no_tokenizer import TOKENIZER_FILES, has_tokenizer
from llm_decoder.quantize import Progress
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint
from llm_decoder.tokenizer import load_tokenizer
from llm_decoder.weights_config import standard_float_path, standard_int4_file, standard_int8_file
from llm_decoder.weights_dir import group_bytes, is_weights_directory, stored_bytes

__all__ = ["convert"]

_COPIED = [
    *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"),
    *("chat_template.jinja", *TOKENIZER_FILES),
]
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_BLOCK_FLOATS = 1 << 20
_COPY_BYTES = 1 << 24


def convert(
    source: str | Path | None,
    target: str | Path,
    *,
    float_weights: bool = True,
    int8: bool = True,
    int4: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the model `source` (HF folder or hub id; None: the embedded one) as a `weights/` directory at `target`.

    Float weights keep the checkpoint's dtype bit for bit; int8 has the matrices quantised, one scale a row, int4 in
    groups of 32, the embedding and the output layer in int8. `config/` gets the five settings files and the tokenizer.
    The directory is written beside its place and moved there when complete, so an interrupted conversion leaves nothing
    that looks finished; run it again.

    Returns the directory. Raises ModelLoadError when `target` has files (unless `overwrite`) or the source in it,
    cannot be written, or the disk is full; and what loading the source raises.
    """
    if not (float_weights or int8 or int4):
        raise ModelLoadError("[convert] need float_weights, int8 or int4, got none of them")
    place = Path(target).expanduser()
    if place.exists() and not overwrite and (not place.is_dir() or any(place.iterdir())):
        raise ModelLoadError(f"[{place}] need a folder that is empty or not there, got one with files; or overwrite it")
    path = find_model(source, progress=progress)
    if is_weights_directory(path):
        raise UnsupportedModelError(f"[{path}] need a HF folder, got a weights directory already")
    _refuse_to_replace(place, path)
    checkpoint = SafetensorsCheckpoint(path)
    if float_weights and "fp8" in checkpoint.forms:
        raise UnsupportedModelError(f"[{path}] need matrices in floats to copy, got fp8; leave them out (--no-float)")
    # Small files first: what is wrong with them is said before gigabytes are written.
    template = load_tokenizer(path).chat_template if has_tokenizer(path) else None
    writer = _Writer(checkpoint, template, float_weights, int8, int4, progress)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(place.parent).free
        if free_bytes < writer.n_total_bytes:
            raise _disk_full(place, writer.n_total_bytes, free_bytes)
        _remove_leftovers(place)
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}.writing-", dir=place.parent))
        try:
            temporary.chmod(0o755)
            writer.write(temporary)
            _move_into_place(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = None if error.errno == errno.ENOSPC else error.strerror
            free_bytes = shutil.disk_usage(place.parent).free
            raise _disk_full(place, writer.n_total_bytes, free_bytes, reason) from error
        raise ModelLoadError(
            f"[{place}] need a place that can be written, got: {error.strerror or error}; choose another folder"
        ) from error
    return place


def _refuse_to_replace(place: Path, source: Path) -> None:
    """What `overwrite` must never delete: the model that is being converted, and where the user is and lives."""
    for kept in (source, Path.cwd(), Path.home()):
        if place.is_dir() and any(place.iterdir()) and kept.resolve().is_relative_to(place.resolve()):
            raise ModelLoadError(f"[{place}] need a folder that can be replaced, got one that {kept} lies in")


class _Writer:
    def __init__(
        self,
        checkpoint: SafetensorsCheckpoint,
        template: ChatTemplate | None,
        float_weights: bool,
        int8: bool,
        int4: bool,
        progress: Progress | None,
    ) -> None:
        self._checkpoint, self._template, self._progress = checkpoint, template, progress
        self._float_weights, self._int8, self._int4 = float_weights, int8, int4
        self._shapes = weight_shapes(checkpoint.config)
        self._n_done_bytes = 0
        self.n_total_bytes = sum(self._bytes_of(name) for name in self._shapes)

    def write(self, folder: Path) -> None:
        floats: dict[str, Any] = {}
        int8: dict[str, Any] = {}
        int4: dict[str, Any] = {}
        for name, shape in self._shapes.items():
            is_matrix = len(shape) == 2
            if self._float_weights or not is_matrix:
                floats[name] = self._write_float(folder, name, shape)
            if self._int8 and is_matrix:
                int8[name] = self._write_integers(folder, name, standard_int8_file(name, shape))
            if self._int4 and is_matrix:
                int4[name] = self._write_integers(folder, name, standard_int4_file(name, shape))
        _write_config(folder / "config", self._checkpoint, self._template, floats, int8, int4)

    def _bytes_of(self, name: str) -> int:
        shape = self._shapes[name]
        is_matrix = len(shape) == 2
        total = 0
        if self._float_weights or not is_matrix:
            total = math.prod(shape) * _ITEM_BYTES[self._checkpoint.stored_dtype(name)]
        if self._int8 and is_matrix:
            total += stored_bytes(standard_int8_file(name, shape))
        if self._int4 and is_matrix:
            total += stored_bytes(standard_int4_file(name, shape))
        return total

    def _write_float(self, folder: Path, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        relative = standard_float_path(name)
        raw = self._checkpoint.raw(name)
        with _create(folder / relative) as file:
            for begin in range(0, len(raw), _COPY_BYTES):
                self._put(file, raw[begin : begin + _COPY_BYTES], f"writing {name}")
        return {"path": relative, "dtype": self._checkpoint.stored_dtype(name), "shape": list(shape)}

    def _write_integers(self, folder: Path, name: str, file: WeightFile) -> dict[str, Any]:
        from llm_decoder.backends import quantize_weight_groups, quantize_weight_rows

        scale_path = str(file.scale)
        step = max(1, _BLOCK_FLOATS // file.shape[1])
        with _create(folder / file.path) as values, _create(folder / scale_path) as scales:
            for begin in range(0, file.shape[0], step):
                rows = self._checkpoint.rows(name, begin, begin + step)
                stored: npt.NDArray[Any]
                if file.dtype == "int4":
                    groups = Groups(*quantize_weight_groups(rows))
                    stored, scale = group_bytes(groups), groups.scale
                else:
                    stored, scale = quantize_weight_rows(rows)
                self._put(values, stored, f"quantising {name}")
                self._put(scales, scale.astype("<f4"), f"quantising {name}")
        return {"path": file.path, "scale": scale_path, "dtype": file.dtype, "shape": list(file.shape)}

    def _put(self, file: IO[bytes], data: npt.NDArray[Any], what: str) -> None:
        file.write(np.ascontiguousarray(data).data)
        self._n_done_bytes += data.nbytes
        if self._progress is not None:
            self._progress(self._n_done_bytes, self.n_total_bytes, what)


def _create(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


def _write_config(
    folder: Path,
    checkpoint: SafetensorsCheckpoint,
    template: ChatTemplate | None,
    floats: dict[str, Any],
    int8: dict[str, Any],
    int4: dict[str, Any],
) -> None:
    folder.mkdir()
    for name in _COPIED:
        if (checkpoint.path / name).exists():
            shutil.copyfile(checkpoint.path / name, folder / name)
    # The tie as found, which the flag in config.json may belie.
    architecture = {**checkpoint.hf_config, "tie_word_embeddings": checkpoint.config.tie_word_embeddings}
    _dump_yaml(folder / FILE_NAMES["model"], {"architecture": architecture})
    _dump_yaml(folder / FILE_NAMES["weights"], {"float": floats, "int8": int8 or None, "int4": int4 or None})
    shutil.copyfile(packaged_config_dir() / FILE_NAMES["runtime"], folder / FILE_NAMES["runtime"])
    shutil.copyfile(packaged_config_dir() / FILE_NAMES["paths"], folder / FILE_NAMES["paths"])
    is_one = template is not None and len(template.named) == 0
    chat = {
        "template": template.source if template is not None and is_one else None,
        "system": template.system if template is not None else None,
        "stop": list(template.stop) if template is not None else [],
    }
    text = json.dumps(chat, indent=2, ensure_ascii=False) + "\n"
    (folder / FILE_NAMES["chat"]).write_text(text, encoding="utf-8")


def _dump_yaml(path: Path, table: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(table, file, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _move_into_place(temporary: Path, place: Path) -> None:
    if place.exists():
        old = temporary.with_name(temporary.name + ".old")
        place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        return
    temporary.rename(place)


def _remove_leftovers(place: Path) -> None:
    """What an interrupted conversion to the same place left. Its folder names are ours alone."""
    for path in place.parent.glob(f".{place.name}.writing-*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _disk_full(place: Path, need_bytes: int, free_bytes: int, reason: str | None = None) -> ModelLoadError:
    """`reason`: the system's own, told when it is not the free space that falls short (a quota, a limit)."""
    got = f"the disk has {free_bytes:,} free" if free_bytes < need_bytes or reason is None else f"got: {reason}"
    return ModelLoadError(
        f"[{place}] need {need_bytes:,} bytes, {got}; free some, choose another disk, or leave the float weights out"
    )
