"""One safetensors file: its header checked before anything is believed, its tensors mapped, never copied whole.

Format: 8 bytes of header length (little-endian), a JSON header, the tensors' bytes. Our own checks come first and are
bounded (a header says where to read, so it is compared with the real file size before any read); then the reference
reader must accept the file too.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.errors import MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.json_file import parse_json_object

__all__ = ["SafetensorsFile", "TensorEntry", "to_float32"]

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 8

# What the format knows, in bytes; what this build computes with are the three of FLOAT_DTYPES.
DTYPE_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
    **{"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8},
}
FLOAT_DTYPES: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `begin` and `end` are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A checked, mapped file. `entries` maps names to TensorEntry; `header_hash` is SHA-256 of the header's bytes.

    Raises ModelNotFoundError when there is no such file, MalformedFileError when its bytes contradict the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self.n_bytes = _read_header(path)
        self.header_hash = hashlib.sha256(header).hexdigest()
        self.entries = _check_header(parse_json_object(header, str(path)), path, 8 + len(header), self.n_bytes)
        _ask_reference_reader(path, set(self.entries))
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """Rows [begin, end) of a tensor along its first axis, as float32; a scalar is one row.

        Raises UnsupportedModelError when the tensor is not F32, F16 or BF16.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOAT_DTYPES:
            raise UnsupportedModelError(
                f"[{self.path}: {name}] need dtype F32, F16 or BF16, got {entry.dtype}; use the float checkpoint"
            )
        raw = self._bytes[entry.begin : entry.end].view(FLOAT_DTYPES[entry.dtype]).reshape(entry.shape or (1,))
        return to_float32(raw[begin:end])

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, mapped."""
        entry = self.entries[name]
        return self._bytes[entry.begin : entry.end]


def to_float32(raw: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """float32, float16, or bfloat16 as its uint16 bits -> a float32 array of its own. Exact."""
    if raw.dtype != np.uint16:
        return np.array(raw, dtype=np.float32, order="C")
    wide = raw.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _read_header(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise MalformedFileError(f"[{path}] need a regular file, got something else")
            prefix = file.read(8)
            if len(prefix) < 8:
                raise MalformedFileError(f"[{path}] need at least 8 bytes, got {len(prefix)}; download it again")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise MalformedFileError(
                    f"[{path}] need a header of at most {MAX_HEADER_BYTES:,} bytes, got {length:,}"
                )
            if 8 + length > status.st_size:
                raise MalformedFileError(
                    f"[{path}] its header of {length:,} bytes runs past the file's {status.st_size:,}; "
                    "download it again"
                )
            header = file.read(length)
    except FileNotFoundError:
        raise ModelNotFoundError(f"[{path}] need this file of the checkpoint, got none; download it again") from None
    except OSError as error:
        raise MalformedFileError(f"[{path}] cannot be read: {error}") from error
    if len(header) != length:
        raise MalformedFileError(f"[{path}] it shrank while its header was read")
    if header[:1] != b"{":
        raise MalformedFileError(f"[{path}] need a header that begins with '{{', got {header[:1]!r}; not safetensors")
    return header, status.st_size


def _check_header(header: dict[str, Any], path: Path, data_begin: int, n_bytes: int) -> dict[str, TensorEntry]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFileError(f"[{path}: __metadata__] need an object of texts")
    entries = {name: _check_entry(name, value, path, data_begin) for name, value in header.items()}
    position = data_begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "a hole before it" if entry.begin > position else "an overlap with the tensor before it"
            raise MalformedFileError(f"[{path}: {_shown(name)}] need tensors without gaps, got {what}")
        if entry.end > n_bytes:
            raise MalformedFileError(
                f"[{path}: {_shown(name)}] ends at byte {entry.end:,}, the file has {n_bytes:,}; download it again"
            )
        position = entry.end
    if position != n_bytes:
        raise MalformedFileError(f"[{path}] has {n_bytes - position:,} bytes after its last tensor that nothing names")
    return entries


def _check_entry(name: str, value: Any, path: Path, data_begin: int) -> TensorEntry:
    place = f"[{path}: {_shown(name)}]"
    if not name or not name.isprintable():
        raise MalformedFileError(f"{place} need a printable name")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedFileError(f"{place} need dtype, shape and data_offsets, got {_shown(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise MalformedFileError(f"{place} need a dtype that safetensors knows, got {_shown(dtype)}")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise MalformedFileError(f"{place} need a shape of at most {MAX_RANK} sizes, got {_shown(shape)}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedFileError(f"{place} need data_offsets [begin, end] with begin <= end, got {_shown(offsets)}")
    need = math.prod(shape) * DTYPE_BYTES[dtype]  # Python's integers do not wrap
    if need != offsets[1] - offsets[0]:
        raise MalformedFileError(
            f"{place} shape {_shown(shape)} of {dtype} is {_shown(need)} bytes, got {offsets[1] - offsets[0]:,}"
        )
    return TensorEntry(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _ask_reference_reader(path: Path, names: set[str]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            found = set(file.keys())
    except (SafetensorError, ValueError, OSError) as error:
        raise MalformedFileError(f"[{path}] the safetensors library refuses it: {error}") from error
    if found != names:
        raise MalformedFileError(f"[{path}] two readers see different tensors: {sorted(found ^ names)[:3]}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # integers beyond Python's limit for decimal text
        text = "a huge number"
    return text if len(text) <= 100 else text[:97] + "..."
