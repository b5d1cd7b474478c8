"""What the stages of make gpu-e2e have in common: rows in one file, each made by a process that it may take with it.

A stage is a program with --out, the file of all stages, and --limit-s. It makes its rows one after the other; a row is
written down as failed before it is begun, so that one which kills the process, or hangs it, is a failed row and the
next process goes on with the others."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "tests/soak", "tests/answers", "benchmarks", "tools")]
# transformers looks for a package of this name, and is not to find benchmarks/kernels.py.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]

from resumed import FAILED, KERNELS, RowsFile, id_of, measure_rows, sources, watched  # noqa: E402

CANNOT = 2  # exit status: this machine cannot make any row
LOST = 4  # exit status: the device answers this process no more, another may go on
_SOURCES = (*KERNELS, "decoder", "kv_cache", "python/llm_decoder", "tests/*.py", "tests/soak")


@dataclass(frozen=True)
class Row:
    """limit_s: seconds after which the process that makes it is ended; it is not begun with less than half of them."""

    make: Callable[[], Mapping[str, Any]]
    limit_s: float


def arguments(what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; rows that are there are kept")
    parser.add_argument("--limit-s", type=float, default=450.0, help="no row begins after this (default 450)")
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--new", action="store_true", help="only rows that were never begun")
    return parser


def open_rows(path: Path) -> RowsFile:
    """The rows of these sources on this device; the facts say which these are. Raises BackendError where there is no
    device."""
    of = {"sources": id_of(*sources(*_SOURCES)), "device": device_name()}
    file = RowsFile(path, of)
    file.put_facts({"of": of})
    return file


def device_name() -> str:
    """Raises BackendError where no device can be used."""
    from llm_decoder.backends import load_cuda
    from llm_decoder.errors import BackendError

    cuda = load_cuda()
    try:
        return str(cuda.describe_device(0)["name"])
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"no device: {error}") from error


def make_rows(rows: Mapping[str, Row], file: RowsFile, limit_s: float) -> int:
    """The exit status: as of resumed.measure_rows, or LOST."""
    status = measure_rows(
        {name: watched(name, _told(row.make), row.limit_s, file) for name, row in rows.items()},
        file,
        limit_s,
        can_go_on=is_alive,
        needs_s=lambda name: rows[name].limit_s / 2,
    )
    return status if status != FAILED or is_alive() else LOST


def is_alive() -> bool:
    """Whether the device still answers: after some errors it does not until the process ends."""
    from llm_decoder.backends import load_cuda

    try:
        load_cuda().synchronize(0, 0)
    except Exception:  # noqa: BLE001 - whatever it says, it is no answer
        return False
    return True


def _told(make: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    """With where it failed in the log: the row has what."""

    def make_and_tell() -> Mapping[str, Any]:
        try:
            return make()
        except Exception:
            traceback.print_exc()
            raise

    return make_and_tell


def run_stage(make_all: Callable[[], Mapping[str, Row]], asked: argparse.Namespace) -> int:
    """What a stage's main does: the exit status. make_all: what may say that this machine lacks something, with
    NoDevice or BackendError."""
    from gpu_clock import NoDevice

    from llm_decoder.errors import BackendError

    try:
        file = open_rows(asked.out)
        rows = make_all()
    except (NoDevice, BackendError) as reason:
        print(f"nothing is made: {reason}", file=sys.stderr)
        return CANNOT
    wanted = {name: row for name, row in rows.items() if asked.rows in name and not (asked.new and name in file.rows)}
    return make_rows(wanted, file, asked.limit_s)
