"""GET /debug/kv: each page of the KV cache, who holds it, and whether it is found again."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from direct import DirectServer, ready_service
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder import LLM, SearchParams
from llm_decoder.serving.settings import ServerSettings

PROMPT = "once upon a time there was a page"  # two full ones and a token more


def server_over(backend: FakeBackend, **settings: object) -> DirectServer:
    llm = LLM.over(make_engine(backend), ByteTokenizer(), "fake")
    return DirectServer(ready_service(llm, ServerSettings(**settings)))  # type: ignore[arg-type]


def test_it_is_off_unless_the_server_is_told() -> None:
    status, answer, _ = server_over(FakeBackend()).get("/debug/kv")
    assert (status, answer["error"]["code"]) == (404, "off")
    assert "--debug-kv" in answer["error"]["message"]


def test_pages_that_nobody_holds_are_those_of_the_prefix_cache() -> None:
    server = server_over(FakeBackend(), debug_kv=True)
    assert server.get("/debug/kv")[1]["pages"] == []
    server.post("/generate", {"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    _, answer, _ = server.get("/debug/kv")
    assert answer["n_listed"] == answer["counts"]["n_cached"] == len(answer["pages"]) == len(PROMPT) // 16
    for page in answer["pages"]:
        assert (page["refcount"], page["owners"], page["pins"], page["in_prefix_index"]) == (0, [], 0, True)
        assert 0 <= page["idle_s"] <= page["taken_s"]


def test_beams_hold_pages_together() -> None:
    backend = FakeBackend()
    server = server_over(backend, debug_kv=True)
    has_begun, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        if len(backend.steps) > 6:
            has_begun.set()
            assert may_go_on.wait(60)

    backend.before_step = wait
    handle = server.service.llm.submit(PROMPT, SearchParams(width=4, max_tokens=12, ignore_eos=True))
    assert has_begun.wait(60)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(server.get("/debug/kv")[1]))
    asking.start()
    backend.before_step = lambda: None
    may_go_on.set()
    asking.join(60)
    handle.result()
    (answer,) = found
    held = [page for page in answer["pages"] if page["refcount"]]  # type: ignore[index]
    assert max(page["refcount"] for page in held) == 4
    assert {tuple(page["owners"]) for page in held} == {(handle.request_id,)}
    assert all(page["idle_s"] == 0 for page in held)


def test_pinned_pages_say_so() -> None:
    backend = FakeBackend()
    server = server_over(backend, debug_kv=True)
    server.post("/generate", {"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    tokens = ByteTokenizer().encode(PROMPT)
    n_pinned = server.service.llm._engine.call(lambda own: own.cache.pin(_ids(tokens)))
    _, answer, _ = server.get("/debug/kv")
    assert Counter(page["pins"] for page in answer["pages"]) == {1: n_pinned // 16}
    assert answer["counts"]["n_pinned"] == n_pinned // 16


def _ids(tokens: list[int]) -> object:
    import numpy as np

    return np.array(tokens, np.int32)


def test_many_pages_are_told_in_parts() -> None:
    server = server_over(FakeBackend(), debug_kv=True)
    server.post("/generate", {"prompt": PROMPT * 4, "max_tokens": 1, "temperature": 0})
    whole = server.get("/debug/kv")[1]["pages"]
    parts = [server.get("/debug/kv", first=str(first), n="3")[1] for first in range(0, len(whole), 3)]
    assert [page["page"] for part in parts for page in part["pages"]] == [page["page"] for page in whole]
    assert {part["n_listed"] for part in parts} == {len(whole)}


@pytest.mark.parametrize(("name", "text"), [("n", "4097"), ("n", "-1"), ("first", "x"), ("first", "9" * 30), ("n", "")])
def test_a_bad_part_is_refused_by_name(name: str, text: str) -> None:
    status, answer, _ = server_over(FakeBackend(), debug_kv=True).get("/debug/kv", **{name: text})
    assert (status, answer["error"]["param"]) == (400, name)
