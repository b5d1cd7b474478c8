"""Bodies at the door of the FastAPI server: too large, too slow, too many, broken off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from asgi_client import Exchange, ask
from serving_fakes import ENDPOINTS, make_service

from llm_decoder.api.app import create_app
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.limits import Admission
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

LIMIT = 2000


def with_app(
    test: Callable[[Any], Coroutine[Any, Any, None]], more: tuple[Endpoint, ...] = (), **settings: Any
) -> None:
    service = make_service(**{"max_body_bytes": LIMIT, **settings})
    asyncio.run(test(create_app(service, more, endpoints=ENDPOINTS)))
    service.close(0)


def told(exchange: Exchange) -> tuple[int, str]:
    return exchange.status, exchange.json()["error"]["code"]


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_not() -> None:
    async def test(app: Any) -> None:
        assert (await ask(app, "POST", "/echo", body=b"x" * LIMIT)).json()["n_bytes"] == LIMIT
        assert told(await ask(app, "POST", "/echo", body=b"x" * (LIMIT + 1))) == (413, "body_too_large")
        parts = [b"x" * 500] * 5
        assert told(await Exchange(app, "POST", "/echo", body=parts).end()) == (413, "body_too_large")

    with_app(test)


def test_a_declared_length_over_the_limit_is_refused_without_reading() -> None:
    async def test(app: Any) -> None:
        headers = {"content-length": "9999999999", "expect": "100-continue"}
        exchange = await Exchange(app, "POST", "/echo", headers=headers, is_whole=False).end()
        assert told(exchange) == (413, "body_too_large")
        assert exchange.headers["connection"] == "close"

    with_app(test)


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "", "5, 5", "٣", "9" * 30])
def test_a_length_that_is_no_number_is_a_bad_request(length: str) -> None:
    async def test(app: Any) -> None:
        headers = {"content-length": length.encode().decode("latin-1")}
        assert (await ask(app, "POST", "/echo", body=b"12345", headers=headers)).status == 400

    with_app(test)


def test_a_body_that_does_not_come_in_time_is_a_408() -> None:
    async def test(app: Any) -> None:
        exchange = await Exchange(app, "POST", "/echo", body=[b"12", b"34", b"never"], is_whole=False).end()
        assert told(exchange) == (408, "body_too_slow")

    with_app(test, read_timeout_s=0.05)


def test_a_client_that_goes_away_in_its_body_is_forgotten() -> None:
    async def test(app: Any) -> None:
        exchange = Exchange(app, "POST", "/echo", body=[b"12", b"never"], is_whole=False)
        await asyncio.sleep(0.01)
        exchange.hang_up()
        await exchange.end()
        assert (exchange.status, exchange.chunks) == (0, [])
        assert (await ask(app, "POST", "/echo", body=b"1")).status == 200

    with_app(test, max_requests=1)


def test_a_refused_client_may_say_the_rest_and_reads_why() -> None:
    async def test(app: Any) -> None:
        parts = [b"x" * 100] * 50
        exchange = Exchange(app, "POST", "/nowhere", body=parts, headers={"transfer-encoding": "chunked"})
        await exchange.end()
        assert exchange.status == 404
        assert exchange._parts == []
        assert "connection" not in exchange.headers

    with_app(test)


def test_headers_over_the_limit_are_a_431() -> None:
    async def test(app: Any) -> None:
        headers = {f"x-{i}": "y" * 100 for i in range(20)}
        assert told(await ask(app, "GET", "/open", headers=headers)) == (431, "headers_too_large")
        assert (await ask(app, "GET", "/open", headers={"x-1": "y" * 500})).status == 200

    with_app(test, max_header_bytes=1024)


# -- how many at once


def waiting_endpoint(gate: threading.Event) -> Endpoint:
    def wait(service: Service, incoming: Incoming) -> Reply:
        assert gate.wait(60)
        return Reply(b"", 200)

    return Endpoint("POST", "/wait", wait, "Waits")


def test_who_comes_when_all_places_are_taken_is_told_to_come_again() -> None:
    gate = threading.Event()

    async def test(app: Any) -> None:
        inside = [Exchange(app, "POST", "/wait") for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = [await ask(app, "POST", "/echo") for _ in range(20)]
        assert {told(exchange) for exchange in refused} == {(429, "queue_full")}
        assert {exchange.headers["retry-after"] for exchange in refused} == {"1"}
        assert (await ask(app, "GET", "/open")).status == 200
        gate.set()
        assert [(await exchange.end()).status for exchange in inside] == [200, 200]
        assert (await ask(app, "POST", "/echo")).status == 200

    with_app(test, (waiting_endpoint(gate),), max_requests=2)


def test_a_question_without_a_body_does_not_wait_behind_those_that_work() -> None:
    gate = threading.Event()

    async def test(app: Any) -> None:
        inside = [Exchange(app, "POST", "/wait") for _ in range(40)]
        assert (await ask(app, "GET", "/open")).status == 200
        gate.set()
        for exchange in inside:
            await exchange.end()

    with_app(test, (waiting_endpoint(gate),))


def test_the_bodies_that_are_held_at_once_have_a_bound() -> None:
    admission = Admission(ServerSettings(max_body_bytes=1000))
    for _ in range(32):
        admission.hold(1000)
    with pytest.raises(HttpError, match="large"):
        admission.hold(1)
    admission.release(1000)
    admission.hold(1000)


def test_whatever_becomes_of_a_request_its_place_and_its_bytes_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    hold, release = Admission.hold, Admission.release
    monkeypatch.setattr(Admission, "hold", lambda self, n: hold(self, n) or held.append(n))
    monkeypatch.setattr(Admission, "release", lambda self, n: release(self, n) or held.append(-n))

    async def test(app: Any) -> None:
        for target in ("/echo", "/fail", "/complete", "/fail?how=bad"):
            await ask(app, "POST", target, body=b"{}")
        await Exchange(app, "POST", "/echo", body=[b"x" * 1500, b"x" * 1500]).end()
        await Exchange(app, "POST", "/echo", body=[b"12", b"never"], is_whole=False).end()
        assert (await ask(app, "POST", "/echo")).status == 200

    with_app(test, max_requests=1, read_timeout_s=0.05)
    assert sum(held) == 0
    assert len(held) > 8
