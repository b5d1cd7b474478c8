"""A load on a server: requests at their moments, so many at once, and what came back read when all is over."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_decoder.cli._exchange import Address, Answer, exchange
from llm_decoder.cli._sse_reader import DONE, EventReader

__all__ = ["Load", "Outcome", "read_answer", "run_load"]


@dataclass
class Outcome:
    """One request. sent_s: from the start of the load; event_s: moments of its events with text, from when it was sent;
    the first is its time to first token. total_s: to its last byte. error: None when it went well."""

    sent_s: float
    total_s: float
    event_s: list[float] = field(default_factory=list)
    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_answer_tokens: int = 0
    error: str | None = None


@dataclass
class Load:
    """What a load made of a server. wall_s: from the first request to the last byte; own_cpu_s: processor time that
    this program took meanwhile."""

    outcomes: list[Outcome]
    wall_s: float
    own_cpu_s: float


def run_load(
    address: Address,
    requests: Sequence[bytes],
    moments: Sequence[float],
    *,
    concurrency: int | None,
    timeout_s: float,
) -> Load:
    """Sends each request at its moment, or as soon as fewer than `concurrency` (None = any number) are open."""
    gc.collect()
    gc.disable()  # what is kept of the answers only grows: looking for rubbish in it finds none
    try:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        answers = asyncio.run(_send_all(address, requests, moments, started_s, concurrency, timeout_s))
        wall_s, own_cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    finally:
        gc.enable()
    return Load([read_answer(answer, started_s) for answer in answers], wall_s, own_cpu_s)


async def _send_all(
    address: Address,
    requests: Sequence[bytes],
    moments: Sequence[float],
    started_s: float,
    concurrency: int | None,
    timeout_s: float,
) -> list[Answer]:
    places = asyncio.Semaphore(concurrency or len(requests))

    async def send(request: bytes) -> Answer:
        try:
            return await exchange(address, request, timeout_s)
        finally:
            places.release()

    tasks = []
    for request, moment in zip(requests, moments, strict=True):
        wait_s = started_s + moment - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await places.acquire()
        tasks.append(asyncio.create_task(send(request)))
    return list(await asyncio.gather(*tasks))


def read_answer(answer: Answer, started_s: float) -> Outcome:
    """What an exchange was. started_s: of the load."""
    outcome = Outcome(answer.started_s - started_s, answer.ended_s - answer.started_s)
    if answer.status not in (0, 200):
        outcome.error = _refusal(answer)
        return outcome
    try:
        is_done = _read_events(answer, outcome)
    except (ValueError, TypeError, KeyError, AttributeError):
        outcome.error = "no stream of completions"
        return outcome
    if outcome.error is None and (answer.failure or not is_done):
        outcome.error = answer.failure or "ended without [DONE]"
    return outcome


def _read_events(answer: Answer, outcome: Outcome) -> bool:
    """Whether [DONE] came."""
    reader = EventReader()
    for moment_s, piece in answer.pieces:
        for data in reader.push(piece):
            if data == DONE:
                return True
            event = json.loads(data)
            if event.get("error"):
                outcome.error = f"in the stream: {_kind(event['error'])}"
            # A token may be half a character and show nothing; what only ends an answer is none.
            if any(choice["text"] or choice.get("finish_reason") is None for choice in event.get("choices", ())):
                outcome.event_s.append(moment_s - answer.started_s)
            if event.get("usage"):
                _note_usage(event["usage"], outcome)
    return False


def _note_usage(usage: dict[str, Any], outcome: Outcome) -> None:
    outcome.n_prompt_tokens = usage["prompt_tokens"]
    outcome.n_answer_tokens = usage.get("completion_tokens") or 0
    outcome.n_cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _refusal(answer: Answer) -> str:
    try:
        return f"{answer.status} {_kind(json.loads(answer.body)['error'])}".strip()
    except (ValueError, TypeError, KeyError):
        return str(answer.status)


def _kind(error: Any) -> str:
    """What kind an error is, without the words that are different each time."""
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or error.get("type") or "")[:80]
