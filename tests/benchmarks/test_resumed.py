"""Benchmarks that go on where they were stopped: what is written when, and what the next run takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from resumed import DONE, FAILED, LEFT, RowsFile, id_of, measure_rows

OF = {"build": "one"}


class Clock:
    """Goes on by a second at each row."""

    def __init__(self) -> None:
        self.now = 0.0
        self.measured: list[str] = []

    def maker(self, name: str, error: Exception | None = None) -> Callable[[], dict[str, Any]]:
        def make() -> dict[str, Any]:
            self.now += 1
            self.measured.append(name)
            if error:
                raise error
            return {"us": self.now}

        return make

    def run(self, file: RowsFile, makers: dict[str, Any], limit_s: float = 100, **options: Any) -> int:
        return measure_rows(makers, file, limit_s, clock=lambda: self.now, say=lambda _: None, **options)

    def makers(self, names: Iterable[str] = "abc") -> dict[str, Any]:
        return {name: self.maker(name) for name in names}


def test_each_row_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "new" / "rows.json"
    seen = []

    def look() -> dict[str, Any]:
        seen.append(list(json.loads(path.read_text())["rows"]))
        return {}

    assert clock.run(RowsFile(path, OF), clock.makers("ab") | {"look": look}) == DONE
    assert seen == [["a", "b"]]


def test_the_next_run_takes_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    clock = Clock()
    assert clock.run(RowsFile(path, OF), clock.makers(), limit_s=2) == LEFT
    assert clock.measured == ["a", "b"]
    assert clock.run(RowsFile(path, OF), clock.makers()) == DONE
    assert clock.measured == ["a", "b", "c"]
    assert {name: row["us"] for name, row in RowsFile(path, OF).rows.items()} == {"a": 1, "b": 2, "c": 3}


def test_rows_of_another_build_are_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    clock = Clock()
    clock.run(RowsFile(path, OF), clock.makers("ab"))
    other = RowsFile(path, {"build": "two"})
    assert other.rows == {}
    clock.run(other, clock.makers("a"))
    assert clock.measured == ["a", "b", "a"]
    assert list(RowsFile(path, OF).rows) == ["b"]


def test_compiled_files_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_bytes(file.name.encode())
    before = id_of(*files)
    assert before == id_of(*files)
    files[1].write_bytes(b"c")
    assert before != id_of(*files)


def test_a_row_that_failed_is_told_and_tried_again_after_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    clock = Clock()
    broken = {"a": clock.maker("a", RuntimeError("no such kernel"))} | clock.makers("bc")
    assert clock.run(RowsFile(path, OF), broken, limit_s=2) == FAILED
    assert RowsFile(path, OF).rows["a"]["failed"] == "RuntimeError: no such kernel"
    assert clock.run(RowsFile(path, OF), clock.makers()) == DONE
    assert clock.measured == ["a", "b", "c", "a"]


def test_after_a_failure_nothing_is_begun_on_a_device_that_answers_no_more(tmp_path: Path) -> None:
    clock = Clock()
    broken = {"a": clock.maker("a", RuntimeError("illegal address"))} | clock.makers("bc")
    assert clock.run(RowsFile(tmp_path / "rows.json", OF), broken, can_go_on=lambda: False) == FAILED
    assert clock.measured == ["a"]


def test_facts_are_kept_beside_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    RowsFile(path, OF).put_facts({"driver": "1"})
    RowsFile(path, OF).put("a", {"us": 1.0})
    assert RowsFile(path, OF).data["facts"] == {"driver": "1"}
