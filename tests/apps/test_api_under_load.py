"""The FastAPI application under many clients, good and bad, at once. The fake model's text is a function of its prompt:
a word of another user's would be seen, and the cache is proven whole at every step."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from asgi_client import Exchange
from fakes import FakeBackend
from serving_fakes import ENDPOINTS, make_service

from llm_decoder.api.app import create_app

N_REQUESTS = 360
N_CLIENTS = 24
N_USERS = 12


def body_of(user: int, n_tokens: int, stream: bool) -> bytes:
    fields = {"prompts": [f"user {user} " * (1 + user)], "max_tokens": n_tokens, "stream": stream, "temperature": 0.0}
    return json.dumps(fields | {"ignore_eos": True}).encode()


def text_of(exchange: Exchange, stream: bool) -> str:
    if not stream:
        return str(exchange.json()["texts"][0])
    events = exchange.events()
    assert events[-1] == "[DONE]"
    return "".join(event["text"] for event in events if isinstance(event, dict) and "text" in event)


async def misbehave(app: Any, rng: random.Random) -> None:
    """One client that means it ill, or goes away."""
    kind = rng.randrange(5)
    if kind == 0:
        assert (await Exchange(app, "POST", "/complete", body=b"{" * rng.randrange(1, 2000)).end()).status in (400, 500)
    elif kind == 1:
        exchange = Exchange(app, "POST", "/complete", body=[b"{", b"never"], is_whole=False)
        await asyncio.sleep(0)
        exchange.hang_up()
        await exchange.end()
    elif kind == 2:
        huge = b'{"prompts": ["' + b"x" * 4000 + b'"]}'
        assert (await Exchange(app, "POST", "/complete", body=huge).end()).status in (400, 429)
    else:
        exchange = Exchange(app, "POST", "/complete", body=body_of(rng.randrange(N_USERS), 150, kind == 3))
        if kind == 3:
            waiting = asyncio.ensure_future(exchange.chunk(rng.randrange(3)))
            await asyncio.wait([waiting, exchange.task], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        else:
            await asyncio.sleep(rng.random() / 50)
        exchange.hang_up()
        await exchange.end()


def test_good_answers_stay_the_same_among_clients_that_misbehave() -> None:
    backend = FakeBackend(n_pages=24)  # so few that sequences are preempted
    service = make_service(backend, max_requests=64)
    app = create_app(service, endpoints=ENDPOINTS)

    async def client(seed: int, expected: dict[tuple[int, int], str]) -> int:
        rng = random.Random(seed)
        n_good = 0
        for _ in range(N_REQUESTS // N_CLIENTS):
            if rng.random() < 0.5:
                await misbehave(app, rng)
                continue
            user, n_tokens, stream = rng.randrange(N_USERS), rng.choice((1, 7, 20)), rng.random() < 0.5
            exchange = await Exchange(app, "POST", "/complete", body=body_of(user, n_tokens, stream)).end()
            assert text_of(exchange, stream) == expected[user, n_tokens]
            n_good += 1
        return n_good

    async def main() -> None:
        expected = {}
        for user in range(N_USERS):
            for n_tokens in (1, 7, 20):
                exchange = await Exchange(app, "POST", "/complete", body=body_of(user, n_tokens, False)).end()
                expected[user, n_tokens] = text_of(exchange, False)
        assert len(set(expected.values())) > N_USERS
        good = await asyncio.gather(*(client(seed, expected) for seed in range(N_CLIENTS)))
        assert sum(good) > N_REQUESTS // 3

    asyncio.run(main())
    service.close(30)
    stats = backend.cache.stats()
    assert (stats["n_held"], stats["n_sequences"]) == (0, 0)
    backend.cache.check_integrity()


def test_of_a_burst_those_inside_finish_and_the_rest_is_told_to_come_again() -> None:
    service = make_service(max_requests=8)
    app = create_app(service, endpoints=ENDPOINTS)

    async def main() -> None:
        for _ in range(3):  # it recovers each time
            exchanges = [Exchange(app, "POST", "/complete", body=body_of(i, 20, True)) for i in range(N_USERS)] + [
                Exchange(app, "POST", "/complete", body=body_of(i % N_USERS, 20, False)) for i in range(68)
            ]
            statuses = [(await exchange.end()).status for exchange in exchanges]
            assert statuses.count(200) == 8
            assert statuses.count(429) == len(exchanges) - 8
            assert all(exchange.headers["retry-after"] for exchange in exchanges if exchange.status == 429)
            assert all(exchange.is_complete for exchange in exchanges)

    asyncio.run(main())
    service.close(0)
