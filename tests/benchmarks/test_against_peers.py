"""The suite's pure parts, and a column measured with fake workers on a machine that is always quiet."""

from __future__ import annotations

from typing import Any

import against_peers
import machine
import pytest
from against_peers import COLUMNS, Column, Participant, Shape, Suite, read_peers, rotated, scrubbed
from peer_worker import WorkerFailedError
from worker import decode_rate, random_prompts

PEERS = """
[shapes]
small = { vocab_size = 1000, n_layer_weights = 900, n_output_weights = 100 }

[[peer]]
name = "ours int8"
driver = "ours"
bits = 8
model = "/models/{shape}"
options = { quantization = "int8" }
also = ["decode32768"]

[[peer]]
name = "other"
driver = "other"
bits = 8
python = "/venvs/other/bin/python"
model = "/models/{shape}.gguf"
start_command = ["bench", "{shape}"]
skip = { "small batch64" = "does not fit", batch8 = "never" }
"""


def test_the_decode_rate_counts_only_while_every_sequence_decodes() -> None:
    alone = [0.0, 1.0, 2.0, 3.0]
    assert decode_rate([alone]) == 1.0
    faster_alone = [0.0, 0.5, 1.0, 2.0, 3.0]
    slower_at_last = [1.0, 2.0, 3.0, 9.0]
    assert decode_rate([faster_alone, slower_at_last]) == 2.0


def test_tokens_of_one_step_that_arrive_a_little_apart_change_nothing() -> None:
    first = [0.0, 1.0, 2.0, 3.0]
    assert decode_rate([first, [moment + 1e-6 for moment in first]]) == pytest.approx(2.0, rel=1e-5)


def test_one_token_has_no_decode_rate() -> None:
    assert decode_rate([[0.5]]) is None


def test_prompts_differ_by_seed_and_share_only_what_was_asked() -> None:
    first, second = random_prompts(2, 10, 4, seed=1, vocab_size=1000)
    assert first[:4] == second[:4]
    assert first[4:] != second[4:]
    assert len(first) == len(second) == 10
    assert random_prompts(1, 10, 0, seed=2, vocab_size=1000) != random_prompts(1, 10, 0, seed=3, vocab_size=1000)


def test_decode_columns_repeat_their_prompts_and_prefills_never_do() -> None:
    decode, prefill = COLUMNS["decode2048"], COLUMNS["prefill2048"]
    assert decode.request(1) == decode.request(2)
    assert decode.request(1)["reuse"]
    assert prefill.request(1) != prefill.request(2)
    assert not prefill.request(1)["reuse"]
    assert COLUMNS["search2048x8"].request(1) != COLUMNS["search2048x8"].request(2)


def test_a_column_picks_its_own_figure() -> None:
    answer = {"first_token_s": 0.5, "decode_tokens_s": 40.0}
    assert COLUMNS["prefill512"].pick(answer) == 1024
    assert COLUMNS["ttft128"].pick(answer) == 0.5
    assert COLUMNS["batch8"].pick(answer) == 40.0
    assert COLUMNS["search2048x8"].pick({"search_s": 3.0}) == 3.0


def test_a_peers_file_names_the_shape_once() -> None:
    shape, (mine, other) = read_peers(PEERS, "small")
    assert shape == Shape("small", 1000, 900, 100)
    assert mine.model == "/models/small"
    assert other.start_command == ["bench", "small"]
    words = other.command(shape.vocab_size, threads=2)
    assert words[0] == "/venvs/other/bin/python"
    assert words[1].endswith("benchmarks/peers/drive_other.py")
    assert words[2:] == ["--model", "/models/small.gguf", "--vocab-size", "1000", "--threads", "2"]


def test_a_participant_says_which_columns_it_is_not_in() -> None:
    _, (mine, other) = read_peers(PEERS, "small")
    assert mine.why_not("decode32768", "small") is None
    assert other.why_not("decode32768", "small") == "not asked for"
    assert other.why_not("batch64", "small") == "does not fit"
    assert other.why_not("batch64", "large") is None
    assert other.why_not("batch8", "large") == "never"


