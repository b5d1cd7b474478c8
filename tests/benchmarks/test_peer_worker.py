"""The protocol between the suite and its workers, with a fake engine at the other end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from against_peers import COLUMNS, Column
from peer_worker import PeerWorker, WorkerFailedError, time_start

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAKE_DRIVER = Path(__file__).parent / "drive_fake.py"
ENV = {"PYTHONPATH": str(BENCHMARKS / "peers")}
ONE = Column("decode", 16, n_generate=4)
TWO = Column("decode", 16, n_generate=4, n_sequences=2)


def command(model: str) -> list[str]:
    return [sys.executable, str(FAKE_DRIVER), "--model", model, "--vocab-size", "1000", "--threads", "1"]


@contextmanager
def worker(tmp_path: Path, model: str = "any") -> Iterator[PeerWorker]:
    one = PeerWorker(command(model), ENV, tmp_path / "log", limit_s=60)
    try:
        yield one
    finally:
        one.close()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_worker_loads_once_and_answers_each_line_whatever_its_engine_prints(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        assert one.ready["versions"] == "fake 1"
        assert one.ask(ONE.request(1)) == {"first_token_s": 0.5, "decode_tokens_s": 4.0}
        assert one.ask(TWO.request(1)) == {"first_token_s": 0.5, "decode_tokens_s": 8.0}
        assert one.ask(COLUMNS["prefill512"].request(1)) == {"first_token_s": 0.5, "decode_tokens_s": None}


def test_a_worker_is_stopped_whenever_it_is_not_asked(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        assert state(one.pid) == "T"
        one.ask(ONE.request(1))
        assert state(one.pid) == "T"


def test_a_request_that_fails_tells_why_and_the_next_is_answered(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        with pytest.raises(WorkerFailedError, match="ValueError: 13 tokens"):
            one.ask(Column("prefill", 13).request(1))
        assert one.ask(ONE.request(1))["first_token_s"] == 0.5


def test_a_search_is_timed_as_a_whole_and_fails_when_its_answer_is_short(tmp_path: Path) -> None:
    column = COLUMNS["search128x4"]
    with worker(tmp_path) as one:
        assert column.pick(one.ask(column.request(1))) >= 0.0
        with pytest.raises(WorkerFailedError, match="ValueError: 13 tokens"):
            one.ask(Column("search", 13, n_generate=4, n_beams=2).request(1))
    with (
        worker(tmp_path, "short") as one,
        pytest.raises(WorkerFailedError, match="an answer of 64 tokens, got 63"),
    ):
        one.ask(column.request(1))


def test_an_answer_of_the_wrong_length_is_a_failure(tmp_path: Path) -> None:
    with worker(tmp_path, "short") as one, pytest.raises(WorkerFailedError, match=r"asked for 4 .* got \[3\]"):
        one.ask(ONE.request(1))


def test_a_worker_that_ends_leaves_its_last_words(tmp_path: Path) -> None:
    with worker(tmp_path, "crash") as one, pytest.raises(WorkerFailedError, match="out of memory"):
        one.ask(TWO.request(1))


def test_a_worker_that_cannot_load_leaves_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailedError, match="no such model"):
        PeerWorker(command("unloadable"), ENV, tmp_path / "log", limit_s=60)


def test_a_worker_keeps_compiled_files_though_the_suite_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with worker(tmp_path) as one:
        assert b"PYTHONDONTWRITEBYTECODE" not in Path(f"/proc/{one.pid}/environ").read_bytes()


def test_a_closed_worker_is_gone(tmp_path: Path) -> None:
    with worker(tmp_path) as one:
        pid = one.pid
    assert not Path(f"/proc/{pid}").exists()


def test_a_start_is_measured_to_the_first_answer_and_what_was_started_ends() -> None:
    seconds, n_bytes = time_start(command("any"), ENV, COLUMNS["start"].request(1))
    assert seconds > 0
    assert n_bytes > 0
    with pytest.raises(WorkerFailedError, match="did not start"):
        time_start(command("unloadable"), ENV, COLUMNS["start"].request(1))


def test_a_start_command_is_measured_to_its_end() -> None:
    assert time_start([sys.executable, "-c", ""], {}, None)[0] > 0
    with pytest.raises(WorkerFailedError, match="did not start"):
        time_start([sys.executable, "-c", "raise SystemExit(3)"], {}, None)
