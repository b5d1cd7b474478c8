"""Whose turn it is, and whose prefixes are found by whom, when clients ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from direct import DirectServer, ready_service
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder.llm import LLM
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

PROMPT = "a prompt that fills some pages of sixteen tokens each, and so can be found again"


_services: list[Service] = []


@pytest.fixture(autouse=True)
def _close_services() -> Iterator[None]:
    yield
    while _services:
        _services.pop().close(0)


def server_of(backend: FakeBackend | None = None, *, max_num_seqs: int = 64, **fields: Any) -> DirectServer:
    engine = make_engine(backend, max_num_seqs=max_num_seqs)
    server = DirectServer(ready_service(LLM.over(engine, ByteTokenizer(), "fake"), ServerSettings(**fields)))
    _services.append(server.service)
    return server


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/embeddings", {"input": "a"}),
        ("/generate", {"prompt": "a"}),
    ],
)
def test_every_route_hands_the_priority_on_and_bounds_it(path: str, body: dict[str, Any]) -> None:
    server = server_of()
    taken: list[int] = []
    submit = server.service.llm.submit

    def watch(*arguments: Any, priority: int, **more: Any) -> Any:
        taken.append(priority)
        return submit(*arguments, priority=priority, **more)

    server.service.llm.submit = watch  # type: ignore[method-assign]
    for priority in (-100, 0, 7, None):
        assert server.post(path, body | {"priority": priority})[0] == 200
    assert taken == [-100, 0, 7, 0]
    for priority in (101, -101, 1 << 70, "high", 0.5, True):
        status, answer, _ = server.post(path, body | {"priority": priority})
        assert (status, answer["error"]["param"]) == (400, "priority"), priority


# -- prefixes apart by key


def n_found(server: DirectServer, cache_salt: str | None = None, **headers: str) -> int:
    """Tokens of PROMPT that one who comes with these headers finds in the cache."""
    params = SamplingParams(max_tokens=1, cache_salt=cache_salt)
    incoming = Incoming("POST", "/", "r", headers)
    running = server.service.run(Call([PROMPT], [params], whole=object()), incoming)  # type: ignore[arg-type]
    wake = threading.Event()
    running.on_items(wake.set)
    while not running.look():
        assert wake.wait(30)
        wake.clear()
    return running.outputs[0].metrics.n_cached_tokens


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_who_has_another_key_finds_nothing_of_others() -> None:
    server = server_of(api_keys=("alice", "bob"), salt_by_key=True)
    assert n_found(server, **bearer("alice")) == 0
    assert n_found(server, **bearer("alice")) > 0
    assert n_found(server, **bearer("bob")) == 0
    assert n_found(server, **bearer("bob")) > 0
    assert n_found(server, "a", **bearer("bob")) == 0  # a salt of his own goes on apart
    assert n_found(server, "a", **bearer("alice")) == 0


def test_sessions_of_the_page_are_apart_too() -> None:
    server = server_of(api_keys=("alice",), salt_by_key=True)
    sessions = server.service.guard.sessions
    one, other = (sessions.cookie(sessions.open("alice")).partition(";")[0] for _ in range(2))  # type: ignore[arg-type]
    assert n_found(server, **bearer("alice")) == 0
    assert n_found(server, cookie=one) == 0
    assert n_found(server, cookie=one) > 0
    assert n_found(server, cookie=other) == 0


def test_no_key_can_be_made_to_look_like_another_ones_salt() -> None:
    guard = server_of(api_keys=("ab", "a"), salt_by_key=True).service.guard
    incoming = Incoming("POST", "/", "r", bearer("ab"))
    salts = [
        guard.salted(salt, replace(incoming, headers=bearer(key)))
        for key, salt in [("ab", None), ("ab", "c"), ("a", "bc"), ("a", "b"), ("a", None)]
    ]
    assert len(set(salts)) == 5
    assert all(salt is not None and len(salt) == 64 for salt in salts)


@pytest.mark.parametrize("fields", [{"api_keys": ("alice", "bob")}, {"salt_by_key": True}])
def test_without_the_setting_or_keys_prefixes_are_for_everybody(fields: dict[str, Any]) -> None:
    server = server_of(**fields)
    assert n_found(server, **bearer("alice")) == 0
    assert n_found(server, **bearer("bob")) > 0
    assert n_found(server, "mine", **bearer("bob")) == 0
