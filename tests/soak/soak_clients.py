"""The clients of a soak: some ask and read, some go away, some send what is no request. Each has users of its own, so a
canary stands in one open request at most."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from soak_answers import Answers, lasting, streamed_answers, whole_answers
from soak_questions import CANARY, Bad, Question, bad_questions, new_grammar, questions

from llm_decoder.cli._exchange import Address, Answer, _Chunks, exchange, post_request

TIMEOUT_S = 120.0
_PROBES = ("/health", "/ready", "/metrics", "/v1/models", "/version", "/", "/page/session")
# Of a hundred requests. The rest is asked and read whole.
SHARES = {"cut off": 13, "hung up": 8, "half a body": 4, "malformed": 15, "new grammar": 4, "new salt": 3, "probe": 4}


@dataclass(frozen=True)
class Alone:
    """The answer to a question when nobody else asks."""

    body: Any
    answers: Answers


@dataclass
class Tally:
    """What clients saw. counts: requests by kind; wrong: what should not be, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    n_done: int = 0


async def ask_alone(address: Address, asked: Sequence[Question]) -> dict[tuple[str, int], Alone]:
    """One after the other, none streamed."""
    found = {}
    for question in asked:
        answer = await exchange(address, _request(address, question.whole_path, question.fields), TIMEOUT_S)
        assert answer.status == 200, f"{question.kind}: {answer.status} {answer.failure} {answer.body!r:.500}"
        body = json.loads(answer.body)
        found[question.kind, question.user] = Alone(lasting(body), whole_answers(body))
    return found


def _request(address: Address, path: str, fields: Mapping[str, Any]) -> bytes:
    return post_request(address, path, json.dumps(fields).encode())


