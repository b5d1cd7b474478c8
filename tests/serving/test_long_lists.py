"""More texts in a request than the engine's queue has places."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from direct import DirectServer, ready_service
from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder.errors import EngineClosedError, QueueFullError
from llm_decoder.llm import LLM
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call, RunningCall
from llm_decoder.serving.embeddings import embed
from llm_decoder.serving.errors import as_http_error
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

WAIT_S = 60.0


class Rig:
    """A service whose queue has eight places; its steps wait while `go_on` is clear."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.most_open = 0
        self.on_step: Callable[[], None] = lambda: None
        backend = FakeBackend(max_tokens_per_step=32)
        backend.before_step = self._step
        self.llm = LLM.over(make_engine(backend, max_requests=8), ByteTokenizer(), "fake")
        self.service: Service = ready_service(self.llm, ServerSettings(max_requests=8, max_inputs=40))

    def _step(self) -> None:
        self.on_step()
        assert self.go_on.wait(WAIT_S)

    def begin(self, n_texts: int) -> RunningCall:
        call = embed(self.service, asked([f"text {index}" for index in range(n_texts)]))
        assert isinstance(call, Call)
        return self.service.run(call)

    def wait(self, running: RunningCall) -> None:
        woken = threading.Event()
        running.on_items(woken.set)
        while not running.look():
            self.most_open = max(self.most_open, len(running.handles) - len(running.outputs))
            assert woken.wait(WAIT_S)
            woken.clear()


def asked(texts: list[str]) -> Incoming:
    body = json.dumps({"input": texts, "encoding_format": "float"}).encode()
    return Incoming("POST", "/v1/embeddings", "r", {"content-type": "application/json"}, body=body)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.go_on.set()
    rig.service.close(0)


def vectors(running: RunningCall) -> Any:
    return [entry["embedding"] for entry in json.loads(running.reply().body)["data"]]


def test_a_long_list_is_answered_in_its_order_and_takes_half_of_the_queue(rig: Rig) -> None:
    running = rig.begin(40)
    rig.wait(running)
    assert rig.most_open == 4
    alone = []
    for index in (0, 3, 4, 39):
        one = rig.service.run(embed(rig.service, asked([f"text {index}"])))  # type: ignore[arg-type]
        rig.wait(one)
        alone += vectors(one)
    together = vectors(running)
    assert len(together) == 40
    np.testing.assert_array_equal(np.array(alone), np.array([together[index] for index in (0, 3, 4, 39)]))


def test_of_each_text_that_is_over_one_row_is_held(rig: Rig) -> None:
    running = rig.begin(10)
    rig.wait(running)
    assert {output.rows.shape[0] for output in running.outputs if output.rows is not None} == {1}


def test_others_find_room_beside_a_long_list(rig: Rig) -> None:
    rig.go_on.clear()
    running = rig.begin(40)
    others = [rig.llm.submit("other", SamplingParams(max_tokens=1)) for _ in range(4)]
    with pytest.raises(QueueFullError):
        rig.llm.submit("one more", SamplingParams(max_tokens=1))
    rig.go_on.set()
    for other in others:
        assert other.result().outputs[0].finish_reason == "length"
    rig.wait(running)
    assert running.error is None


def test_a_list_that_is_cancelled_puts_no_more_in_line(rig: Rig) -> None:
    rig.go_on.clear()
    running = rig.begin(40)
    running.cancel()
    rig.go_on.set()
    rig.wait(running)
    assert len(running.handles) == 4
    assert isinstance(running.error, EngineClosedError)
    assert rig.llm.stats()["n_running"] == 0


def test_a_text_that_is_given_up_half_way_has_no_vector(rig: Rig) -> None:
    backend_has_begun = threading.Event()
    rig.on_step = backend_has_begun.set
    rig.go_on.clear()
    running = rig.service.run(embed(rig.service, asked(["long " * 15])))  # type: ignore[arg-type]
    assert backend_has_begun.wait(WAIT_S)
    running.cancel()
    rig.go_on.set()
    rig.wait(running)
    assert as_http_error(running.error or ValueError()).status == 503


def test_a_bad_text_far_behind_is_refused_and_nothing_is_left(rig: Rig) -> None:
    server = DirectServer(rig.service)
    status, answer, _ = server.post("/v1/embeddings", {"input": [*["good"] * 30, "x" * 100_000]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert server.post("/v1/embeddings", {"input": "good"})[0] == 200


def test_more_than_a_server_takes_is_refused(rig: Rig) -> None:
    status, answer, _ = DirectServer(rig.service).post("/v1/embeddings", {"input": ["a"] * 41})
    assert (status, answer["error"]["param"]) == (400, "input")
