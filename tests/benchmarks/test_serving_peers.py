"""The comparison of servers: what it takes from a load, and the tables that come of it. Nothing is started."""

from __future__ import annotations

from typing import Any

import pytest
import serving_peers
import serving_table
from serving_peers import WORK, Participant, ServerFailedError, Work, read_participants, sample_of

from llm_decoder.cli._workload import Workload, parse_lengths

SERVERS = """
[[server]]
name = "ours int8"
bits = 8
ours = true
command = ["python", "-m", "llm_decoder", "serve", "--port", "{port}"]
engine = ["--model", "small"]

[[server]]
name = "other"
bits = 8
command = ["other-server", "--port={port}"]
"""


def sample(tokens_s: float, ttft_s: float, **more: float) -> dict[str, float]:
    times = {"ttft_p50_s": ttft_s / 2, "ttft_p99_s": ttft_s, "itl_p50_s": 0.02, "itl_p99_s": 0.05}
    return (
        {"wall_s": 10.0, "total_tokens_s": tokens_s, "answer_tokens_s": tokens_s / 3, "load_cpu_s": 1.0} | times | more
    )


def report(ours: dict[str, Any], other: dict[str, Any], **more: Any) -> dict[str, Any]:
    loads = {load: {"ours int8": [ours[load]], "other": [other[load]]} for load in ours}
    loads["clients32"] |= more
    participants = {
        "ours int8": {"bits": 8, "ours": True, "command": "serve", "version": "", "failed": None},
        "other": {"bits": 8, "ours": False, "command": "other", "version": "1", "failed": None},
    }
    machine = {"cpu": "a processor"}
    return {
        "date": "2026-01-01",
        "commit": "abc",
        "machine": machine,
        "threads": 2,
        "participants": participants,
        "results": loads,
    }


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def requests(work: Work, seed: int) -> list[dict[str, int]]:
    lengths = parse_lengths(work.prompt, ""), parse_lengths(work.answer, "")
    return [
        {"n_prompt_tokens": len(prompt), "n_answer_tokens": n_answer}
        for prompt, n_answer in Workload(work.n_requests, *lengths, seed=seed).prompts()
    ]


def test_a_servers_file_says_how_each_is_started() -> None:
    ours, other = read_participants(SERVERS)
    assert ours.engine
    assert other == Participant(name="other", command=["other-server", "--port={port}"], bits=8)


def test_a_server_that_counts_other_tokens_than_were_sent_has_failed() -> None:
    work = WORK["mixed32"]
    seen = requests(work, seed=7)
    serving_peers._check_counts({"errors": {}}, seen, work, seed=7)
    seen[5]["n_prompt_tokens"] += 1  # as one that puts a begin token before ids does
    with pytest.raises(ServerFailedError, match="by its own count"):
        serving_peers._check_counts({"errors": {}}, seen, work, seed=7)


def test_a_server_that_refuses_requests_has_failed() -> None:
    with pytest.raises(ServerFailedError, match="429"):
        serving_peers._check_counts({"errors": {"429 queue_full": 1}}, [], WORK["clients1"], seed=0)


def test_a_sample_is_what_bench_serve_reports() -> None:
    times = {"p50": 0.1, "p99": 0.2}
    figures = {"wall_s": 2.0, "total_tokens_per_s": 30.0, "answer_tokens_per_s": 10.0, "n_cached_tokens": 0}
    figures |= {"time_to_first_token_s": times, "inter_token_latency_s": times, "own_cpu_s": 0.3}
    taken = sample_of(figures | {"n_requests": 5, "n_good": 4})
    assert taken["ttft_p99_s"] == taken["itl_p99_s"] == 0.2
    assert taken["n_errors"] == 1


def test_a_peers_point_stands_beside_the_most_of_ours_that_is_no_later() -> None:
    ours = {"clients1": sample(200, 0.04), "clients8": sample(900, 0.3), "clients32": sample(2000, 1.5)}
    other = {"clients1": sample(90, 0.03), "clients8": sample(300, 0.9), "clients32": sample(500, 4.0)}
    assert [row[4:] for row in rows(serving_table.points_table(report(ours, other)))] == [
        ["none", "", "", ""],
        ["ours int8", "8", "900", "3.00"],
        ["ours int8", "32", "2000", "4.00"],
    ]


def test_the_loads_own_time_is_taken_off_over_all_cores() -> None:
    loads = {"clients32": sample(900, 1.0)}
    alone = {"ours int8, engine alone": [{"total_tokens_s": 1000.0}]}
    ((*_, share, freed),) = rows(serving_table.engine_table(report(loads, loads, **alone)))
    assert share == "90.0%"
    assert freed == "94.7%"  # 10 s, of which 1 s on one of two cores was the generator's


def test_the_markdown_has_every_load_and_the_picture_is_one(tmp_path) -> None:
    loads = {"clients1": sample(90, 0.03), "clients32": sample(900, 1.0), "mixed32": sample(800, 9.0)}
    shown = report(loads, loads)
    text = serving_table.markdown(shown)
    assert "32 clients, every third prompt of 2048" in text
    assert "| 2.5 |" in text  # p99 between tokens over the median
    serving_table.plot(shown, tmp_path / "serving.png")
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")