class Client:
    """users: whom it asks for. alone: what is right. rng: what it does."""

    def __init__(
        self,
        address: Address,
        users: Sequence[int],
        alone: Mapping[tuple[str, int], Alone],
        tally: Tally,
        rng: random.Random,
    ) -> None:
        self._address = address
        self._users = users
        self._questions = {user: [each for each in questions(user) if (each.kind, user) in alone] for user in users}
        self._bad = {user: list(bad_questions(user)) for user in users}
        self._alone = alone
        self._tally = tally
        self._rng = rng

    async def run(self, is_more: Callable[[], bool]) -> None:
        while is_more():
            user = self._rng.choice(self._users)
            what = self._pick()
            try:
                await self._do(what, user)
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._note(what, user, f"{type(error).__name__}: {error}")
            self._tally.n_done += 1

    def _pick(self) -> str:
        drawn = self._rng.randrange(100)
        for what, share in SHARES.items():
            drawn -= share
            if drawn < 0:
                return what
        return "whole"

    async def _do(self, what: str, user: int) -> None:
        question = self._rng.choice(self._questions[user])
        if what == "cut off":
            await self._cut_off(question)
        elif what == "hung up":
            self._count(what)
            await self._leave(self._bytes(question, streamed=False), self._rng.random() * 0.05)
        elif what == "half a body":
            self._count(what)
            raw = self._bytes(question, streamed=False)
            await self._leave(raw[: -self._rng.randrange(1, 40)], self._rng.random() * 0.05)
        elif what == "malformed":
            await self._send_bad(self._rng.choice(self._bad[user]), user)
        elif what == "new grammar":
            await self._ask_new_grammar(user)
        elif what == "new salt":
            await self._ask_with_new_salt(user)
        elif what == "probe":
            await self._probe(user)
        else:
            await self._ask(question)

    def _count(self, kind: str) -> None:
        self._tally.counts[kind] += 1

    def _note(self, kind: str, user: int, words: str) -> None:
        self._tally.wrong.append(f"{kind}, user {user}: {words}")

    def _look_for_canaries(self, kind: str, user: int, raw: bytes) -> None:
        others = {int(found) for found in CANARY.findall(raw)} - {user}
        if others:
            self._note(kind, user, f"the canaries of {sorted(others)} are in its answer {raw!r:.500}")

    def _bytes(self, question: Question, *, streamed: bool) -> bytes:
        if not streamed:
            return _request(self._address, question.whole_path, question.fields)
        assert question.stream_path is not None
        is_openai = question.stream_path.startswith("/v1/")
        fields = question.fields | ({"stream": True} if is_openai else {})
        return _request(self._address, question.stream_path, fields)

    # -- those who read

    async def _ask(self, question: Question) -> None:
        streamed = question.stream_path is not None and (question.path is None or self._rng.random() < 0.5)
        self._count(f"{question.kind}{', streamed' if streamed else ''}")
        answer = await exchange(self._address, self._bytes(question, streamed=streamed), TIMEOUT_S)
        if not self._is_whole(question.kind, question.user, answer):
            return
        right = self._alone[question.kind, question.user]
        if not streamed:
            self._compare(question, lasting(json.loads(answer.body)), right.body)
            return
        answers, is_done = streamed_answers(answer.body)
        if not is_done:
            self._note(question.kind, question.user, "the stream has no [DONE]")
        self._compare(question, answers, right.answers)

    def _compare(self, question: Question, got: Any, right: Any) -> None:
        if got != right:
            self._note(question.kind, question.user, f"answered {got!r:.600}, alone {right!r:.600}")

    def _is_whole(self, kind: str, user: int, answer: Answer) -> bool:
        self._look_for_canaries(kind, user, answer.body)
        if answer.status != 200 or answer.failure:
            self._note(kind, user, f"status {answer.status} {answer.failure} {answer.body!r:.300}")
            return False
        return True

    async def _ask_new_grammar(self, user: int) -> None:
        self._count("new grammar")
        number = self._rng.getrandbits(40)
        fields = new_grammar(number, user)
        answer = await exchange(self._address, _request(self._address, "/v1/completions", fields), TIMEOUT_S)
        if self._is_whole("new grammar", user, answer):
            text = json.loads(answer.body)["choices"][0]["text"]
            if not any(choice.startswith(text) for choice in fields["guided_choice"]):
                self._note("new grammar", user, f"{text!r} is none of its choices")

    async def _ask_with_new_salt(self, user: int) -> None:
        """A salt that nobody has had finds nothing cached, and changes no answer."""
        question = next((each for each in self._questions[user] if each.kind == "completion"), None)
        if question is None:
            return
        self._count("new salt")
        fields = question.fields | {"cache_salt": f"{self._rng.getrandbits(64)}"}
        answer = await exchange(self._address, _request(self._address, question.whole_path, fields), TIMEOUT_S)
        if self._is_whole("new salt", user, answer):
            body = json.loads(answer.body)
            self._compare(question, lasting(body), self._alone[question.kind, user].body)
            n_cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            if n_cached:
                self._note("new salt", user, f"{n_cached} tokens were cached")

    async def _probe(self, user: int) -> None:
        self._count("probe")
        path = self._rng.choice(_PROBES)
        head = f"GET {path} HTTP/1.1\r\nHost: {self._address.host}\r\nConnection: close\r\n\r\n"
        answer = await exchange(self._address, head.encode(), TIMEOUT_S)
        self._is_whole(f"probe {path}", user, answer)

    # -- those who do not

    async def _cut_off(self, question: Question) -> None:
        if question.stream_path is None:
            await self._ask(question)
            return
        self._count("cut off")
        n_bytes = self._rng.choice((1, 200, 600, 1500, 4000))
        raw = await self._leave(self._bytes(question, streamed=True), TIMEOUT_S, n_bytes)
        head, _, body = raw.partition(b"\r\n\r\n")
        if b"chunked" in head.lower():
            body, _ = _Chunks().take(body)
        self._look_for_canaries("cut off", question.user, body)
        right = self._alone[question.kind, question.user].answers
        for index, said in streamed_answers(body)[0].items():
            if not said.begins(right[index]):
                self._note("cut off", question.user, f"{question.kind}: read {said}, alone {right[index]}")

    async def _leave(self, request: bytes, wait_s: float, n_bytes: int = 1 << 30) -> bytes:
        """Sends, reads on until so much has come or so long has passed, and goes away. What it has read."""
        reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
        raw = b""
        try:
            writer.write(request)
            async with asyncio.timeout(wait_s):
                while len(raw) < n_bytes and (piece := await reader.read(4096)):
                    raw += piece
        except TimeoutError:
            pass
        finally:
            if self._rng.random() < 0.5:
                writer.transport.abort()
            writer.close()
        return raw

    async def _send_bad(self, bad: Bad, user: int) -> None:
        self._count("malformed")
        sent = bad.sent or post_request(self._address, bad.path, bad.body)
        answer = await exchange(self._address, sent, TIMEOUT_S)
        self._look_for_canaries(bad.kind, user, answer.body)
        if answer.status not in bad.statuses:
            self._note(bad.kind, user, f"status {answer.status} {answer.failure} {answer.body!r:.300}")
