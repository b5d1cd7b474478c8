"""The soak in small, on both servers; `make soak` asks 10,000 times, and holds memory to its bound too."""

from __future__ import annotations

import random

import pytest
from soak import burst_faults, soak_faults
from soak_answers import Said, lasting, streamed_answers, whole_answers
from soak_clients import Alone, Client, Tally
from soak_questions import questions
from soak_run import BurstReport, Rightness, SoakReport, make_model, run_bursts, run_soak

from llm_decoder.cli._exchange import Address, Answer

SERVERS = ["fastapi", "flask"]
N_CLIENTS, N_REQUESTS, N_KINDS_EACH = 8, 120, 5


@pytest.fixture(scope="module")
def soaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SoakReport]:
    """What is right is asked of the first server; the second is held to it."""
    model = make_model(tmp_path_factory.mktemp("soak") / "model")
    alone: Rightness | None = None
    reports = {}
    for server in SERVERS:
        reports[server], alone = run_soak(
            server,
            model,
            n_requests=N_REQUESTS,
            n_warmup=40,
            n_clients=N_CLIENTS,
            kinds_each=N_KINDS_EACH,
            alone=alone,
        )
    return reports


@pytest.mark.parametrize("server", SERVERS)
def test_among_clients_that_come_and_go_every_answer_is_that_of_who_asks_alone(
    soaks: dict[str, SoakReport], server: str
) -> None:
    report = soaks[server]
    assert report.wrong == []
    assert report.n_requests == N_REQUESTS
    assert report.n_compared >= len(questions(0))
    assert {"cut off", "hung up", "malformed", "half a body"} <= set(report.counts)
    assert report.n_checks > N_REQUESTS
    assert report.n_finished["abort"] > 0


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_keeps_nothing_of_who_has_gone(soaks: dict[str, SoakReport], server: str) -> None:
    """Requests, answers and connections; what is imported or compiled late is not one a request."""
    report = soaks[server]
    kept = {name: n for name, n in report.objects.items() if n >= N_REQUESTS // 4 and name in OURS}
    assert kept == {}
    assert report.n_files[1] - report.n_files[0] < N_CLIENTS


OURS = {
    *("Request", "Sequence", "RequestHandle", "RunningCall", "Call", "RequestOutput", "Completion", "StreamEvent"),
    *("RequestLine", "Incoming", "PageStream", "Reader", "SamplingParams", "Task", "Future", "socket", "HTTPChannel"),
}


@pytest.mark.parametrize("server", SERVERS)
def test_of_a_burst_on_a_real_model_those_inside_are_served_and_the_rest_is_told_to_come_again(server: str) -> None:
    report = run_bursts(server, queue=4, n_bursts=2, n_tokens=16)
    assert report.wrong == []
    assert min(report.n_good) >= 4
    assert [good + refused for good, refused in zip(report.n_good, report.n_refused, strict=True)] == [40, 40]
    assert all(report.n_refused)


def report_of(**given: object) -> SoakReport:
    values = {"wrong": [], "windows": [100, 101], "n_preemptions": 1}
    return SoakReport(**{name: None for name in SoakReport.__dataclass_fields__} | values | given)  # type: ignore[arg-type]


def test_memory_that_moves_by_more_than_two_percent_is_a_fault() -> None:
    assert soak_faults(report_of()) == []
    assert soak_faults(report_of(windows=[100, 103, 100])) == ["resident memory moved by 3.0%, need at most 2%"]
    assert soak_faults(report_of(wrong=["x"], n_preemptions=0)) == ["x", "nobody was preempted"]


def test_a_burst_that_starves_or_grows_is_a_fault() -> None:
    good = BurstReport("fastapi", 4, 40, [4, 5], [36, 35], [90, 95, 100, 101])
    assert burst_faults(good) == []
    assert len(burst_faults(BurstReport("fastapi", 4, 40, [3, 40], [37, 0], [90, 95, 100, 103]))) == 3


CHUNKS = [
    'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}',
    'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", '
    '"arguments": "{"}}]}, "finish_reason": null}]}',
    'data: {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}, '
    '"finish_reason": "tool_calls"}]}',
    "data: [DONE]",
]
CALL = {"id": "y", "function": {"name": "f", "arguments": "{}"}}
WHOLE = {"choices": [{"index": 0, "message": {"content": "a", "tool_calls": [CALL]}, "finish_reason": "tool_calls"}]}


def test_a_stream_joined_is_compared_with_the_answer_in_one_piece() -> None:
    raw = "".join(f"{chunk}\n\n" for chunk in CHUNKS).encode()
    whole = whole_answers(WHOLE)
    assert streamed_answers(raw) == (whole, True)
    for end in range(len(raw)):
        answers, is_done = streamed_answers(raw[:end])
        assert not is_done or end >= len(raw) - 2
        assert all(said.begins(whole[0]) for said in answers.values())
    assert not Said("b").begins(whole[0])
    assert not Said("a", calls=[["f", "{1"]]).begins(whole[0])
    assert not Said("a", finish_reason="stop").begins(whole[0])
    with pytest.raises(ValueError, match="an error in the stream"):
        streamed_answers(b'data: {"error": {"message": "x"}}\n\n')


def test_ids_and_counts_are_not_compared() -> None:
    assert lasting({"id": "a", "usage": 1, "outputs": [{"text": "x", "usage": 2}]}) == {"outputs": [{"text": "x"}]}


def test_the_canary_of_somebody_else_is_seen() -> None:
    tally = Tally()
    question = questions(3)[0]
    client = Client(Address("", 0), [3], {(question.kind, 3): Alone({}, {})}, tally, random.Random(0))
    client._is_whole("completion", 3, Answer(status=200, pieces=[(0.0, b"of canary-00003")]))
    assert tally.wrong == []
    client._is_whole(
        "completion", 3, Answer(status=200, pieces=[(0.0, b"of canary-00003, and cana"), (0.0, b"ry-00004")])
    )
    assert "[4]" in tally.wrong[0]
