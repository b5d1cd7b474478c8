"""bench serve: what it asks of a server, and that its figures are those of what came back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from cli_fakes import Program
from scripted_server import DONE, ScriptedServer, completion, event, refusal, stream

from llm_decoder.cli import _own_server
from llm_decoder.cli._exchange import Address, Answer, _Chunks, exchange, post_request
from llm_decoder.cli._load import Load, Outcome, read_answer
from llm_decoder.cli._load_report import figures, gaps, spread
from llm_decoder.cli._options import ModelOptions
from llm_decoder.cli._own_server import _flags
from llm_decoder.cli._sse_reader import EventReader
from llm_decoder.cli._workload import Lengths, Workload, parse_lengths
from llm_decoder.errors import ServerError

FOUR = Lengths(((4, 4),))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.replies = [stream(*completion("a", "b", "c", n_prompt=4))]
    yield scripted
    scripted.close()


def report(cli: Program, server: ScriptedServer, *arguments: str) -> dict[str, Any]:
    ran = cli("bench", "serve", "--url", server.url, "--json", *arguments)
    assert ran.code == 0, ran.err
    record: dict[str, Any] = json.loads(ran.out)
    return record


def test_a_load_is_counted_as_the_server_counts_it(cli: Program, server: ScriptedServer) -> None:
    record = report(cli, server, "--requests", "5", "--concurrency", "2", "--prompt-len", "4", "--gen-len", "3")
    shown = record["figures"]
    assert (shown["n_requests"], shown["n_good"], shown["errors"]) == (5, 5, {})
    assert (shown["n_prompt_tokens"], shown["n_answer_tokens"]) == (20, 15)
    assert shown["total_tokens_per_s"] == pytest.approx(35 / shown["wall_s"])
    assert shown["own_cpu_s"] > 0
    assert shown["server_cpu_s"] is None
    assert [len(request["event_s"]) for request in record["requests"]] == [3] * 5
    assert record["workload"]["concurrency"] == 2
    assert not cli.opened


def test_every_request_asks_for_a_whole_greedy_answer_to_tokens(cli: Program, server: ScriptedServer) -> None:
    report(cli, server, "--requests", "3", "--warmup", "0", "--prompt-len", "4-6", "--gen-len", "3", "--vocab", "150")
    bodies = [asked.body for asked in server.asked]
    assert {asked.path for asked in server.asked} == {"/v1/completions"}
    assert all(4 <= len(body["prompt"]) <= 6 and set(body["prompt"]) <= set(range(100, 150)) for body in bodies)
    rest = {name: value for name, value in bodies[0].items() if name != "prompt"}
    assert rest == {
        "model": "scripted",
        "max_tokens": 3,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_warm_up_does_not_count_and_asks_for_other_prompts(cli: Program, server: ScriptedServer) -> None:
    record = report(cli, server, "--requests", "2", "--warmup", "3", "--prompt-len", "8", "--shared-prefix", "4")
    prompts = [asked.body["prompt"] for asked in server.asked]
    assert len(record["requests"]) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 1


@pytest.mark.parametrize("log", ["the weights are damaged", ""])
def test_a_server_of_our_own_that_has_failed_is_waited_for_no_longer(
    server: ScriptedServer, tmp_path: Path, log: str
) -> None:
    server.models = [refusal(503, "loading", code="loading"), refusal(503, "its engine has died", code="failed")]
    process: Any = SimpleNamespace(poll=lambda: None, wait=lambda timeout_s: None)  # it runs on
    (tmp_path / "log").write_text(log)
    with (tmp_path / "log").open("rb") as file, pytest.raises(ServerError, match=log or "its engine has died"):
        _own_server._wait(process, int(server.url.rpartition(":")[2]), file.fileno())


def test_one_seed_is_one_workload() -> None:
    def make(seed: int, salt: str = "") -> tuple[list[bytes], list[float]]:
        workload = Workload(5, Lengths(((4, 9),)), FOUR, rate=3.0, seed=seed)
        return workload.bodies(salt), workload.moments()

    assert make(1) == make(1)
    assert make(1)[0] != make(2)[0]
    assert make(1)[1] != make(2)[1]
    assert make(1, "x")[0] != make(1)[0]


def test_random_moments_come_at_the_rate_that_was_asked_for() -> None:
    moments = Workload(4000, FOUR, FOUR, rate=50.0).moments()
    assert moments[0] == 0.0
    assert moments == sorted(moments)
    assert 4000 / moments[-1] == pytest.approx(50.0, rel=0.1)


def test_lengths_are_drawn_from_each_of_their_ranges() -> None:
    workload = Workload(200, parse_lengths("8,100-200", "--x"), parse_lengths("5", "--x"))
    lengths = {len(prompt) for prompt, _ in workload.prompts()}
    assert 8 in lengths
    assert max(lengths) > 150
    assert all(n == 8 or 100 <= n <= 200 for n in lengths)


@pytest.mark.parametrize("text", ["", "0", "a", "5-3", "4,", "-4", "4-x"])
def test_what_are_no_lengths_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="need lengths"):
        parse_lengths(text, "--prompt-len")


def test_no_more_requests_are_open_than_were_asked_for(cli: Program, server: ScriptedServer) -> None:
    lock, n_open, most = threading.Lock(), 0, 0
    together = threading.Barrier(2, timeout=20)

    def before(index: int) -> None:
        nonlocal n_open, most
        with lock:
            n_open += index == 0
            most = max(most, n_open)
        if index == 0:
            together.wait()  # two come to be open
        if index == 3:
            with lock:
                n_open -= 1

    server.replies[0].before = before
    report(cli, server, "--requests", "6", "--concurrency", "2", "--warmup", "0")
    assert most == 2


def test_errors_are_counted_by_kind_and_do_not_count_as_speed(cli: Program, server: ScriptedServer) -> None:
    server.replies = [
        refusal(429, "full since 1", code="queue_full"),
        refusal(429, "full since 2", code="queue_full"),
        stream({"error": {"message": "no", "code": "failed"}}),
        stream(*completion("a", "b")[:1], is_done=False),
        stream(*completion("a", "b")[:1], is_done=False, is_cut=True),
        stream(*completion("a", "b")),
    ]
    record = report(cli, server, "--requests", "6", "--concurrency", "1", "--warmup", "0")
    assert record["figures"]["errors"] == {
        "429 queue_full": 2,
        "in the stream: failed": 1,
        "ended without [DONE]": 1,
        "broken off by the server": 1,
    }
    assert (record["figures"]["n_good"], record["figures"]["n_answer_tokens"]) == (1, 2)


def test_a_load_without_a_single_good_answer_is_an_error(cli: Program, server: ScriptedServer) -> None:
    server.replies = [refusal(400, "no", code="bad")]
    ran = cli("bench", "serve", "--url", server.url, "--requests", "2")
    assert ran.code == 1
    assert "failed: 2 x 400 bad" in ran.out


def test_a_server_that_is_too_slow_has_failed(cli: Program, server: ScriptedServer) -> None:
    end = threading.Event()
    server.replies[0].before = lambda index: None if index == 0 else bool(end.wait(20)) and None
    ran = cli("bench", "serve", "--url", server.url, "--requests", "1", "--warmup", "0", "--timeout-s", "0.3")
    end.set()
    assert ran.code == 1
    assert "timeout after 0.3 s" in ran.out


def test_a_server_that_goes_away_is_told_by_kind() -> None:
    address = Address("127.0.0.1", 9)  # discard: nobody listens
    answer = asyncio.run(exchange(address, post_request(address, "/x", b"{}"), 5))
    assert read_answer(answer, answer.started_s).error == "connection refused"


def test_the_report_as_text_tells_what_the_program_itself_took(cli: Program, server: ScriptedServer) -> None:
    ran = cli("bench", "serve", "--url", server.url, "--requests", "3", "--prompt-len", "4", "--rate", "1000")
    assert ran.code == 0
    assert "scripted at http" in ran.out
    assert "1000 requests/s at random, prompts of 4 tokens, answers of 128" in ran.out
    assert "3 of 3 requests" in ran.out
    assert "this program took" in ran.out
    assert "time to first token" in ran.out


def test_the_report_goes_to_files_too(cli: Program, server: ScriptedServer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = ("--output", str(tmp_path / "load.json"), "--plot", str(tmp_path / "load.png"))
    assert cli("bench", "serve", "--url", server.url, "--requests", "3", *files).code == 0
    assert json.loads((tmp_path / "load.json").read_text())["figures"]["n_good"] == 3
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [("--shared-prefix", "128"), ("--prompt-len", "x"), ("--rate", "0"), ("--plot", "a.txt"), ("--threads", "2")],
)
def test_a_wrong_command_line_asks_the_server_nothing(
    cli: Program, server: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    ran = cli("bench", "serve", "--url", server.url, *arguments)
    assert ran.code == 2
    assert arguments[0] in ran.err
    assert not server.asked


def test_bench_without_serve_is_what_it_was(cli: Program) -> None:
    assert "--columns" in cli("bench", "--help").out
    assert "serve" in cli("bench", "--help").out
    assert cli("bench", "--columns", "nonsense").code == 2


def test_the_times_are_those_of_the_events() -> None:
    pieces = [
        (10.5, event({"choices": [{"text": "a", "finish_reason": None}]})),
        (11.0, event({"choices": [{"text": "", "finish_reason": None}]}) + event({"choices": [{"text": "b"}]})[:9]),
        (11.5, event({"choices": [{"text": "b"}]})[9:] + event({"choices": [{"text": "", "finish_reason": "stop"}]})),
        (12.0, event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}) + DONE),
    ]
    outcome = read_answer(Answer(10.0, 12.0, 200, {}, pieces), 9.0)
    assert outcome == Outcome(1.0, 2.0, [0.5, 1.0, 1.5], 7, 0, 3)
    assert gaps(outcome) == [0.5, 0.5]
    shown = figures(Load([outcome], wall_s=2.0, own_cpu_s=0.5), server_cpu_s=1.0)
    assert shown["time_to_first_token_s"].p50 == 0.5
    assert shown["inter_token_latency_s"].p99 == 0.5
    assert shown["time_per_output_token_s"].mean == pytest.approx(1.5 / 2)
    assert shown["answer_tokens_per_s"] == 1.5


def test_percentiles_of_times() -> None:
    assert spread([]) is None
    found = spread([float(i) for i in range(101)])
    assert found is not None
    assert (found.mean, found.p50, found.p90, found.p99, found.max) == (50, 50, 90, 99, 100)


def test_a_body_in_chunks_is_the_same_wherever_it_is_cut() -> None:
    whole = b"5\r\nhello\r\n1;a=b\r\n \r\n6\r\nwo\r\nld\r\n0\r\n\r\n"
    for cut in range(len(whole)):
        chunks = _Chunks()
        first, is_over = chunks.take(whole[:cut])
        second, is_over = (b"", True) if is_over else chunks.take(whole[cut:])
        assert (first + second, is_over) == (b"hello wo\r\nld", True)


def test_events_are_the_same_wherever_their_bytes_are_cut() -> None:
    whole = ": ping\n\nevent: x\ndata: é\u2028\r\n\r\ndata:b\n\n".encode()
    for cut in range(len(whole)):
        reader = EventReader()
        assert reader.push(whole[:cut]) + reader.push(whole[cut:]) == ["é\u2028".encode(), b"b"]


def test_flags_of_the_model_go_to_the_server_that_is_started() -> None:
    options = ModelOptions(model="a b", threads=2, offline=True, deterministic=None)
    assert _flags(options) == ["--model", "a b", "--threads", "2", "--offline"]


def test_an_address_keeps_its_path_and_its_port() -> None:
    assert Address.of("http://host/models") == Address("host", 80, "/models")
    assert Address.of("https://[::1]:9") == Address("::1", 9, "", tls=True)
    request = post_request(Address.of("http://[::1]:9/m"), "/v1/completions", b"{}", "key")
    assert request.startswith(b"POST /m/v1/completions HTTP/1.1\r\nhost: [::1]:9\r\n")
    assert b"authorization: Bearer key\r\n" in request
