"""A soak: many clients at once on one server, its memory sampled all the while; and bursts of more than it takes."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models_factory import make_checkpoint
from scripted import CHATML
from soak_answers import streamed_answers, whole_answers
from soak_clients import TIMEOUT_S, Alone, Client, Tally, ask_alone
from soak_program import ServerProgram
from soak_questions import questions

from llm_decoder.cli._exchange import Address, Answer, exchange, post_request

N_WINDOWS = 10
FLAT = 0.02
# 20 pages of 32 tokens, of which the longest request may take 16: sequences are preempted all the time.
MODEL: dict[str, Any] = {
    "kv_cache_bytes": 20 * 5120,
    "max_model_len": 512,
    "page_size": 32,
    "max_num_seqs": 16,
    "max_tokens_per_step": 64,
    "threads": 1,
}
_SETTINGS = {"max_requests": 160, "max_body_bytes": 64 << 10, "resume_s": 0.2}
_SAMPLE_S = 0.1

Progress = Callable[[str, int, int], None]
Rightness = dict[tuple[str, int], Alone]


def make_model(folder: Path) -> Path:
    """A Llama of two layers that writes another text for every prompt, and is taught to call tools."""
    return make_checkpoint(folder, "llama", seed=3, chat_template=CHATML)


@dataclass
class SoakReport:
    """What a soak saw. windows: of resident memory in bytes, the median of samples over each tenth of the measured
    requests (between two the server comes to rest), after n_warmup requests of the same kinds that fill every pool and
    cache. growth: the largest difference of a window from
    the first, a part of it. objects: Python objects more than after the warm-up, by type, when nothing runs."""

    server: str
    n_requests: int
    n_warmup: int
    n_clients: int
    n_compared: int
    wall_s: float
    counts: dict[str, int]
    wrong: list[str]
    windows: list[int]
    objects: dict[str, int]
    n_checks: int
    n_preemptions: int
    n_finished: dict[str, int]
    n_threads: list[int]
    n_files: list[int]

    @property
    def growth(self) -> float:
        first = self.windows[0]
        return max((abs(each - first) / first for each in self.windows), default=0.0)

    @property
    def n_more_objects(self) -> int:
        return sum(self.objects.values())


def run_soak(
    server: str,
    model: Path,
    *,
    n_requests: int,
    n_warmup: int,
    n_clients: int = 32,
    users_each: int = 1,
    kinds_each: int | None = None,
    alone: Rightness | None = None,
    seed: int = 0,
    progress: Progress = lambda what, n_done, n_all: None,
) -> tuple[SoakReport, Rightness]:
    """users_each: users of a client. kinds_each: of questions a user asks, None = all. alone: right answers that are
    known already. Returns them with the report."""
    with ServerProgram(server, MODEL | {"model": str(model)}, **_SETTINGS) as program:
        address = Address.of(program.url)
        users = [list(range(first, n_clients * users_each, n_clients)) for first in range(n_clients)]
        if alone is None:
            asked = [each for own in users for user in own for each in _some(user, kinds_each)]
            alone = asyncio.run(ask_alone(address, asked))
        tally = Tally()
        asyncio.run(
            _drive(
                address, users, alone, tally, n_warmup, f"{seed} warm-up", lambda n: progress("warm-up", n, n_warmup)
            )
        )
        before = program.idle_state(objects=True)
        started_s = time.monotonic()
        measured = Tally(wrong=tally.wrong)
        windows: list[int] = []
        for window in range(N_WINDOWS):
            samples: list[int] = []

            def look(n_done: int, samples: list[int] = samples) -> None:
                samples.append(program.resident_bytes())
                progress(server, n_done, n_requests)

            end = n_requests * (window + 1) // N_WINDOWS
            asyncio.run(_drive(address, users, alone, measured, end, f"{seed} {window}", look))
            windows.append(int(statistics.median(samples)))
            program.idle_state()
            progress(server, end, n_requests)
        wall_s = time.monotonic() - started_s
        after = program.idle_state(objects=True)
        log = program.log()
        code = program.end()
    if code:
        measured.wrong.append(f"the server ended with {code}: {log[-1000:]}")
    if "Traceback" in log:
        measured.wrong.append(f"the log has a traceback: {log[log.index('Traceback') - 500 :][:3000]}")
    if "canary-" in log:
        measured.wrong.append("the log has texts of users")
    kinds = after["n_objects"]
    report = SoakReport(
        server=server,
        n_requests=measured.n_done,
        n_warmup=tally.n_done,
        n_clients=n_clients,
        n_compared=len(alone),
        wall_s=wall_s,
        counts=dict(sorted(measured.counts.items())),
        wrong=measured.wrong,
        windows=windows,
        objects={
            name: n - before["n_objects"].get(name, 0) for name, n in kinds.items() if name in before["n_objects"]
        },
        n_checks=after["n_checks"],
        n_preemptions=after["stats"]["n_preemptions"],
        n_finished=after["stats"]["n_finished"],
        n_threads=[before["n_threads"], after["n_threads"]],
        n_files=[before["n_files"], after["n_files"]],
    )
    return report, alone


def _some(user: int, n_kinds: int | None) -> list[Any]:
    asked = questions(user)
    if n_kinds is None:
        return asked
    first = user * n_kinds
    return [asked[(first + i) % len(asked)] for i in range(n_kinds)]


async def _drive(
    address: Address,
    users: Sequence[Sequence[int]],
    alone: Rightness,
    tally: Tally,
    n_requests: int,
    seed: str,
    look: Callable[[int], None],
) -> None:
    """All clients at once, until the tally has n_requests; `look` is called again and again meanwhile."""
    n_begun = tally.n_done

    def is_more() -> bool:
        nonlocal n_begun
        n_begun += 1
        return n_begun <= n_requests

    async def watch() -> None:
        while True:
            look(tally.n_done)
            await asyncio.sleep(_SAMPLE_S)

    watching = asyncio.create_task(watch())
    clients = [Client(address, own, alone, tally, random.Random(f"{seed} {own[0]}")) for own in users]
    try:
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(client.run(is_more)) for client in clients]
            group.create_task(_end_with(working, watching))
    finally:
        watching.cancel()


async def _end_with(working: Sequence[asyncio.Task[None]], watching: asyncio.Task[None]) -> None:
    """A watcher that raises (the server is gone) ends all."""
    done, _ = await asyncio.wait([watching, asyncio.gather(*working)], return_when=asyncio.FIRST_COMPLETED)
    if watching in done:
        await watching


@dataclass
class BurstReport:
    """What bursts of n_sent requests did to a server that takes `queue`. n_good, n_refused: a burst. resident_bytes:
    after each."""

    server: str
    queue: int
    n_sent: int
    n_good: list[int] = field(default_factory=list)
    n_refused: list[int] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def run_bursts(
    server: str, *, queue: int = 16, times: int = 10, n_bursts: int = 6, n_tokens: int = 48,
    progress: Progress = lambda what, n_done, n_all: None,
) -> BurstReport:  # fmt: skip
    """`times` the queue at once on the embedded model, again and again."""
    report = BurstReport(server, queue, times * queue)
    with ServerProgram(server, {}, max_requests=queue) as program:
        address = Address.of(program.url)
        asked = [_tell(i, n_tokens) for i in range(queue)]
        right = [asyncio.run(_post(address, fields)) for fields in asked]
        texts = [whole_answers(_json(answer))[0] for answer in right]
        for number in range(n_bursts):
            progress(f"{server}, bursts", number, n_bursts)
            answers = asyncio.run(_burst(address, asked, report.n_sent))
            good = [i for i, answer in enumerate(answers) if answer.status == 200]
            report.n_good.append(len(good))
            report.n_refused.append(sum(answer.status in (429, 503) for answer in answers))
            for i, answer in enumerate(answers):
                report.wrong += _wrong_in_burst(i, answer, texts[i % queue])
            _look_after(program, address, asked[0], texts[0], report)
        progress(f"{server}, bursts", n_bursts, n_bursts)
        report.wrong += ["the log has a traceback"] if "Traceback" in program.log() else []
    return report


def _tell(index: int, n_tokens: int) -> dict[str, Any]:
    prompt = f"Once upon a time there were {index + 2} little dogs. One day they"
    return {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}


async def _post(address: Address, fields: dict[str, Any]) -> Answer:
    return await exchange(address, post_request(address, "/v1/completions", json.dumps(fields).encode()), TIMEOUT_S)


def _json(answer: Answer) -> Any:
    return json.loads(answer.body)


async def _burst(address: Address, asked: Sequence[dict[str, Any]], n_sent: int) -> list[Answer]:
    bodies = [asked[i % len(asked)] | {"stream": i % 2 == 1} for i in range(n_sent)]
    return list(await asyncio.gather(*(_post(address, body) for body in bodies)))


def _wrong_in_burst(index: int, answer: Answer, right: Any) -> list[str]:
    if answer.failure or answer.status not in (200, 429, 503):
        return [f"request {index}: {answer.status} {answer.failure} {answer.body!r:.200}"]
    if answer.status != 200:
        return [] if answer.headers.get("retry-after") else [f"request {index}: {answer.status} without Retry-After"]
    answers = streamed_answers(answer.body)[0] if index % 2 else whole_answers(_json(answer))
    return [] if answers == {0: right} else [f"request {index}: {answers!r:.300}, alone {right!r:.300}"]


def _look_after(program: ServerProgram, address: Address, fields: Any, right: Any, report: BurstReport) -> None:
    """It has recovered: nothing waits or is held, the next is served."""
    program.idle_state()
    report.resident_bytes.append(program.resident_bytes())
    told = asyncio.run(exchange(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 60))
    gauges = [line for line in told.body.decode().splitlines() if line.startswith("llm_decoder:num_requests_")]
    if len(gauges) != 2 or any(float(line.split()[-1]) for line in gauges):
        report.wrong.append(f"after the burst: {gauges}")
    answer = asyncio.run(_post(address, fields))
    if answer.status != 200 or whole_answers(_json(answer)) != {0: right}:
        report.wrong.append(f"the next request: {answer.status} {answer.failure} {answer.body!r:.200}")
