"""Stage of make gpu-e2e: mixed requests of many clients through one engine on the GPU, with few pages and a tier.

The questions are those of make soak (tests/soak/soak_questions.py), asked of the engine itself. The cache is proven
whole after every few steps. Deterministic, each answer is that of who asks alone; as models run by default, each
greedy token is the NumPy reference's wherever its gap is clear. Afterwards nothing is held and the device's memory is
back."""

from __future__ import annotations

import functools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import e2e_stage
import numpy as np
from answer_judge import AnswerJudge
from e2e_judges import check_tokens
from e2e_stage import Row
from soak_calls import Answers, Call, answers_of, ask, calls
from soak_clients import SHARES
from soak_proof import Proof, core_of
from soak_run import make_model

from llm_decoder import LLM, backends
from llm_decoder.errors import InvalidRequestError
from llm_decoder.outputs import RequestOutput

LIMIT_S = 200.0
N_CLIENTS = 32
CHECK_EVERY = 8  # steps
REST_S = 30.0
# 24 pages of 32 tokens, of which the longest request may take 16: sequences are preempted all the time.
PAGE_BYTES = 2 * 2 * 32 * 2 * 16 * 2  # keys and values, layers, tokens, heads, channels, bytes
MODEL: dict[str, Any] = {
    "device": "cuda",
    "kv_cache_bytes": 24 * PAGE_BYTES,
    "kv_tier_bytes": 24 * PAGE_BYTES,
    "max_model_len": 512,
    "page_size": 32,
    "max_num_seqs": 16,
    "max_tokens_per_step": 64,
}
# What the second LLM of a process may still hold of what the first one took: libraries and their scratch stay loaded.
MEMORY_BACK_BYTES = 256 << 20
_SHOWN_WRONG = 5


