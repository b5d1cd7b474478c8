"""Answers of the FastAPI server as they come: whole, cut off by their client, silent, failing early and late."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from asgi_client import Exchange, ask
from fakes import FakeBackend
from serving_fakes import ENDPOINTS, PlainFormat, make_service

from llm_decoder.api.app import create_app
from llm_decoder.api.wakeups import Bell, Wakeups
from llm_decoder.serving.exchange import Endpoint, Incoming
from llm_decoder.serving.service import Service

LONG = {"max_tokens": 200, "ignore_eos": True}


class Rig:
    """An application over a fake backend whose steps can be held."""

    def __init__(self, more: tuple[Endpoint, ...] = (), **settings: Any) -> None:
        self.backend = FakeBackend()
        self.go_on = threading.Event()
        self.go_on.set()
        self.backend.before_step = self._step
        self.service = make_service(self.backend, **settings)
        self.app = create_app(self.service, more, endpoints=ENDPOINTS)

    def _step(self) -> None:
        assert self.go_on.wait(60)

    def run(self, test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(test(self))
            self.assert_nothing_is_left()
        finally:
            self.go_on.set()
            self.service.close(0)

    def stream(self, *prompts: str, **params: Any) -> Exchange:
        return self.ask(*prompts, stream=True, **params)

    def ask(self, *prompts: str, **params: Any) -> Exchange:
        import json

        return Exchange(
            self.app, "POST", "/complete", body=json.dumps({"prompts": prompts, "temperature": 0.0, **params}).encode()
        )

    def slow_down(self, step_s: float) -> None:
        self.backend.before_step = lambda: time.sleep(step_s)

    def assert_nothing_is_left(self) -> None:
        """Waits for the engine to have let everything go."""
        for _ in range(600):
            if self.service.llm.stats()["n_running"] == 0 and self.backend.cache.stats()["n_held"] == 0:
                break
            time.sleep(0.01)
        assert self.backend.cache.stats()["n_held"] == 0
        self.backend.cache.check_integrity()


def texts_of(exchange: Exchange, n_prompts: int) -> list[str]:
    events = exchange.events()
    assert events[0] == {"begin": True}
    assert events[-1] == "[DONE]"
    deltas = [event for event in events[1:-2]]
    return ["".join(event["text"] for event in deltas if event["index"] == i) for i in range(n_prompts)]


def test_the_pieces_of_a_stream_are_the_text_of_the_answer() -> None:
    async def test(rig: Rig) -> None:
        prompts = [f"prompt {i}" for i in range(5)]
        whole = (await rig.ask(*prompts, **LONG).end()).json()["texts"]
        streamed = await rig.stream(*prompts, **LONG).end()
        assert texts_of(streamed, 5) == whole
        assert streamed.events()[-2] == {"end": whole}
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed.headers["x-accel-buffering"] == "no"
        assert streamed.headers["x-ignored-fields"] == "fancy"
        assert "content-length" not in streamed.headers
        assert streamed.is_complete

    Rig().run(test)


def test_many_streams_at_once_keep_to_themselves() -> None:
    async def test(rig: Rig) -> None:
        alone = [(await rig.ask(f"user {i}", max_tokens=20).end()).json()["texts"] for i in range(32)]
        exchanges = [rig.stream(f"user {i}", max_tokens=20) for i in range(32)]
        together = [texts_of(await exchange.end(), 1) for exchange in exchanges]
        assert together == alone

    Rig().run(test)


def test_a_stream_comes_as_it_is_made() -> None:
    async def test(rig: Rig) -> None:
        exchange = rig.stream("Hello", **LONG)
        await exchange.chunk(2)
        assert not exchange.is_complete
        assert not exchange.task.done()
        await exchange.end()

    rig = Rig()
    rig.slow_down(0.005)
    rig.run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request_and_gives_back_its_pages(stream: bool) -> None:
    async def test(rig: Rig) -> None:
        exchange = rig.ask("Hello", "You", stream=stream, **LONG)
        if stream:
            await exchange.chunk(1)
        else:
            while not rig.backend.steps:
                await asyncio.sleep(0.01)
        exchange.hang_up()
        await exchange.end()
        n_steps = len(rig.backend.steps)
        rig.assert_nothing_is_left()
        assert len(rig.backend.steps) - n_steps <= 2
        assert len(rig.backend.steps) < 200
        assert not exchange.is_complete

    rig = Rig()
    rig.slow_down(0.02)
    rig.run(test)


def test_a_client_that_went_away_while_its_prompt_was_read_starts_nothing() -> None:
    gate = threading.Event()
    handled: list[bool] = []

    def slow(service: Service, incoming: Incoming) -> Any:
        handled.append(True)
        assert gate.wait(60)
        return ENDPOINTS[0].handle(service, incoming)

    async def test(rig: Rig) -> None:
        body = b'{"prompts": ["a"], "max_tokens": 200, "ignore_eos": true}'
        exchanges = [Exchange(rig.app, "POST", "/slow", body=body) for _ in range(12)]
        while len(handled) < 8:
            await asyncio.sleep(0.01)
        for exchange in exchanges:
            exchange.hang_up()
        await asyncio.sleep(0.05)
        gate.set()
        for exchange in exchanges:
            await exchange.end()
        assert len(handled) == 8  # those that still waited for a worker were never begun
        rig.assert_nothing_is_left()
        assert len(rig.backend.steps) < 50

    rig = Rig((Endpoint("POST", "/slow", slow, "Slow"),))
    rig.slow_down(0.02)
    rig.run(test)


def test_a_task_that_is_cancelled_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(rig: Rig) -> None:
        exchange = rig.stream("Hello", **LONG)
        await exchange.chunk(1)
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        rig.assert_nothing_is_left()
        assert len(rig.backend.steps) < 150

    rig = Rig()
    rig.slow_down(0.02)
    rig.run(test)


def test_an_answer_that_ended_well_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_decoder.engine import RequestHandle

    cancelled: list[str] = []
    monkeypatch.setattr(RequestHandle, "cancel", lambda self: cancelled.append(self.request_id))

    async def test(rig: Rig) -> None:
        assert (await rig.stream("Hello", max_tokens=3).end()).is_complete
        assert (await rig.ask("Hello", max_tokens=3).end()).status == 200
        assert cancelled == []

    Rig().run(test)


def test_silence_is_broken_by_comments() -> None:
    async def test(rig: Rig) -> None:
        rig.go_on.clear()
        exchange = rig.stream("Hello", max_tokens=3)
        assert await exchange.chunk(0) == b'data: {"begin":true}\n\n'
        await exchange.chunk(2)
        assert b": ping\n\n" in exchange.body
        rig.go_on.set()
        assert exchange.status == 200
        assert texts_of(await exchange.end(), 1) == (await rig.ask("Hello", max_tokens=3).end()).json()["texts"]

    Rig(ping_s=0.05).run(test)


def test_a_silence_before_an_answer_without_a_greeting_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(rig: Rig) -> None:
        rig.go_on.clear()
        exchange = rig.stream("Hello", max_tokens=3)
        assert await exchange.chunk(0) == b": ping\n\n"
        rig.go_on.set()
        await exchange.end()
        assert exchange.events()[-1] == "[DONE]"
        assert exchange.is_complete

    monkeypatch.setattr(PlainFormat, "begin", lambda self: [])
    Rig(ping_s=0.05).run(test)


def test_what_fails_before_the_first_byte_has_a_status_of_its_own() -> None:
    async def test(rig: Rig) -> None:
        def spoil(history: Any, logits: Any) -> None:
            logits[:] = float("nan")

        rig.backend.spoil = spoil
        for stream in (True, False):
            exchange = await rig.ask("Hello", stream=stream, max_tokens=5).end()
            assert exchange.status == 500
            assert exchange.json()["error"]["type"] == "server_error"

    rig = Rig()
    rig.slow_down(0.05)
    rig.run(test)


def test_what_fails_later_is_an_event_and_the_end() -> None:
    async def test(rig: Rig) -> None:
        rig.backend.spoil = lambda history, logits: logits.fill(float("nan")) if len(history) > 12 else None
        exchange = await rig.stream("Hello", **LONG).end()
        assert exchange.status == 200
        *_, error, done = exchange.events()
        assert (error["error"]["type"], done) == ("server_error", "[DONE]")
        assert exchange.is_complete

    rig = Rig()
    rig.slow_down(0.05)
    rig.run(test)


def test_a_full_queue_is_told_before_the_stream_begins() -> None:
    async def test() -> None:
        backend = FakeBackend()
        service = make_service(backend, max_requests=1)
        app = create_app(service, endpoints=ENDPOINTS)
        exchange = await ask(app, "POST", "/complete", json_body={"prompts": ["a", "b"], "stream": True})
        assert (exchange.status, exchange.json()["error"]["code"]) == (429, "queue_full")
        assert exchange.headers["retry-after"] == "1"
        service.close(0)

    asyncio.run(test())


# -- streams that a handler has made itself


class Tape:
    """An EventStream that plays what it is given, and keeps what it was told."""

    def __init__(self, parts: list[bytes]) -> None:
        self.parts = parts
        self.headers: Mapping[str, str] = {"x-tape": "1"}
        self.is_cancelled = False
        self.wake: Callable[[], None] = lambda: None

    def on_items(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        wake()

    def events(self) -> bytes:
        return self.parts.pop(0) if self.parts else b""

    @property
    def is_over(self) -> bool:
        return self.parts == []

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_stream_that_runs_already_is_sent_to_its_last_byte() -> None:
    tapes = [Tape([b"data: 1\n\n", b"data: 2\n\n"]), Tape([])]

    async def test(rig: Rig) -> None:
        for tape, events in ((tapes[0], [1, 2]), (tapes[1], None)):
            exchange = await ask(rig.app, "GET", f"/tape{tapes.index(tape)}")
            assert (exchange.status, exchange.headers["x-tape"], exchange.is_complete) == (200, "1", True)
            assert events is None or exchange.events() == events
            assert not tape.is_cancelled

    Rig(tuple(Endpoint("GET", f"/tape{i}", lambda *_, tape=tape: tape, "") for i, tape in enumerate(tapes))).run(test)


def test_a_stream_that_runs_already_is_told_when_its_reader_goes() -> None:
    tape = Tape([b"data: 1\n\n", b""])

    class Endless(Tape):
        is_over = False

    tape = Endless([b"data: 1\n\n"])

    async def test(rig: Rig) -> None:
        exchange = Exchange(rig.app, "GET", "/tape")
        await exchange.chunk(0)
        exchange.hang_up()
        await exchange.end()
        assert tape.is_cancelled

    Rig((Endpoint("GET", "/tape", lambda *_: tape, ""),)).run(test)


# -- wake-ups


def test_a_step_wakes_the_loop_once_for_all_its_streams() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        told: list[Any] = []

        class Loop:
            def call_soon_threadsafe(self, function: Any) -> None:
                told.append(function)
                loop.call_soon_threadsafe(function)

        wakeups = Wakeups(Loop())  # type: ignore[arg-type]
        bells = [Bell() for _ in range(32)]
        waiting = [asyncio.ensure_future(bell.wait()) for bell in bells]
        await asyncio.sleep(0)
        for bell in bells:
            wakeups.wake(bell)
        assert len(told) == 1
        await asyncio.wait_for(asyncio.gather(*waiting), 60)
        wakeups.wake(bells[0])
        assert len(told) == 2

    asyncio.run(test())


def test_a_bell_that_is_rung_while_nobody_waits_is_heard_at_the_next_wait() -> None:
    async def test() -> None:
        bell = Bell()
        bell.ring()
        bell.ring()
        await asyncio.wait_for(bell.wait(), 60)
        waiting = asyncio.ensure_future(bell.wait())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        bell.ring()
        await asyncio.wait_for(waiting, 60)

    asyncio.run(test())


def test_no_wake_is_lost_among_threads() -> None:
    async def test() -> None:
        wakeups, bell = Wakeups(asyncio.get_running_loop()), Bell()
        n_items = 0

        def produce() -> None:
            nonlocal n_items
            for _ in range(2000):
                n_items += 1
                wakeups.wake(bell)

        thread = threading.Thread(target=produce)
        thread.start()
        n_seen = 0
        while n_seen < 2000:
            await asyncio.wait_for(bell.wait(), 60)
            n_seen = n_items
        thread.join()

    asyncio.run(test())


def test_a_loop_that_is_gone_does_not_hurt_the_engine() -> None:
    loop = asyncio.new_event_loop()
    wakeups = Wakeups(loop)
    loop.close()
    wakeups.wake(Bell())
