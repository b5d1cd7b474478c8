"""A benchmark that can be stopped: rows in a JSON file, written after each; the next run takes those that are left."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DONE, FAILED, LEFT = 0, 1, 3  # exit status
UNDER_WAY = "its process ended while it was made"  # what a failed row says until it is there
KERNELS = ("attention", "cmake", "include", "src")  # folders that GPU kernels and their module are made of
_SUFFIXES = {".cmake", ".cpp", ".h", ".py", ".txt"}


def id_of(*files: Path) -> str:
    """Of what is measured: rows of other files are not these."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def sources(*places: str) -> Iterator[Path]:
    """What rows of GPU kernels are of: files, and those of folders. Compiled files are no names for it: nvcc makes
    others each time."""
    for place in places:
        found = (path for given in ROOT.glob(place) for path in ([given] if given.is_file() else given.rglob("*")))
        yield from sorted(path for path in found if path.suffix in _SUFFIXES and path.is_file())


class RowsFile:
    """{"facts": ..., "rows": {name: {"of": ..., ...}}}"""

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        """of: what makes rows comparable (the build, the device, ...); a row of something else is measured again."""
        self._path, self._of = path, dict(of)
        self.data: dict[str, Any] = {"facts": {}, "rows": {}}
        if path.exists():
            self.data = json.loads(path.read_text())

    @property
    def rows(self) -> dict[str, Any]:
        """Those of this build and device, by name."""
        return {name: row for name, row in self.data["rows"].items() if row["of"] == self._of}

    def is_done(self, name: str) -> bool:
        return name in self.rows and "failed" not in self.rows[name]

    def put(self, name: str, row: Mapping[str, Any]) -> None:
        self.data["rows"][name] = {"of": self._of, **row}
        self.write()

    def put_facts(self, facts: Mapping[str, Any]) -> None:
        self.data["facts"] |= facts
        self.write()

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        beside.replace(self._path)


def watched(
    name: str, make: Callable[[], Mapping[str, Any]], limit_s: float, file: RowsFile
) -> Callable[[], Mapping[str, Any]]:
    """A maker for measure_rows whose row is a failed one until it is there, and which ends the process after limit_s: a
    call that waits for a device can be ended in no other way, and the next run begins with other rows."""

    def make_watched() -> Mapping[str, Any]:
        file.put(name, {"failed": UNDER_WAY})
        faulthandler.dump_traceback_later(limit_s, exit=True)
        try:
            return make()
        finally:
            faulthandler.cancel_dump_traceback_later()

    return make_watched


def tell(line: str) -> None:
    """At once, into a pipe too: the process may be ended."""
    print(line, flush=True)


def measure_rows(
    makers: Mapping[str, Callable[[], Mapping[str, Any]]],
    file: RowsFile,
    limit_s: float,
    *,
    can_go_on: Callable[[], bool] = lambda: True,
    needs_s: Callable[[str], float] = lambda name: 0.0,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = tell,
) -> int:
    """The exit status: DONE, FAILED where a row raised, LEFT where the time was over before all were there.

    Every maker that is not done is called for its row, those that failed before come last; none is begun after limit_s,
    nor with less than needs_s(name) seconds left. can_go_on: asked after a failure, whether others may still work.
    """
    end = clock() + limit_s
    todo = [name for name in makers if not file.is_done(name)]
    todo.sort(key=lambda name: name in file.rows)
    n_left = len(todo)
    for name in todo:
        begin = clock()
        if begin >= end:
            break
        if begin + needs_s(name) > end:
            continue
        try:
            row = makers[name]()
        except Exception as error:  # noqa: BLE001 - a row that fails is told, the others are measured
            row = {"failed": f"{type(error).__name__}: {error}"}
        file.put(name, row)
        n_left -= 1
        say(f"{name:36}{clock() - begin:7.1f} s  {row.get('failed', '')}".rstrip())
        if "failed" in row and not can_go_on():
            say("the device answers no more: run it again")
            break
    failed = [name for name in makers if name in file.rows and "failed" in file.rows[name]]
    n_done = len(makers) - n_left - len(failed)
    say(f"{n_done} rows done, {len(failed)} failed, {n_left} left" + ("; run it again" if n_left else ""))
    return FAILED if failed else LEFT if n_left else DONE
