"""JSON files from outside: bounded in size, with each way of being broken named in one error.

A JSON file beside a checkpoint is data from a stranger. Size is looked at before reading, a duplicate key, a NaN,
nesting too deep for the parser and a top level that is not an object are all MalformedFileError.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from llm_decoder.errors import MalformedFileError, ModelNotFoundError

__all__ = ["parse_json_object", "read_bounded", "read_json_object"]

MAX_CONFIG_BYTES = 8 * 2**20


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Returns the object in `path`. Raises ModelNotFoundError when it is absent, MalformedFileError when it is
    broken."""
    return parse_json_object(read_bounded(path, max_bytes), str(path))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most `max_bytes` bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise MalformedFileError(f"[{path}] need a regular file, got something else (a folder, pipe or device)")
        if status.st_size > max_bytes:
            raise MalformedFileError(f"[{path}] need at most {max_bytes:,} bytes, got {status.st_size:,}")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ModelNotFoundError(f"[{path}] need this file, got none; check the folder") from None
    except (OSError, ValueError) as error:
        raise MalformedFileError(f"[{path}] cannot be read: {error}") from error
    if len(data) > max_bytes:
        raise MalformedFileError(f"[{path}] need at most {max_bytes:,} bytes, it grew while it was read")
    return data


def parse_json_object(data: bytes, place: str) -> dict[str, Any]:
    """`data` as a JSON object; `place` names it in errors."""
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise MalformedFileError(f"[{place}] need JSON nested a few levels deep, got hundreds") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise MalformedFileError(f"[{place}] need valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedFileError(f"[{place}] need a JSON object, got {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
