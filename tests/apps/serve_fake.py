"""A server as a program, over a model that takes `step_s` seconds a step: python serve_fake.py '{"step_s": 0.01, ...}'.
The other fields are those of ServerSettings; "opens": false is a model that cannot be loaded."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from fakes import FakeBackend
from serving_fakes import ENDPOINTS, make_llm

from llm_decoder.api.server import run
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.llm import LLM
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.logs import set_up
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings


class Flood:
    """An answer without an end."""

    headers: Mapping[str, str] = {}
    is_over = False
    n_ended = 0

    def on_items(self, wake: Callable[[], None]) -> None: ...

    def events(self) -> bytes:
        return b"data: " + b"x" * (1 << 20) + b"\n\n"

    def cancel(self) -> None:
        Flood.n_ended += 1


def flood(service: Service, incoming: Incoming) -> Flood:
    return Flood()


def ended(service: Service, incoming: Incoming) -> Reply:
    """How many floods have ended, and how many requests the engine has."""
    return Reply.of_json([Flood.n_ended, service.llm.stats()["n_running"]])


def main(options: dict[str, Any]) -> int:
    backend = FakeBackend(max_model_len=4096, n_pages=600)
    step_s, opens = options.pop("step_s", 0.0), options.pop("opens", True)
    backend.before_step = lambda: time.sleep(step_s)

    def open_llm() -> LLM:
        if not opens:
            raise ModelNotFoundError("[model] there is none at the place that was named")
        return make_llm(backend)

    settings = ServerSettings(**options)
    set_up(settings)
    more = (Endpoint("GET", "/flood", flood, "Floods"), Endpoint("GET", "/ended", ended, "Tells what has ended"))
    return run(Service(open_llm, settings), (*ENDPOINTS, *more))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
