"""Searches on both servers, over real sockets: clients of others, clients that go away, ordinary requests beside."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "advisories"))

from two_servers import Api, Running, Web

from llm_decoder import SamplingParams, SearchParams

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Tell me a story."}]
WAIT_S = 60.0


@pytest.fixture(scope="module", params=[Api, Web], ids=["fastapi", "flask"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    running: Running = request.param()
    yield running
    running.end()


def wait_until_nothing_is_held(server: Running) -> None:
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        stats = server.service.stats()
        assert stats is not None
        if not stats["n_requests"] and not stats["pages"]["n_held"]:
            server.model.llm._engine.call(lambda backend: backend.cache.check_integrity())
            return
        time.sleep(0.01)
    raise AssertionError(f"pages are held still: {stats['pages']}")


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_gets_what_the_library_finds(server: Running, stream: bool) -> None:
    openai = pytest.importorskip("openai")
    params = SearchParams(width=4, n=2, max_tokens=10)
    (expected,) = server.model.llm.search(PROMPT, params)
    (expected_chat,) = server.model.llm.search([CHAT], params)
    more = {"model": "scripted", "n": 2, "max_tokens": 10, "stream": stream, "extra_body": {"beam_width": 4}}
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        text = client.completions.create(prompt=PROMPT, **more)
        chat = client.chat.completions.create(messages=CHAT, **more)
        if stream:
            texts, chats = ["", ""], ["", ""]
            for chunk in text:
                texts[chunk.choices[0].index] += chunk.choices[0].text
            for chunk in chat:
                chats[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        else:
            texts = [choice.text for choice in text.choices]
            chats = [choice.message.content for choice in chat.choices]
    assert texts == [one.text for one in expected.outputs]
    assert chats == [one.text for one in expected_chat.outputs]


def test_the_narrow_route_sends_steps_and_candidates(server: Running) -> None:
    answer = server.post("/stream_chat_beam", {"prompt": PROMPT, "width": 3, "n": 2, "max_tokens": 6})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block for block in unchunked(answer).split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]"
    assert sum(block.startswith("event: beam.step\n") for block in blocks) == 6
    last = json.loads(blocks[-2].removeprefix("data: "))
    (expected,) = server.model.llm.search(PROMPT, SearchParams(width=3, n=2, max_tokens=6))
    assert [one["text"] for one in last["candidates"]] == [one.text for one in expected.outputs]


def unchunked(answer: Any) -> str:
    """A body's text, also where it came in chunks."""
    if answer.headers.get("transfer-encoding") != "chunked":
        return str(answer.body.decode())
    text, rest = b"", answer.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return text.decode()


@pytest.mark.parametrize("path", ["/v1/completions", "/stream_chat_beam", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_lets_go_of_every_beams_pages(server: Running, path: str, stream: bool) -> None:
    asked: dict[str, Any] = {"beam_width": 8, "max_tokens": 900, "ignore_eos": True, "stream": stream}
    asked |= {"messages": CHAT} if "chat/" in path else {"prompt": PROMPT}
    if path == "/stream_chat_beam":
        asked["stream"] = True
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\ncontent-type: application/json\r\n"
    n_before = server.service.stats()["n_finished"]["abort"]  # type: ignore[index]
    with server.connect() as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if asked["stream"] and path == "/stream_chat_beam":
            assert client.recv(64)
        end_s = time.monotonic() + WAIT_S
        while not server.service.stats()["n_running"] and time.monotonic() < end_s:  # type: ignore[index]
            time.sleep(0.01)
    wait_until_nothing_is_held(server)
    assert server.service.stats()["n_finished"]["abort"] == n_before + 1  # type: ignore[index]
    assert server.serves_the_next()


def test_searches_and_ordinary_requests_go_side_by_side(server: Running) -> None:
    llm = server.model.llm
    search = {"prompt": PROMPT, "beam_width": 4, "max_tokens": 24}
    plain = {"prompt": "The dog", "max_tokens": 24, "temperature": 0}
    (of_search,) = llm.search(PROMPT, SearchParams(width=4, max_tokens=24))
    (of_plain,) = llm.generate("The dog", SamplingParams(max_tokens=24, temperature=0))
    bodies = [search, plain] * 6
    barrier = threading.Barrier(len(bodies))

    def ask(body: dict[str, Any]) -> str:
        barrier.wait(WAIT_S)
        return str(server.post("/v1/completions", body).json()["choices"][0]["text"])

    with ThreadPoolExecutor(len(bodies)) as pool:
        texts = list(pool.map(ask, bodies))
    assert texts == [of_search.outputs[0].text, of_plain.outputs[0].text] * 6
    wait_until_nothing_is_held(server)


def test_a_bad_search_is_a_400_and_hurts_nobody(server: Running) -> None:
    for fields, param in (
        ({"beam_width": 65}, "beam_width"),
        ({"beam_width": 2, "n": 3}, "n"),
        ({"beam_width": 2, "length_penalty": "1"}, "length_penalty"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups"),
        ({"rerank": {}}, "rerank"),
    ):
        answer = server.post("/v1/completions", {"prompt": "a", "max_tokens": 1} | fields)
        assert (answer.status, answer.error["param"]) == (400, param)
    assert server.serves_the_next()
