"""Packed weights on disk, so that a checkpoint is quantised once and mapped ever after.

One file an entry, `<key>.packed` in a private folder: a prologue (magic, format version, header length, SHA-256 of the
data), a JSON header (what it was made from, where each tensor lies), then the tensors at multiples of 64 bytes. The key
covers the checkpoint's files (path, size, mtime, hash of their headers), the config and the format version. A file is
written beside its place and renamed into it, so a reader sees all of it or none; two writers make the same file twice.
Its mtime says when it was last used; the longest unused go when the folder outgrows its bound. A writer holds a lock on
its file, so one that nobody locks was left by a writer that was killed, and goes first.

A cache that cannot be used never stops a model: with the default folder the reason is a WeightCacheWarning and the
model runs from memory. A folder that was named on purpose (argument or LLM_DECODER_CACHE_DIR) and cannot be used is
an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.checkpoint import Checkpoint
from llm_decoder.errors import ConfigError, ModelLoadError
from llm_decoder.packed_tensor import DATA_ALIGN, CoreTensor, MatrixLayout, PackedTensor, core_tensors
from llm_decoder.quantize import Progress, packed_chunks

__all__ = [
    "CacheEntry",
    "WeightCacheWarning",
    "cache_folder",
    "clear",
    "list_entries",
    "load_or_pack",
    "max_cache_bytes",
    "verify",
]

FORMAT_VERSION = 1
DEFAULT_MAX_BYTES = 32 * 2**30
SUFFIX = ".packed"

_MAGIC = b"LLMDPACK"
_PROLOGUE = struct.Struct("<8sIIQQ32s")  # magic, version, 0, header bytes, data bytes, SHA-256 of the data
_MAX_HEADER_BYTES = 64 * 2**20
_PAGE_BYTES = 4096
_UNFINISHED = ".writing-"


class WeightCacheWarning(UserWarning):
    """The cache of packed weights cannot be used; the model is packed into memory instead."""


@dataclass(frozen=True)
class CacheEntry:
    """One entry as `llm-decoder cache ls` shows it. is_leftover: of a writer that was killed, of no use to anybody."""

    path: Path
    model: str
    layout: str
    n_bytes: int
    last_used_s: float  # seconds since the epoch
    is_leftover: bool = False


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder of packed weights: `cache_dir`, else LLM_DECODER_CACHE_DIR, else the user's cache folder."""
    given = cache_dir or os.environ.get("LLM_DECODER_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "llm_decoder"
    try:
        return Path.home() / ".cache" / "llm_decoder"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"llm_decoder-{os.getuid()}"


def max_cache_bytes() -> int:
    """The bound on the folder: LLM_DECODER_CACHE_MAX_BYTES, else 32 GiB. Raises ConfigError for anything but a
    count."""
    given = os.environ.get("LLM_DECODER_CACHE_MAX_BYTES")
    if not given:
        return DEFAULT_MAX_BYTES
    if not given.isdecimal() or len(given) > 18:
        raise ConfigError(f"[LLM_DECODER_CACHE_MAX_BYTES] need a number of bytes >= 0, got {given[:40]!r}")
    return int(given)


def load_or_pack(
    checkpoint: Checkpoint,
    layout: MatrixLayout,
    *,
    cache_dir: str | Path | None = None,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, PackedTensor] | None:
    """The packed weights, mapped from the cache; packed into it first when they are not there.

    Returns None, after a WeightCacheWarning, when the default folder cannot be used or the disk is full: then the
    caller packs into memory. Raises ModelLoadError when a folder given on purpose cannot be used.
    """
    is_given = bool(cache_dir or os.environ.get("LLM_DECODER_CACHE_DIR"))
    folder = cache_folder(cache_dir)
    limit = max_cache_bytes() if max_bytes is None else max_bytes
    try:
        _make_private(folder)
        return _load_or_pack(checkpoint, layout, folder, limit, progress)
    except _CacheUnusableError as error:
        if is_given and not error.is_full:
            raise ModelLoadError(f"{error}; name another folder with cache_dir or LLM_DECODER_CACHE_DIR") from error
        warnings.warn(f"{error}; packing into memory instead", WeightCacheWarning, stacklevel=2)
        return None


def list_entries(cache_dir: str | Path | None = None) -> list[CacheEntry]:
    """The entries, the most recently used first, leftovers among them. An unreadable file shows with model '?'."""
    folder = cache_folder(cache_dir)
    entries = []
    for path in _leftovers(folder):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            entries.append(CacheEntry(path, "?", "?", _disk_bytes(status), status.st_mtime, is_leftover=True))
    for path, status in _entry_files(folder):
        try:
            header = _read_header(path)
            model, layout = str(header["model"]), str(header["layout"])
        except (OSError, _BrokenEntryError, KeyError):
            model, layout = "?", "?"
        entries.append(CacheEntry(path, model, layout, status.st_size, status.st_mtime))
    return sorted(entries, key=lambda entry: -entry.last_used_s)


def clear(cache_dir: str | Path | None = None) -> int:
    """Delete every entry and leftover, but not what is being written. Returns the bytes freed. Processes that have an
    entry mapped keep their copy until they end."""
    folder = cache_folder(cache_dir)
    freed = _delete_leftovers(folder)
    for path, status in _entry_files(folder):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            freed += status.st_size
    return freed


def verify(path: Path) -> bool:
    """Whether an entry's data still has the hash that was stored with it. Reads all of it."""
    try:
        prologue, header_end = _read_prologue(path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(_data_begin(header_end))
            while block := file.read(1 << 22):
                digest.update(block)
    except (OSError, _BrokenEntryError):
        return False
    return bool(digest.digest() == prologue.sha256)


class _CacheUnusableError(Exception):
    def __init__(self, message: str, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


class _BrokenEntryError(Exception):
    pass


@dataclass(frozen=True)
class _Prologue:
    header_bytes: int
    data_bytes: int
    sha256: bytes


def _load_or_pack(
    checkpoint: Checkpoint, layout: MatrixLayout, folder: Path, limit: int, progress: Progress | None
) -> dict[str, PackedTensor]:
    identity = _identity(checkpoint, layout)
    path = folder / (hashlib.sha256(identity.encode()).hexdigest()[:40] + SUFFIX)
    tensors = core_tensors(checkpoint.config, layout)
    if path.exists():
        try:
            return _map_entry(path, tensors, identity)
        except (_BrokenEntryError, OSError) as error:
            warnings.warn(f"[{path}] {error}; packing again", WeightCacheWarning, stacklevel=4)
    spans, data_bytes = _lay_out(tensors)
    if data_bytes > limit:
        raise _CacheUnusableError(
            f"[{folder}] the packed weights need {data_bytes:,} bytes, the cache is bounded to {limit:,} "
            "(LLM_DECODER_CACHE_MAX_BYTES)",
            is_full=True,
        )
    _make_room(folder, limit - data_bytes)
    _check_disk(folder, data_bytes)
    try:
        _write_entry(path, checkpoint, layout, identity, spans, data_bytes, progress)
        return _map_entry(path, tensors, identity)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        need = f"{data_bytes:,} bytes" if is_full else "a folder that can be written"
        raise _CacheUnusableError(f"[{folder}] need {need}, got: {error.strerror or error}", is_full=is_full) from error
    except _BrokenEntryError as error:
        raise _CacheUnusableError(f"[{path}] cannot be read back: {error}") from error


def _identity(checkpoint: Checkpoint, layout: str) -> str:
    files = [dataclasses.asdict(identity) for identity in checkpoint.identity()]
    return json.dumps({"format": FORMAT_VERSION, "layout": layout, "files": files}, sort_keys=True)


def _lay_out(tensors: list[CoreTensor]) -> tuple[dict[str, dict[str, int]], int]:
    """Where each tensor's data and scales begin, in bytes from the start of the data, and the bytes of all."""
    spans = {}
    position = 0
    for tensor in tensors:
        data = position
        scales = _aligned(data + tensor.data_bytes, DATA_ALIGN)
        spans[tensor.name] = {"data": data, "scales": scales}
        position = _aligned(scales + tensor.scale_bytes, DATA_ALIGN)
    return spans, position


def _write_entry(
    path: Path,
    checkpoint: Checkpoint,
    layout: MatrixLayout,
    identity: str,
    spans: dict[str, dict[str, int]],
    data_bytes: int,
    progress: Progress | None,
) -> None:
    header = json.dumps(
        {"model": str(checkpoint.path), "layout": layout, "identity": identity, "spans": spans}
    ).encode()
    begin = _data_begin(_PROLOGUE.size + len(header))
    descriptor, temporary = _create_locked(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.truncate(begin + data_bytes)
            for chunk in packed_chunks(checkpoint, core_tensors(checkpoint.config, layout), progress):
                span = spans[chunk.tensor.name]
                _write_at(file.fileno(), begin + span["data"] + chunk.data_offset, chunk.data)
                if chunk.scales is not None:
                    _write_at(file.fileno(), begin + span["scales"] + 4 * chunk.row_offset, chunk.scales)
            digest = _hash_from(temporary, begin)
            prologue = _PROLOGUE.pack(_MAGIC, FORMAT_VERSION, 0, len(header), data_bytes, digest)
            _write_at(file.fileno(), 0, np.frombuffer(prologue + header, np.uint8))
            os.fsync(file.fileno())
            _forget_pages(file.fileno())
            Path(temporary).rename(path)  # while the lock is held: nobody takes it for a leftover
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _create_locked(folder: Path) -> tuple[int, str]:
    """(descriptor, path) of a new file that this writer alone holds a lock on."""
    while True:
        descriptor, path = tempfile.mkstemp(prefix=_UNFINISHED, suffix=SUFFIX, dir=folder)
        with contextlib.suppress(OSError):  # a file system without locks, where leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, path
        os.close(descriptor)  # somebody took it for a leftover before it was locked


def _write_at(descriptor: int, offset: int, values: npt.NDArray[Any]) -> None:
    view = np.ascontiguousarray(values).data.cast("B")
    while view:
        n_written = os.pwrite(descriptor, view, offset)
        view, offset = view[n_written:], offset + n_written


def _forget_pages(descriptor: int) -> None:
    """What was written in pieces lies in small pages of memory. Read again through a mapping that asks for huge pages,
    the file lies in huge ones, and decoding reads it a fifth faster (docs/performance.md)."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _ask_for_huge_pages(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


def _hash_from(path: str, begin: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(begin)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.digest()


def _map_entry(path: Path, tensors: list[CoreTensor], identity: str) -> dict[str, PackedTensor]:
    prologue, header_end = _read_prologue(path)
    header = _read_header(path)
    if header.get("identity") != identity:
        raise _BrokenEntryError("it was made from something else")
    spans, data_bytes = _lay_out(tensors)
    if header.get("spans") != spans or prologue.data_bytes != data_bytes:
        raise _BrokenEntryError("its tensors do not lie where this version expects them")
    begin = _data_begin(header_end)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _ask_for_huge_pages(mapped)
        if len(mapped) != begin + data_bytes:
            raise _BrokenEntryError(f"it has {len(mapped):,} bytes instead of {begin + data_bytes:,}")
    os.utime(path)
    data = np.frombuffer(mapped, np.uint8)[begin:]
    return {tensor.name: _view(data, tensor, spans[tensor.name]) for tensor in tensors}


def _view(data: npt.NDArray[np.uint8], tensor: CoreTensor, span: dict[str, int]) -> PackedTensor:
    raw = data[span["data"] : span["data"] + tensor.data_bytes]
    if not tensor.is_quantized:
        return PackedTensor(tensor.layout, tensor.shape, raw.view(tensor.dtype))
    scales = data[span["scales"] : span["scales"] + tensor.scale_bytes].view(np.float32)
    return PackedTensor(tensor.layout, tensor.shape, raw, scales)


def _read_prologue(path: Path) -> tuple[_Prologue, int]:
    with path.open("rb") as file:
        raw = file.read(_PROLOGUE.size)
    if len(raw) != _PROLOGUE.size:
        raise _BrokenEntryError("it is too short to be one of ours")
    magic, version, _, header_bytes, data_bytes, sha256 = _PROLOGUE.unpack(raw)
    if magic != _MAGIC or version != FORMAT_VERSION or header_bytes > _MAX_HEADER_BYTES:
        raise _BrokenEntryError("it is damaged or of another version")
    return _Prologue(header_bytes, data_bytes, sha256), _PROLOGUE.size + header_bytes


def _read_header(path: Path) -> dict[str, Any]:
    prologue, _ = _read_prologue(path)
    with path.open("rb") as file:
        file.seek(_PROLOGUE.size)
        raw = file.read(prologue.header_bytes)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise _BrokenEntryError("its header is damaged") from None
    if not isinstance(header, dict):
        raise _BrokenEntryError("its header is damaged")
    return header


def _data_begin(header_end: int) -> int:
    return _aligned(header_end, _PAGE_BYTES)


def _aligned(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise _CacheUnusableError(f"[{folder}] need a folder of your own, got one of user {status.st_uid}")
        if status.st_mode & 0o077:
            if any(path.suffix != SUFFIX for path in folder.iterdir()):
                raise _CacheUnusableError(
                    f"[{folder}] need a folder for packed weights alone, which is made private, got one with other "
                    "files that others may use"
                )
            folder.chmod(0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _CacheUnusableError(
                f"[{folder}] need a folder that can be written, got mode {status.st_mode & 0o777:o}"
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise _CacheUnusableError(f"[{folder}] need a folder that can be written, got: {reason}") from error


def _check_disk(folder: Path, need_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes:
        message = f"[{folder}] the packed weights need {need_bytes:,} bytes, the disk has {free_bytes:,} free"
        raise _CacheUnusableError(message, is_full=True)


def _entry_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for path in sorted(folder.iterdir()):
            if path.suffix == SUFFIX and not path.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.stat()


def _make_room(folder: Path, keep_bytes: int) -> None:
    """Delete what killed writers left, and the longest unused entries until the others take at most `keep_bytes`."""
    _delete_leftovers(folder)
    files = sorted(_entry_files(folder), key=lambda item: -item[1].st_mtime)
    kept = 0
    for path, status in files:
        kept += status.st_size
        if kept > keep_bytes:
            with contextlib.suppress(OSError):
                path.unlink()


def _leftovers(folder: Path) -> list[Path]:
    """Unfinished files whose writer is gone."""
    return [path for path in sorted(folder.glob(f"{_UNFINISHED}*{SUFFIX}")) if _with_lock(path, lambda: None)]


def _delete_leftovers(folder: Path) -> int:
    """Returns the bytes freed."""
    freed = 0
    for path in folder.glob(f"{_UNFINISHED}*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            n_bytes = _disk_bytes(path.stat())
            freed += n_bytes if _with_lock(path, path.unlink) else 0
    return freed


def _with_lock(path: Path, act: Callable[[], None]) -> bool:
    """Does `act` under the lock of an unfinished file; False, with nothing done, when its writer still holds that."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            act()
    except OSError:  # held, gone meanwhile, or on a file system without locks
        return False
    return True


def _disk_bytes(status: os.stat_result) -> int:
    """What a file takes of the disk: an unfinished one is as long as it is to be, with holes."""
    return status.st_blocks * 512