@dataclass
class Tally:
    """What clients saw. wrong: what should not be, in words. greedy: prompt and answer, token ids."""

    n_left: int
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    greedy: set[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        with self.lock:
            self.n_left -= 1
            return self.n_left >= 0

    def count(self, kind: str) -> None:
        with self.lock:
            self.counts[kind] += 1

    def note(self, call: Call, words: str) -> None:
        with self.lock:
            self.wrong.append(f"{call.kind}, user {call.user}: {words}")


Alone = dict[tuple[str, int], list[Answers]]  # by kind and user, of each prompt


class Client:
    """alone: right answers, where an answer does not depend on who else asks."""

    def __init__(self, llm: LLM, asked: list[Call], alone: Alone, tally: Tally, rng: random.Random) -> None:
        self._llm, self._asked, self._alone, self._tally, self._rng = llm, asked, alone, tally, rng

    def run(self) -> None:
        while self._tally.take():
            call = self._rng.choice(self._asked)
            what = self._pick()
            self._tally.count(what or call.kind)
            try:
                {"": self._ask, "cut off": self._cut_off, "hung up": self._hang_up, "malformed": self._send_bad,
                 "new salt": self._ask_with_new_salt}[what](call)  # fmt: skip
            except Exception as error:  # noqa: BLE001 - told, and the others go on
                self._tally.note(call, f"{type(error).__name__}: {error}")

    def _pick(self) -> str:
        """Of SHARES what an engine knows; for all else a question is read whole, which has no name."""
        drawn = self._rng.randrange(100)
        for what, share in SHARES.items():
            drawn -= share
            if drawn < 0:
                return what if what in ("cut off", "hung up", "malformed", "new salt") else ""
        return ""

    def _ask(self, call: Call) -> None:
        self._compare(call, ask(self._llm, call))

    def _compare(self, call: Call, outputs: list[RequestOutput]) -> None:
        right = self._alone.get((call.kind, call.user))
        got = [answers_of(output) for output in outputs]
        if right is not None and got != right:
            self._tally.note(call, f"answered {got!r:.300}, alone {right!r:.300}")
        if right is None and not call.is_search and call.params.temperature == 0 and call.params.logit_bias is None:
            with self._tally.lock:
                self._tally.greedy |= {
                    (tuple(output.prompt_token_ids), tuple(tokens))
                    for output, answers in zip(outputs, got, strict=True)
                    for tokens, _, _ in answers
                }

    def _ask_with_new_salt(self, call: Call) -> None:
        """Finds nothing cached, and has the same answer."""
        params = replace(call.params, cache_salt=f"{self._rng.random()}")
        self._compare(call, ask(self._llm, replace(call, params=params)))

    def _cut_off(self, call: Call) -> None:
        """Reads a little of the answer and goes away."""
        handle = self._llm.submit(call.prompts[0], call.params, stream=True, priority=call.priority)
        n_read = self._rng.randrange(1, 8)
        read: dict[int, list[int]] = {}
        output: RequestOutput | None = None
        for event in handle:
            read.setdefault(event.index, []).extend(event.token_ids)
            output = event.output
            n_read -= 1
            if not n_read:
                break
        handle.cancel()
        right = self._alone.get((call.kind, call.user))
        if right is None or call.is_search:
            return
        for index, tokens in read.items():
            whole = right[0][index][0]
            if tokens != whole[: len(tokens)]:
                self._tally.note(call, f"the stream began {tokens!r:.200}, alone {whole!r:.200}")
        if output is not None and answers_of(output) != right[0]:
            self._tally.note(call, f"streamed {answers_of(output)!r:.300}, alone {right[0]!r:.300}")

    def _hang_up(self, call: Call) -> None:
        handle = self._llm.submit(call.prompts[0], call.params)
        time.sleep(self._rng.random() * 0.02)
        handle.cancel()

    def _send_bad(self, call: Call) -> None:
        bad: Any = self._rng.choice([[10**9], "", [3] * 3000])
        try:
            self._llm.submit(bad, call.params)
        except InvalidRequestError:
            return
        self._tally.note(call, f"{bad!r:.40} was not refused")


def soak(
    *, deterministic: bool, n_requests: int, n_clients: int = N_CLIENTS, kinds_each: int = 6, **model: Any
) -> dict[str, Any]:
    """kinds_each: of questions that a user asks. model: options in the place of MODEL's. Raises AssertionError."""
    asked = [_some(user, kinds_each) for user in range(n_clients)]
    with tempfile.TemporaryDirectory() as name:
        folder = make_model(Path(name) / "model")
        options = MODEL | {"model": folder, "cache_dir": Path(name) / "packed", "deterministic": deterministic} | model
        with LLM(**options) as llm:
            llm.generate("Once", calls(0)[0].params)  # what stays loaded is loaded
        before = backends.load_cuda().describe_device(0)["free_bytes"]
        tally = Tally(n_requests)
        with LLM(**options) as llm:
            proof = Proof(core_of(llm), CHECK_EVERY)
            alone: Alone = {}
            if deterministic:
                alone = {(call.kind, call.user): _alone(llm, call) for own in asked for call in own}
            begin = time.monotonic()
            _run_all([Client(llm, own, alone, tally, random.Random(i)).run for i, own in enumerate(asked)])
            wall_s = time.monotonic() - begin
            _come_to_rest(llm, proof)
            stats = llm.stats()
        lost_bytes = before - backends.load_cuda().describe_device(0)["free_bytes"]
        n_judged = _judge(folder, tally)
    facts = {
        "n_requests": n_requests,
        "wall_s": round(wall_s, 1),
        "counts": dict(sorted(tally.counts.items())),
        "n_compared": len(alone),
        "n_judged_tokens": n_judged,
        "n_checks": proof.n_checks,
        "n_steps": stats["n_steps"],
        "n_preemptions": stats["n_preemptions"],
        "n_stored": stats["pages"]["n_stored"],
        "n_loaded": stats["pages"]["n_loaded"],
        "lost_bytes": lost_bytes,
    }
    assert not tally.wrong, f"{len(tally.wrong)} wrong: " + "; ".join(tally.wrong[:_SHOWN_WRONG])
    assert lost_bytes <= MEMORY_BACK_BYTES, f"{lost_bytes} bytes of the device have not come back"
    return facts


def _alone(llm: LLM, call: Call) -> list[Answers]:
    return [answers_of(output) for output in ask(llm, call)]


def _some(user: int, n_kinds: int) -> list[Call]:
    asked = calls(user)
    return [asked[(user * n_kinds + i) % len(asked)] for i in range(n_kinds)]


def _run_all(clients: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=client, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _come_to_rest(llm: LLM, proof: Proof) -> None:
    """Those who went away may still have a step. Raises AssertionError where pages stay held."""
    end = time.monotonic() + REST_S
    while (llm.stats()["n_requests"] or proof.lost()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not llm.stats()["n_requests"], "requests are still open"
    assert not proof.lost(), f"nobody asks, and yet the cache has {proof.lost()}"


def _judge(folder: Path, tally: Tally) -> int:
    """How many tokens were held against the reference."""
    reference = AnswerJudge(folder)
    n_judged = 0
    for prompt, tokens in sorted(tally.greedy):
        judge = reference.of([*prompt, *tokens])
        try:
            n_judged += check_tokens(judge.want[len(prompt) - 1 : -1], np.array(tokens), judge.most)
        except AssertionError as error:
            tally.wrong.append(f"the answer {tokens!r:.100} to {prompt!r:.60}: {error}")
    return n_judged


def pressed(**asked: Any) -> dict[str, Any]:
    """The row of a soak in which pages were short. Raises AssertionError."""
    facts = soak(**asked)
    for name in ("n_preemptions", "n_stored", "n_loaded"):
        assert facts[name], f"{name} is 0: {facts}"
    return facts


def rows() -> dict[str, Row]:
    deterministic = functools.partial(pressed, deterministic=True, n_requests=1200)
    by_default = functools.partial(pressed, deterministic=False, n_requests=800)
    return {"soak-deterministic": Row(deterministic, LIMIT_S), "soak-default": Row(by_default, LIMIT_S)}


def main() -> int:
    return e2e_stage.run_stage(rows, e2e_stage.arguments(__doc__.splitlines()[0]).parse_args())


if __name__ == "__main__":
    sys.exit(main())
