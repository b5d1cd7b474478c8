"""Endpoints as ASGI applications: a request read whole, handled on a worker thread, answered at once or as it comes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeAlias, TypeVar

from starlette.types import Receive, Scope, Send

from llm_decoder.api.body import Disconnected, read_body
from llm_decoder.api.wakeups import Bell, Wakeups
from llm_decoder.serving import sse
from llm_decoder.serving.calls import Call, EventStream, RunningCall
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.logs import RequestLine
from llm_decoder.serving.service import Service

__all__ = ["EndpointApp", "Transport", "send_reply"]

Answer: TypeAlias = Reply | RunningCall | EventStream
AnyAnswer = TypeVar("AnyAnswer", bound=Answer)

# Tokenizing, rendering and compiling happen here. Few: two requests that compute do not finish sooner together.
_N_WORKERS = 8
# Questions without a body, so that /health does not wait behind somebody's grammar.
_N_QUICK_WORKERS = 2
# What no header may have: a client's words, such as names of fields, can be in one.
_UNFIT = re.compile(r"[^\x20-\x7e]")


class Transport:
    """What all endpoints of an application share: worker threads, bells of its event loop, and the clock that finds
    silent streams. Made before the loop is, used on one loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.admission = service.admission
        self._workers = ThreadPoolExecutor(_N_WORKERS, "llm_decoder-request")
        self._quick_workers = ThreadPoolExecutor(_N_QUICK_WORKERS, "llm_decoder-question")
        self._wakeups: Wakeups | None = None
        self._streams: set[_Stream] = set()
        self._clock: asyncio.Task[None] | None = None

    @property
    def wakeups(self) -> Wakeups:
        if self._wakeups is None:
            self._wakeups = Wakeups(asyncio.get_running_loop())
        return self._wakeups

    async def work(self, function: Callable[[], AnyAnswer], *, is_quick: bool) -> AnyAnswer:
        """function(), on a worker thread. When nobody waits for it any more, what it has started is ended."""
        workers = self._quick_workers if is_quick else self._workers
        future = asyncio.get_running_loop().run_in_executor(workers, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_cancel_what_came)
            raise

    def watch(self, stream: _Stream) -> None:
        """Wakes `stream` where it has been silent for ping_s seconds, until `forget`."""
        self._streams.add(stream)
        if self._clock is None:
            self._clock = asyncio.ensure_future(self._tick())

    def forget(self, stream: _Stream) -> None:
        self._streams.discard(stream)

    async def _tick(self) -> None:
        ping_s = self.service.settings.ping_s
        while self._streams:
            await asyncio.sleep(min(1.0, ping_s / 4))
            now_s = time.monotonic()
            for stream in self._streams:
                if now_s - stream.last_sent_s >= ping_s:
                    stream.is_silent = True
                    stream.bell.ring()
        self._clock = None

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._quick_workers.shutdown(wait=False, cancel_futures=True)


def _cancel_what_came(future: asyncio.Future[AnyAnswer]) -> None:
    if not future.cancelled() and future.exception() is None:
        answer = future.result()
        if not isinstance(answer, Reply):
            answer.cancel()


