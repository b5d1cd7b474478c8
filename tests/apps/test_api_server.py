"""The FastAPI server as a program, over real sockets: how it begins and ends, and clients that mean it ill."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LONG = {"prompts": ["Hello"], "temperature": 0.0, "ignore_eos": True, "stream": True}
WAIT_S = 60.0


class Server:
    """A program that serves; `url` once it listens."""

    def __init__(self, arguments: list[str], **more: Any) -> None:
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, **more)
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.connections: list[http.client.HTTPConnection] = []

    @classmethod
    def fake(cls, **options: Any) -> Server:
        return cls([sys.executable, str(HERE / "serve_fake.py"), json.dumps({"port": 0, **options})])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def wait_for(self, words: str) -> str:
        """The first line of its log that has these words."""
        with self._news:
            assert self._news.wait_for(lambda: any(words in line for line in self.lines), WAIT_S), self.lines
            return next(line for line in self.lines if words in line)

    def start(self) -> Server:
        self.port = int(self.wait_for("listening url=http://127.0.0.1:").strip().rpartition(":")[2])
        self.wait_for("info ready ")
        return self

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """What has begun to be answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        self.connections.append(connection)
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = json.loads(self.send(method, path, body, **headers).read())
        self.connections.pop().close()
        return answer

    def end(self) -> tuple[int, str]:
        """Its exit code and the whole of its log."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code, "".join(self.lines)

    def kill(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(WAIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that waits half a second for its clients."""
    server = Server.fake(read_timeout_s=0.5, step_s=0.01, max_header_bytes=4096).start()
    yield server
    server.kill()


def say(server: Server, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """What the server answers to bytes, until it closes."""
    with server.connect() as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause_s)
        answer = b""
        while data := client.recv(65536):
            answer += data
    return answer


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


# -- clients that mean it ill


