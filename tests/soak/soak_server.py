"""A real server as a program, whose cache is proven whole after every step of the engine, and that tells of itself:

    python soak_server.py '{"server": "fastapi", "model": {"model": ..., ...}, "settings": {"max_requests": 64, ...}}'

A line on standard input is answered by a line of JSON on standard output (State); the end of the input ends the server.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from soak_proof import Proof, core_of

from llm_decoder.llm import LLM
from llm_decoder.serving.logs import set_up
from llm_decoder.serving.memory import share_one_heap
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings


@dataclass
class State:
    """What a server is at a moment. n_checks: steps after which the cache was proven whole. is_idle: nobody asks
    anything. n_objects: that the garbage collector knows, by type, once it has collected."""

    n_checks: int
    is_idle: bool
    stats: dict[str, Any]
    n_threads: int
    n_files: int
    n_objects: dict[str, int] = field(default_factory=dict)


class ProofOfRest(Proof):
    """Proves also that no page is held when nobody runs."""

    def _checked_step(self) -> bool:
        has_worked = super()._checked_step()
        if not self._core.requests and self.lost():
            raise AssertionError(f"nobody asks, and yet the cache has {self.lost()}")
        return has_worked


class Told:
    """Answers questions about the server on standard input and output."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.proof: ProofOfRest | None = None

    def answer_all(self) -> None:
        self._service.wait()
        for line in sys.stdin:
            try:
                told = asdict(self._state(with_objects="objects" in line))
            except Exception as error:  # noqa: BLE001 - who asks is told
                told = {"error": repr(error)}
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGTERM)

    def _state(self, *, with_objects: bool) -> State:
        stats = self._service.llm.stats()
        assert self.proof is not None
        is_idle = not (stats["n_requests"] or stats["n_submitted"] or self._service.admission.n_requests)
        del stats["histograms"]
        state = State(
            self.proof.n_checks, is_idle, stats, threading.active_count(), len(os.listdir(f"/proc/{os.getpid()}/fd"))
        )
        if with_objects:
            gc.collect()
            state.n_objects = dict(Counter(type(each).__qualname__ for each in gc.get_objects()).most_common(400))
        return state


def main(asked: dict[str, Any]) -> int:
    share_one_heap()  # as the commands do
    settings = ServerSettings(port=0, **asked["settings"])
    set_up(settings)

    def open_llm() -> LLM:
        llm = LLM(**asked["model"], max_requests=settings.max_requests)
        told.proof = ProofOfRest(core_of(llm))
        return llm

    service = Service(open_llm, settings)
    told = Told(service)
    threading.Thread(target=told.answer_all, daemon=True).start()
    if asked["server"] == "flask":
        from llm_decoder.web.app import serve

        return serve(service)
    from llm_decoder.api.server import run
    from llm_decoder.web.page import endpoints

    return run(service, endpoints())


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