def test_paths_of_the_machine_stay_out_of_results() -> None:
    assert scrubbed("/a/b/python x.py /tmp/m-1.gguf --out benchmarks/results/r.json") == (
        "python x.py m-1.gguf --out benchmarks/results/r.json"
    )


def test_each_round_begins_with_the_next_participant() -> None:
    assert [rotated(["a", "b", "c"], n) for n in (0, 1, 3)] == [["a", "b", "c"], ["b", "c", "a"], ["a", "b", "c"]]
    assert rotated([], 2) == []


def test_cores_of_others_are_what_is_busy_beyond_our_own() -> None:
    before, after = machine.CpuTime(10.0, 0.0, 100.0), machine.CpuTime(14.0, 0.0, 102.0)
    assert machine.foreign_cores(before, after, own_s=3.0) == 0.5
    assert machine.foreign_cores(before, after, own_s=5.0) == 0.0


class FakeWorker:
    """Answers with a first token after 1 s, 2 s, ... and fails from its `fails_at`-th request on."""

    def __init__(self, name: str, calls: list[str], fails_at: int = 1000) -> None:
        self._name, self._calls, self._fails_at, self._n = name, calls, fails_at, 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._n += 1
        self._calls.append(self._name)
        if self._n >= self._fails_at:
            raise WorkerFailedError("out of memory")
        return {"first_token_s": float(self._n), "decode_tokens_s": None}

    def cpu_s(self) -> float:
        return 1e9  # all that the machine does is ours


def quiet_suite(monkeypatch: pytest.MonkeyPatch, **workers: FakeWorker) -> Suite:
    monkeypatch.setattr(against_peers, "wait_until_quiet", lambda: None)
    monkeypatch.setattr(against_peers, "foreign_cores", lambda *_: 0.0)
    monkeypatch.setattr(against_peers, "probe_limits", lambda threads: (30.0, 1500.0))
    participants = [Participant(name, "fake", 8, "model") for name in ("a", "b", "c")]
    suite = Suite(participants, Shape("small", 1000, 900, 100), threads=2, repeat=3, slow_s=60.0)
    suite._workers = workers  # type: ignore[assignment]
    return suite


def test_a_column_alternates_and_keeps_all_but_the_first_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    suite = quiet_suite(monkeypatch, a=FakeWorker("a", calls), b=FakeWorker("b", calls), c=FakeWorker("c", calls))
    suite.measure("ttft128")
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    result = suite.report()["results"]["ttft128"]["a"]
    assert result["median"] == 3.0
    assert [sample["value"] for sample in result["samples"]] == [2.0, 3.0, 4.0]
    assert result["samples"][0]["read_gb_s"] == 30.0


def test_a_participant_that_fails_is_absent_with_its_reason_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    suite = quiet_suite(
        monkeypatch, a=FakeWorker("a", calls), b=FakeWorker("b", calls, fails_at=2), c=FakeWorker("c", calls)
    )
    suite.measure("ttft128")
    results = suite.report()["results"]["ttft128"]
    assert results["b"] == {"absent": "out of memory"}
    assert len(results["c"]["samples"]) == 3


def test_a_slow_participant_gives_one_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    suite = quiet_suite(monkeypatch, a=FakeWorker("a", calls), b=FakeWorker("b", calls), c=FakeWorker("c", calls))
    suite._slow_s = -1.0
    suite.measure("ttft128")
    assert [len(result["samples"]) for result in suite.report()["results"]["ttft128"].values()] == [1, 1, 1]


def test_every_column_has_a_label_for_the_tables() -> None:
    import table

    assert set(table.LABELS) == set(COLUMNS)
    lower = {column.value for column in COLUMNS.values() if column.lower_is_better}
    assert lower == set(table.LOWER_IS_BETTER)
    assert Column("start", 16).lower_is_better