@pytest.mark.parametrize(
    "nonsense",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n12345",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400_and_the_end_of_its_connection(impatient: Server, nonsense: bytes) -> None:
    assert status_and_code(say(impatient, nonsense)) in [(400, "bad_http"), (408, "headers_too_slow")]
    assert impatient.ask("GET", "/health") == {"status": "ok"}


def test_a_header_without_an_end_is_a_431(impatient: Server) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000
    assert status_and_code(say(impatient, request)) == (431, "headers_too_large")


def test_headers_that_come_a_byte_at_a_time_are_a_408(impatient: Server) -> None:
    assert status_and_code(say(impatient, b"GET /heal", b"th", b" HT", pause_s=0.1)) == (408, "headers_too_slow")


def test_a_connection_that_says_nothing_is_closed(impatient: Server) -> None:
    assert status_and_code(say(impatient)) == (408, "headers_too_slow")


def test_a_body_that_stops_half_way_is_a_408(impatient: Server) -> None:
    request = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345"
    assert status_and_code(say(impatient, request)) == (408, "body_too_slow")


def test_a_body_of_very_many_tiny_parts_is_refused(impatient: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    try:
        answer = say(impatient, head, b"1\r\nx\r\n" * 100_000)
    except (BrokenPipeError, ConnectionResetError):
        answer = b""
    assert answer == b"" or status_and_code(answer) == (400, "bad_http")
    assert impatient.ask("GET", "/health") == {"status": "ok"}


def test_a_body_in_parts_that_are_worth_it_is_read(impatient: Server) -> None:
    head = b"POST /echo HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = say(impatient, head, b"40\r\n" + b"x" * 64 + b"\r\n", b"1\r\ny\r\n0\r\n\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["n_bytes"] == 65


def test_two_requests_in_one_breath_get_two_answers(impatient: Server) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    assert say(impatient, request + last).count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_does_not_read_is_cut_off(impatient: Server) -> None:
    before = impatient.ask("GET", "/ended")[0]
    with impatient.connect() as client:
        client.sendall(b"GET /flood HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until_s = time.monotonic() + WAIT_S
        while impatient.ask("GET", "/ended")[0] == before:
            assert time.monotonic() < until_s
            time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_request(impatient: Server, stream: bool) -> None:
    body = json.dumps(LONG | {"max_tokens": 3000, "stream": stream}).encode()
    with impatient.connect() as client:
        head = f"POST /complete HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        while impatient.ask("GET", "/ended")[1] == 0:
            time.sleep(0.01)
    until_s = time.monotonic() + WAIT_S
    while impatient.ask("GET", "/ended")[1]:
        assert time.monotonic() < until_s
        time.sleep(0.01)


# -- how it ends


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.kill()


def is_refused(server: Server) -> bool:
    try:
        server.connect().close()
    except ConnectionError:
        return True
    return False


def test_what_is_left_after_the_drain_is_ended_and_told(servers: list[Server]) -> None:
    server = Server.fake(step_s=0.02, drain_s=0.2)
    servers.append(server)
    server.start()
    response = server.send("POST", "/complete", LONG | {"max_tokens": 3000})
    response.readline()
    server.process.send_signal(signal.SIGTERM)
    answer = response.read()
    assert b'"finish_reason":"abort"' in answer
    assert answer.endswith(b"data: [DONE]\n\n")
    assert server.end()[0] == 0


def test_ctrl_c_is_an_exit_code_of_its_own(servers: list[Server]) -> None:
    server = Server.fake(drain_s=0.0)
    servers.append(server)
    server.start().process.send_signal(signal.SIGINT)
    code, log = server.end()
    assert code == 130
    assert "Traceback" not in log


@pytest.mark.parametrize("stream", [False, True])
def test_ctrl_c_again_ends_answers_and_tells_so(servers: list[Server], stream: bool) -> None:
    server = Server.fake(step_s=0.02, drain_s=60.0)
    servers.append(server)
    server.start()
    with server.connect() as connection:
        body = json.dumps(LONG | {"max_tokens": 3000, "stream": stream}).encode()
        head = f"POST /complete HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while server.ask("GET", "/ended")[1] == 0:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        while not is_refused(server):
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)  # again, it changes nothing
        server.process.send_signal(signal.SIGINT)
        with connection.makefile("rb") as reader:
            answer = reader.read()
    code, log = server.end()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert (b'"finish_reason":"abort"' if stream else b'{"texts":') in answer
    assert code == 130
    assert "Traceback" not in log


def test_a_model_that_cannot_be_loaded_ends_the_server(servers: list[Server]) -> None:
    server = Server.fake(opens=False)
    servers.append(server)
    code, log = server.end()
    assert code == 1
    assert "error the model could not be loaded: [model] there is none" in log


def test_a_port_that_is_taken_is_an_error(servers: list[Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server.fake(port=port)
        servers.append(server)
        code, log = server.end()
    assert code == 1
    assert f"[port] cannot listen on 127.0.0.1, port {port}: address already in use; choose another" in log
    assert "Traceback" not in log


# -- under uvicorn's own command


def test_uvicorn_serves_a_checkout_by_what_the_environment_says(servers: list[Server]) -> None:
    import llm_decoder

    package = Path(llm_decoder.__file__).absolute().parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "LLM_DECODER_SERVED_MODEL_NAME": "mine",
        "LLM_DECODER_API_KEY": "k",
        "LLM_DECODER_THREADS": "1",
        "LLM_DECODER_DRAIN_S": "0",
    }
    program = "import sys, uvicorn; sys.stdout = sys.stderr; uvicorn.run('api.main:app', port=0)"
    server = Server([sys.executable, "-c", program], cwd=ROOT, env=environment)
    servers.append(server)
    server.port = int(server.wait_for("running on http://127.0.0.1:").split("127.0.0.1:")[1].split()[0])
    until_s = time.monotonic() + WAIT_S
    while server.send("GET", "/health").status != 200:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert server.send("GET", "/v1/models").status == 401
    assert server.ask("GET", "/v1/models", authorization="Bearer k")["data"][0]["id"] == "mine"
    server.ask("GET", "/stream?prompt=mysecret")
    server.process.send_signal(signal.SIGTERM)
    _, log = server.end()
    assert "/stream" in log
    assert "mysecret" not in log
