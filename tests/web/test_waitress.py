"""The Flask app under a real waitress, by raw connections: streams as they come, hang-ups, slow and large senders, the
end of the server."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_llm import Event, ScriptedLLM, events_of, service_of, text_of

from llm_decoder.errors import ConfigError, NotEnoughMemoryError
from llm_decoder.web.app import create_app
from llm_decoder.web.server import Server

MESSAGES = [{"role": "user", "content": "hi"}]
Start = Callable[..., "Running"]


class Running:
    """A server on a thread, with the LLM that it asks."""

    def __init__(self, **settings: Any) -> None:
        self._open: list[Any] = []
        self.llm = ScriptedLLM()
        service = service_of(self.llm, **{"port": 0} | settings)
        self.server = Server(create_app(service), service)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def post(self, path: str, body: Any) -> http.client.HTTPResponse:
        return self.ask("POST", path, json.dumps(body).encode())

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        self._open.append(connection)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"content-type": "application/json"} | named)
        answer = connection.getresponse()
        self._open.append(answer)
        return answer

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def end(self) -> None:
        self.server.stop(0)
        self.thread.join(20)
        for one in self._open:
            one.close()
        assert not self.thread.is_alive()


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Running] = []

    def begin(**settings: Any) -> Running:
        running.append(Running(**settings))
        return running[-1]

    yield begin
    for one in running:
        one.end()


def read_until(answer: http.client.HTTPResponse, mark: bytes) -> bytes:
    raw = b""
    while mark not in raw:
        piece = answer.read1()
        assert piece, f"it ended after {raw!r}"
        raw += piece
    return raw


def read_all(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as reader:
        return reader.read()


def hang_up(answer: http.client.HTTPResponse) -> None:
    answer.close()


def test_text_arrives_while_the_model_still_writes(start: Start) -> None:
    running = start()
    answer = running.post("/page/stream", {"messages": MESSAGES})
    request = running.llm.next_request()
    request.say("first")
    raw = read_until(answer, b'"first"}')
    request.say("second")
    raw += read_until(answer, b'"second"}')
    request.end()
    raw += answer.read()
    events: list[Event] = events_of(raw)
    assert text_of(events) == "firstsecond"
    assert events[-1].data == "[DONE]"


def test_a_page_whose_connection_broke_reads_on_where_it_was(start: Start) -> None:
    running = start()
    answer = running.post("/page/stream", {"messages": MESSAGES})
    request = running.llm.next_request()
    request.say("one ")
    seen = events_of(read_until(answer, b'"one "}\n\n'))
    hang_up(answer)
    request.say("two ")
    again = running.ask("GET", f"/page/stream/{seen[0].data['stream']}", last_event_id=str(seen[-1].id))
    request.say("three")
    request.end()
    rest = events_of(again.read())
    assert text_of(seen) + text_of(rest) == "one two three"
    assert not request.is_cancelled.is_set()


def test_a_page_that_does_not_come_back_ends_its_answer(start: Start) -> None:
    running = start(resume_s=0.1)
    answer = running.post("/page/stream", {"messages": MESSAGES})
    request = running.llm.next_request()
    request.say("x")
    read_until(answer, b'"x"}')
    hang_up(answer)
    assert request.is_cancelled.wait(20)


@pytest.mark.parametrize("stream", [True, False])
def test_elsewhere_a_client_that_hangs_up_ends_its_answer(start: Start, stream: bool) -> None:
    running = start()
    with running.connect() as connection:
        body = json.dumps({"messages": MESSAGES, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        request = running.llm.next_request()
        assert not request.is_cancelled.is_set()
    assert request.is_cancelled.wait(20)


def test_an_answer_that_fails_before_its_first_token_has_a_status(start: Start) -> None:
    running = start()
    failing = threading.Thread(target=lambda: running.llm.next_request().fail(NotEnoughMemoryError("[rows] too many")))
    failing.start()
    answer = running.post("/v1/chat/completions", {"messages": MESSAGES, "stream": True})
    failing.join()
    assert answer.status == 400
    assert json.loads(answer.read())["error"]["code"] == "not_enough_memory"


def test_a_silent_stream_says_that_it_lives(start: Start) -> None:
    running = start(ping_s=0.05)
    answer = running.post("/page/stream", {"messages": MESSAGES})
    raw = read_until(answer, b": ping\n\n: ping\n\n")
    assert [event.name for event in events_of(raw)] == ["start"]


def test_more_streams_than_a_pool_of_four_are_served_at_once(start: Start) -> None:
    running = start()
    answers = [running.post("/page/stream", {"messages": MESSAGES}) for _ in range(12)]
    for answer in answers:
        read_until(answer, b"start")
    assert running.ask("GET", "/health").status == 200
    for request in running.llm.requests:
        request.say("x")
        request.end()
    assert [text_of(events_of(answer.read())) for answer in answers] == ["x"] * 12


def test_a_request_that_drips_is_cut_off_and_the_next_is_served(start: Start) -> None:
    running = start(read_timeout_s=0.5)
    with running.connect() as connection:
        connection.sendall(b"POST /page/render HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        dripping = threading.Event()
        threading.Thread(target=_drip, args=(connection, dripping), daemon=True).start()
        answer = read_all(connection)
        dripping.set()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer
    assert running.ask("GET", "/health").status == 200


def _drip(connection: socket.socket, is_over: threading.Event) -> None:
    try:
        while not is_over.wait(0.05):
            connection.sendall(b" ")
    except OSError:
        pass


def test_headers_that_never_end_are_cut_off(start: Start) -> None:
    running = start(read_timeout_s=0.5)
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        assert b" 408 " in read_all(connection).split(b"\r\n")[0]


def test_a_client_that_reads_nothing_is_left(start: Start) -> None:
    running = start(read_timeout_s=0.5)
    with running.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        request = running.llm.next_request()
        request.say(*["x" * 100_000] * 100)
        assert request.is_cancelled.wait(20)


def test_a_port_that_is_taken_is_named(start: Start) -> None:
    running = start()
    with pytest.raises(ConfigError, match=f"port {running.server.port}: Address already in use"):
        Running(port=running.server.port)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"POST /page/render HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /page/render HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /page/render HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_in_our_words(start: Start, sent: bytes, status: int) -> None:
    running = start()
    with running.connect() as connection:
        connection.sendall(sent)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["type"]
    assert b"waitress" not in head + body
    assert running.ask("GET", "/health").status == 200


def test_a_client_that_writes_first_and_reads_then_is_told_that_it_wrote_too_much(start: Start) -> None:
    running = start(max_body_bytes=1000)
    for _ in range(3):
        answer = running.ask("POST", "/generate", b'{"prompt": "' + b"a" * 9_000_000 + b'"}')
        told = json.loads(answer.read())["error"]
        assert (answer.status, told["code"]) == (413, "body_too_large")
        assert told["message"] == "[body] need at most 1000 bytes, got more"


def test_a_body_in_chunks_has_the_same_limit(start: Start) -> None:
    running = start(max_body_bytes=1000)
    with running.connect() as connection:
        connection.sendall(b"POST /page/render HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"800\r\n" + b"x" * 0x800 + b"\r\n")
        assert b" 413 " in read_all(connection).split(b"\r\n")[0]


def test_a_server_that_ends_lets_answers_end_and_refuses_new_ones(start: Start) -> None:
    running = start(drain_s=30.0)
    answer = running.post("/page/stream", {"messages": MESSAGES})
    request = running.llm.next_request()
    request.say("half ")
    read_until(answer, b'"half "}')
    running.server.stop()
    running.llm.closing.wait(20)
    refused = running.post("/page/stream", {"messages": MESSAGES})
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    request.say("whole")
    request.end()
    assert text_of(events_of(answer.read())) == "whole"
    running.thread.join(20)
    assert not running.thread.is_alive()


def test_a_server_that_may_not_wait_ends_its_answers(start: Start) -> None:
    running = start(drain_s=0.0)
    answer = running.post("/page/stream", {"messages": MESSAGES})
    running.llm.next_request().say("half")
    running.server.stop()
    assert events_of(answer.read())[-2].data["finish_reason"] == "abort"


def test_a_request_that_is_whole_is_not_asked_to_go_on(start: Start) -> None:
    assert start().ask("GET", "/version", expect="100-continue").status == 200
