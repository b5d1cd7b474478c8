"""An output file of `batch` that survives a kill: whole lines are kept, a torn one is cut, none is written twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llm_decoder.cli._output import to_json
from llm_decoder.errors import ConfigError


def fingerprint(line: str) -> str:
    """What a record keeps of its input line, so that an output file is never continued with other input."""
    return hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Journal:
    """Appends records, each in one write of one whole line. `done` holds the indices of the input lines that have one.

    Opening an existing file reads its records, cuts a torn last line and locks the file. Raises ConfigError when
    another process writes it or when it holds something else; OSError as the file system does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, str] = {}
        self.n_failed = 0
        _refuse_devices(path)
        self._file: BinaryIO = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def belongs_to(self, index: int, line: str) -> bool:
        """Whether input line `index` is done; raises ConfigError when it was another line that was done."""
        if index not in self.done:
            return False
        if self.done[index] != fingerprint(line):
            raise ConfigError(
                f"[batch] {self.path} holds the answer to another line {index + 1} of the input; "
                "give the input that it was made from, or another --output"
            )
        return True

    def append(self, record: Mapping[str, Any]) -> None:
        rest = memoryview(to_json(record).encode() + b"\n")
        try:
            while rest:  # a disk that gets full takes a part and refuses the next
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.done[record["index"]] = record["input"]
        self.n_failed += "error" in record

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"[batch] another process writes {self.path}; wait for it or give another --output"
            ) from None

    def _read(self) -> None:
        self._file.seek(0)
        n_whole_bytes = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                os.ftruncate(self._file.fileno(), n_whole_bytes)
                break
            n_whole_bytes += len(line)
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
            index, source = int(record["index"]), str(record["input"])
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                f"[batch] {self.path}, line {number}, is no record of a batch; give another --output"
            ) from None
        self.done[index] = source
        self.n_failed += "error" in record


def _refuse_devices(path: Path) -> None:
    """A pipe or a device cannot be read back, and opening one may wait for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"[batch] need a regular file for --output, got {path}; without one, answers are printed")
