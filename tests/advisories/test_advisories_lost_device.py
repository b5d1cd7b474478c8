"""A GPU that fails under both servers: every client is told, probes see it, and the process lives to say why."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from two_servers import HANG_S, Answer, Api, Running, Web

from llm_decoder.errors import DeviceLostError
from llm_decoder.serving.logs import LOGGER

LOST = DeviceLostError("[synchronize] cudaErrorIllegalAddress: an illegal memory access; the GPU is lost")
DIED = "[server] its engine has died; the server's log says why"


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    LOGGER.addHandler(handler)
    yield handler
    LOGGER.removeHandler(handler)


@pytest.fixture(params=[Api, Web], ids=["uvicorn", "waitress"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    running: Running = request.param()
    yield running
    running.end()


def lose_the_device(server: Running, n_sequences: int) -> threading.Event:
    """Once so many are computed together, and what is returned is set."""
    backend = server.model.backend
    go = threading.Event()

    def fail() -> None:
        if backend.steps and len(backend.steps[-1]) == n_sequences and go.wait(HANG_S):
            raise LOST

    backend.before_step = fail
    return go


ASKED: dict[str, Any] = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}


def complete(server: Running, **fields: Any) -> Answer:
    return server.post("/v1/completions", ASKED | fields)


class Stream:
    """A completion of which the first words have come."""

    def __init__(self, server: Running, **fields: Any) -> None:
        body = json.dumps(ASKED | {"stream": True} | fields).encode()
        head = f"POST /v1/completions HTTP/1.0\r\nhost: 127.0.0.1:{server.port}\r\ncontent-type: application/json\r\n"
        self._socket = server.connect()
        self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self._told = b""
        while b"data: " not in self._told:
            self._told += self._socket.recv(65536)

    def rest(self) -> list[str]:
        """Its last two events, and what came after them."""
        with self._socket:
            while data := self._socket.recv(65536):
                self._told += data
        return self._told.decode().split("\n\n")[-3:]


def states(server: Running) -> list[str]:
    """That have a 1 in /metrics."""
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    found = [line for line in lines if line.startswith("llm_decoder:server_state{")]
    return [line.partition('state="')[2].partition('"')[0] for line in found if line.endswith(" 1.0")]


def test_every_request_under_way_fails_probes_say_so_and_the_server_lives(server: Running, log: Log) -> None:
    assert server.ask("GET", "/health").status == server.ask("GET", "/ready").status == 200
    go = lose_the_device(server, 3)
    stream = Stream(server)
    with ThreadPoolExecutor(2) as pool:
        whole = [pool.submit(complete, server, seed=seed) for seed in range(2)]
        go.set()
    for answer in (future.result() for future in whole):
        assert (answer.status, answer.error["message"], answer.error["code"]) == (503, DIED, "failed")
        assert "retry-after" not in answer.headers
    last, done, end = stream.rest()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "failed"
    assert (done, end) == ("data: [DONE]", "")
    for path in ("/health", "/ready"):
        answer = server.ask("GET", path)
        assert (answer.status, answer.error["message"]) == (503, DIED)
    assert states(server) == ["failed"]
    later = complete(server)
    assert (later.status, later.error["message"]) == (503, DIED)
    assert server.ask("GET", "/version").status == 200


def test_the_log_says_once_what_was_lost_and_clients_learn_nothing_of_it(server: Running, log: Log) -> None:
    lose_the_device(server, 2).set()
    with ThreadPoolExecutor(2) as pool:
        answers = [future.result() for future in [pool.submit(complete, server, stream=s) for s in (True, False)]]
    complete(server)
    (record,) = [record for record in log.records if record.levelno >= logging.ERROR]
    assert record.levelno == logging.CRITICAL
    assert "cudaErrorIllegalAddress" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is LOST
    assert not [answer for answer in answers if b"cudaError" in answer.body]


def held_by(owner: Any) -> Iterator[Any]:
    """What it refers to, through dicts and tuples of plain values, which the collector does not list."""
    for part in gc.get_referents(owner):
        yield part
        if issubclass(type(part), (dict, tuple)) and not gc.is_tracked(part):
            yield from held_by(part)


def who_remembers(secret: str) -> list[str]:
    """The types of all that holds a text with it; not the texts, which would be found the next time. No object is asked
    for its class, as isinstance does: some of other packages answer with a warning."""
    gc.collect()
    found = []
    for owner in gc.get_objects():
        for part in held_by(owner):
            needle: Any = secret if issubclass(type(part), str) else secret.encode()
            if issubclass(type(part), (str, bytes, bytearray)) and part is not secret and needle in part:
                found.append(type(owner).__name__)
    return found


def test_nothing_that_was_asked_stays_in_the_memory_of_a_server_that_lives_on(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", False)  # pytest keeps what it hears, with all that errors refer to
    secret = "-".join(["my", "secret", "word"])
    go = lose_the_device(server, 5)
    stream = Stream(server, prompt=f"say {secret}")
    asked: list[dict[str, Any]] = [{}, {"n": 2, "logprobs": 1}, {"stop": [secret]}]
    with ThreadPoolExecutor(len(asked)) as pool:
        whole = [pool.submit(complete, server, prompt=f"say {secret} {i}", **f) for i, f in enumerate(asked)]
        assert who_remembers(secret)
        go.set()
    assert {future.result().status for future in whole} == {503}
    stream.rest()
    del whole, stream
    end_s = time.monotonic() + 10
    while (found := who_remembers(secret)) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not found
