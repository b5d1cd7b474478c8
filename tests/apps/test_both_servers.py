"""FastAPI and Flask, asked the same, answer the same: status, headers, body."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from asgi_client import ask
from fakes import FakeBackend
from flask.testing import FlaskClient

from llm_decoder.api.app import create_app as fastapi_app
from llm_decoder.embedded import embedded_model
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.llm import LLM
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings
from llm_decoder.tokenizer import load_tokenizer
from llm_decoder.web import page
from llm_decoder.web.app import create_app as flask_app

KEY = {"authorization": "Bearer secret"}
JSON = {"content-type": "application/json"}
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
PATHS = sorted({endpoint.path for endpoint in (*all_endpoints(), *page.endpoints())})
POSTS = sorted({endpoint.path for endpoint in (*all_endpoints(), *page.endpoints()) if endpoint.method == "POST"})
BAD_BODIES = [
    *(b"", b"{", b"[]", b"null", b"7", b"\xff", b'{"a":', b'{"a": 1, "a": 2}', b'{"x": NaN}', b"[" * 10_000),
    b'{"prompt": "\\ud800", "text": "\\ud800", "key": "\\ud800"}',
    b'{"prompt": 7, "messages": 7, "input": 7, "tokens": "x", "text": 7, "key": 7, "prompts": 7}',
    b'{"query": 7, "documents": 7, "texts": 7, "text_1": 7, "text_2": 7, "queries": 7}',
    b'{"query": "a", "documents": [7], "text_1": ["a", "b"], "text_2": ["a"]}',
    b'{"prompt": "", "messages": [], "input": [], "tokens": [-1], "prompts": []}',
    b'{"model": "another", "prompt": "a", "messages": [], "input": "a", "tokens": [1], "prompts": ["a"]}',
    b"x" * 30_000,
]
RERANKINGS: list[dict[str, Any]] = [
    {"query": "a", "documents": ["bb", {"text": "c"}], "return_documents": True},
    {"query": "a", "texts": ["bb", "c"], "return_text": True, "model": "fake"},
    {"query": "a", "documents": ["bb"], "model": "another"},
    {"query": "a", "documents": []},
]
SCORINGS: list[dict[str, Any]] = [{"text_1": "a", "text_2": ["b", "cc"]}, {"queries": ["a"]}]
GOOD_BODIES = {
    "/v1/completions": [
        {"prompt": "abc", "max_tokens": 3, "temperature": 0},
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 1, "seed": 1},
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "beam_width": 3, "return_tree": "full"},
        {"prompt": "a", "beam_width": 65},
    ],
    "/generate": [
        {"prompt": "abc", "max_tokens": 3, "temperature": 0},
        {"prompt": "abc", "max_tokens": 3, "temperature": 0, "sn\u00f6w\r\nx-a: b": 1},
    ],
    "/stream": [
        {"prompt": "abc", "max_tokens": 3, "temperature": 0},
        {"prompt": "abc", "max_tokens": 3, "beam_width": 3, "return_tree": "full"},
    ],
    "/stream_chat_beam": [
        {"prompt": "abc", "max_tokens": 3, "width": 3, "n": 2},
        {"prompt": "abc", "max_tokens": 3, "method": "sample", "seed": 1},
        {"prompt": "abc", "max_tokens": 6, "method": "steps", "step_tokens": 2, "seed": 1},
    ],
    "/generate_batch": [{"prompts": ["a", "b"], "max_tokens": 1, "temperature": 0}],
    "/v1/embeddings": [{"input": "abc"}],
    **{path: RERANKINGS for path in ("/v1/rerank", "/rerank", "/v2/rerank")},
    **{path: SCORINGS for path in ("/v1/score", "/score")},
    "/tokenize": [{"prompt": "abc", "return_token_strs": True}, {"content": "abc", "with_pieces": True}],
    "/detokenize": [{"tokens": [65, 66]}],
    "/page/render": [{"text": "# a\n\n- b\n\n```python\nx\n```"}],
    "/login": [{"key": "wrong"}],
    "/logout": [{}],
}
TIMES = re.compile(rb'"(id|created|created_at|\w+_s|\w+_ms|\w+_per_second)": ?("[^"]*"|[-\d.e]+)')
SIZE_OF_HEADERS = re.compile(rb"bytes, got \d+")  # the frameworks' test clients add some of their own
OWN_NAME = re.compile(r"req-[0-9a-f]{32}")


class ShorterIsBetter:
    def score(self, query: str, documents: list[str]) -> list[float]:
        return [-float(len(document)) for document in documents]


def open_llm() -> LLM:
    """The story model's tokenizer over an engine without a model."""
    tokenizer = load_tokenizer(embedded_model())
    backend = FakeBackend(n_pages=256, vocab_size=4096, max_model_len=256)
    options = EngineOptions(eos_token_ids=tokenizer.eos_token_ids)
    return LLM.over(Engine(lambda: backend, tokenizer, options), tokenizer, "fake", reranker=ShorterIsBetter())


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Both:
    def __init__(self) -> None:
        settings = ServerSettings(api_keys=("secret",), max_body_bytes=20_000, cors_origins=("https://app.example",))
        self._service = Service(open_llm, settings)
        self._service.start()
        assert self._service.wait(60)
        self._runner = asyncio.Runner()
        self._fastapi: Any = fastapi_app(self._service, page.endpoints())
        self._flask: FlaskClient = flask_app(self._service).test_client(use_cookies=False)

    def close(self) -> None:
        self._service.close(0)
        self._runner.close()

    def ask(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> tuple[Answer, Answer]:
        """(FastAPI's answer, Flask's), without what every answer has of its own."""
        headers = {"host": "127.0.0.1:8000", "user-agent": "test", "content-length": str(len(body))} | headers
        one = self._runner.run(ask(self._fastapi, method, target, headers=headers, body=body))
        path, _, query = target.partition("?")
        two = self._flask.open(path, query_string=query, method=method, headers=headers, data=body)
        other = {name.lower(): value for name, value in two.headers.items()}
        # The servers leave the body of a HEAD away, and close a connection whose request was not read.
        first, second = (b"", b"") if method == "HEAD" else (one.body, two.get_data())
        two.close()  # its place is free again
        return plain(one.status, one.headers, first), plain(two.status_code, other, second)


def plain(status: int, headers: dict[str, str], body: bytes) -> Answer:
    kept = {name: value for name, value in headers.items() if name not in ("content-length", "connection")}
    kept["x-request-id"] = OWN_NAME.sub("its own", kept.get("x-request-id", "none"))
    return Answer(status, kept, SIZE_OF_HEADERS.sub(b"bytes", TIMES.sub(rb'"\1": 0', body)))


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def assert_alike(both: Both, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    fastapi, flask = both.ask(method, target, headers, body)
    asked = (method, target, headers, body[:80])
    if target != "/metrics":
        assert flask == fastapi, asked
    assert flask[:2] == fastapi[:2], asked
    assert flask.status < 500, asked
    return flask


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_every_method_with_a_key_and_without(both: Both, path: str) -> None:
    for method in METHODS:
        for headers in ({}, KEY, JSON | KEY):
            answer = assert_alike(both, method, path.replace("{model}", "a/b").replace("{id}", "x"), headers)
            assert answer.status != 405 or "allow" in answer.headers


@pytest.mark.parametrize("path", POSTS)
def test_every_bad_body(both: Both, path: str) -> None:
    for body in BAD_BODIES:
        assert assert_alike(both, "POST", path, KEY | JSON, body).status >= 400 or path in ("/page/render", "/logout")
    for headers in ({}, {"content-type": "text/plain"}, JSON | {"content-encoding": "gzip"}):
        assert_alike(both, "POST", path, KEY | headers, b'{"prompt": "a", "temperature": 0}')


@pytest.mark.parametrize("path", GOOD_BODIES)
def test_answers_at_once_and_streamed(both: Both, path: str) -> None:
    for value in GOOD_BODIES[path]:
        for body in (value, value | {"stream": True}):
            assert_alike(both, "POST", path, KEY | JSON, json.dumps(body).encode())


@pytest.mark.parametrize(
    "target",
    [
        *("/health/", "/v1//models", "/v1/models/", "/static/", "/static/..%2fapp.py", "/page/stream/", "/HEALTH"),
        *(
            "/stream",
            "/stream?prompt=a&max_tokens=2&temperature=0",
            "/stream?prompt=a&prompt=b&max_tokens=1&temperature=0",
            "/stream?prompt=%ff",
        ),
        *(
            "/stream?prompt=a&stop=[&temperature=0",
            "/stream?prompt=a+b%20c%2B&max_tokens=1&temperature=0",
            "/health?" + "a=1&" * 120,
        ),
    ],
)
def test_odd_paths_and_queries(both: Both, target: str) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        assert_alike(both, method, target, KEY)


@pytest.mark.parametrize(
    "header",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "https://app.example"},
        {"origin": "null"},
        {"origin": "https://app.example", "access-control-request-method": "POST"},
        {"origin": "https://evil.example", "access-control-request-method": "POST"},
        {"x-request-id": "mine-1"},
        {"x-request-id": "a b"},
        {"x-request-id": "x" * 500},
        {"authorization": "Basic c2VjcmV0"},
        {"authorization": "Bearer wrong"},
        {"authorization": "bearer secret"},
        {"cookie": "llm_decoder_session=none; a=b"},
        {"x-csrf-token": "none"},
        {"x-big": "y" * 70_000},
        {"if-none-match": "*"},
        {"range": "bytes=0-1,2-3"},
        {"accept": "text/event-stream"},
        {"content-length": "-1"},
        {"content-length": "999999999999"},
    ],
)
def test_headers_of_all_kinds(both: Both, header: dict[str, str]) -> None:
    for method, path in (("GET", "/health"), ("GET", "/"), ("GET", "/version"), ("OPTIONS", "/version")):
        assert_alike(both, method, path, KEY | header)
    if "content-length" not in header:
        assert_alike(both, "POST", "/tokenize", KEY | JSON | header, b'{"prompt": "a"}')