class EndpointApp:
    """One endpoint. The door has let the request in and left its RequestLine in scope["state"]."""

    def __init__(self, transport: Transport, endpoint: Endpoint) -> None:
        self._transport = transport
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._endpoint.method != "POST":
            await self._serve(scope, receive, send)
            return
        self._transport.admission.enter()
        try:
            await self._serve(scope, receive, send)
        finally:
            self._transport.admission.leave()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        bell = Bell()
        answer, client = await self._begin(scope, receive, bell)
        try:
            if isinstance(answer, Reply):
                await send_reply(answer, send)
            else:
                await self._send_running(answer, bell, client, scope, send)
        finally:
            client.cancel()

    async def _begin(self, scope: Scope, receive: Receive, bell: Bell) -> tuple[Answer, asyncio.Task[None]]:
        """What the handler answers, and a task that ends when the client is gone, which rings the bell. The body is
        let go. Raises what read_body and the handler raise."""
        service, endpoint, state = self._transport.service, self._endpoint, scope["state"]
        incoming: Incoming = replace(state["incoming"], path_parameters=dict(scope.get("path_params", {})))
        body = b""
        if endpoint.method == "POST":
            body = await read_body(receive, incoming.headers, service.settings, self._transport.admission)
            incoming = replace(incoming, body=body)
            state["is_read"] = True
            if service.settings.log_prompts:
                state["line"].body = body.decode("utf-8", "replace")
        client = asyncio.create_task(_disconnect(receive))
        client.add_done_callback(lambda _: bell.ring())

        def handle() -> Answer:
            if client.done():  # while it waited for a worker
                raise Disconnected
            answer = endpoint.handle(service, incoming)
            return service.run(answer, incoming) if isinstance(answer, Call) else answer

        is_quick = endpoint.method != "POST" and not endpoint.path.endswith("/stream")
        try:
            return await self._transport.work(handle, is_quick=is_quick), client
        except BaseException:
            client.cancel()
            raise
        finally:
            self._transport.admission.release(len(body))

    async def _send_running(
        self, answer: RunningCall | EventStream, bell: Bell, client: asyncio.Task[None], scope: Scope, send: Send
    ) -> None:
        line: RequestLine = scope["state"]["line"]
        try:
            if isinstance(answer, RunningCall) and answer.call.streamed is None:
                await self._wait(answer, bell, client, send)
            else:
                await _Stream(answer, bell, client, self._transport).send_all(send)
        finally:
            if not answer.is_over:
                answer.cancel()
            if isinstance(answer, RunningCall):
                line.note_outputs(answer.outputs)
                line.end = line.end if answer.error is None else "failed"

    async def _wait(self, running: RunningCall, bell: Bell, client: asyncio.Task[None], send: Send) -> None:
        """Raises what the engine raised."""
        wakeups = self._transport.wakeups
        running.on_items(lambda: wakeups.wake(bell))
        while not running.look():
            await bell.wait()
            if client.done():
                raise Disconnected
        slow = running.call.slow_reply
        reply = await self._transport.work(running.reply, is_quick=False) if slow else running.reply()
        await send_reply(reply, send)


class _Stream:
    """A stream on its way to a client."""

    def __init__(self, answer: EventStream, bell: Bell, client: asyncio.Task[None], transport: Transport) -> None:
        self.bell = bell
        self.last_sent_s = time.monotonic()
        self.is_silent = False
        self._answer = answer
        self._client = client
        self._transport = transport

    async def send_all(self, send: Send) -> None:
        """Raises Disconnected; and what the engine raised before anything was sent: that has a status of its own."""
        answer, wakeups = self._answer, self._transport.wakeups
        start = _start(200, sse.MEDIA_TYPE, {**sse.HEADERS, **answer.headers})
        self._transport.watch(self)
        try:
            answer.on_items(lambda: wakeups.wake(self.bell))
            data = await self._first()
            await send(start)
            while data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                self.is_silent = False
                self.last_sent_s = time.monotonic()
                data = answer.events()
                if data:
                    await self._give_way()
                else:
                    data = await self._next()
        finally:
            self._transport.forget(self)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _first(self) -> bytes:
        """A call's greeting waits for its first token, or for a silence that is too long."""
        answer = self._answer
        if isinstance(answer, RunningCall):
            await self._wait()
            data = answer.events()
            if answer.error is not None:
                raise answer.error
            if data or self.is_silent:
                return data or sse.PING
        return answer.events() or await self._next()

    async def _next(self) -> bytes:
        """What comes next, or a comment in a silence; b"" at the end."""
        while not self._answer.is_over:
            await self._wait()
            data = self._answer.events()
            if data or self.is_silent:
                return data or sse.PING
        return self._answer.events()

    async def _wait(self) -> None:
        await self.bell.wait()
        if self._client.done():
            raise Disconnected

    async def _give_way(self) -> None:
        """A stream that always has more would keep the loop from everybody else."""
        await asyncio.sleep(0)
        if self._client.done():
            raise Disconnected


async def _disconnect(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_reply(reply: Reply, send: Send) -> None:
    headers = {"content-length": str(len(reply.body)), **reply.headers}
    await send(_start(reply.status, reply.media_type, headers))
    await send({"type": "http.response.body", "body": reply.body, "more_body": False})


def _start(status: int, media_type: str, headers: dict[str, str]) -> dict[str, object]:
    pairs = {"content-type": media_type, **headers}
    encoded = [(name.lower().encode(), _UNFIT.sub("?", value).encode()) for name, value in pairs.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}
