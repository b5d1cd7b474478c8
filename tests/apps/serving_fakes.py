"""What the servers talk to in tests: a service over an engine without a model, and endpoints of the plainest kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fakes import ByteTokenizer, FakeBackend, make_engine

from llm_decoder.engine import Engine
from llm_decoder.errors import InvalidRequestError
from llm_decoder.llm import LLM
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings
from llm_decoder.serving.sse import Chunk


class PlainFormat:
    """Texts and finish reasons, as they come."""

    def response(self, outputs: Sequence[RequestOutput]) -> Any:
        return {"texts": [output.outputs[0].text for output in outputs]}

    def begin(self) -> list[Chunk]:
        return [Chunk({"begin": True})]

    def chunks(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        return [Chunk({"index": prompt_index, "text": event.text, "finish_reason": event.finish_reason})]

    def end(self, outputs: Sequence[RequestOutput]) -> list[Chunk]:
        return [Chunk({"end": [output.outputs[0].text for output in outputs]})]


def complete(service: Service, incoming: Incoming) -> Call:
    """{"prompts": [...], "stream": bool, ...SamplingParams}"""
    asked = json.loads(incoming.body)
    prompts, stream = asked.pop("prompts"), asked.pop("stream", False)
    params = SamplingParams.from_dict(asked)
    headers = {"x-ignored-fields": "fancy"}
    if stream:
        return Call(prompts, [params] * len(prompts), streamed=PlainFormat(), headers=headers)
    return Call(prompts, [params] * len(prompts), whole=PlainFormat(), headers=headers)


def echo(service: Service, incoming: Incoming) -> Reply:
    fields = {"path": incoming.path, "query": incoming.query, "named": incoming.path_parameters}
    return Reply.of_json(
        fields | {"request_id": incoming.request_id, "n_bytes": len(incoming.body), "client": incoming.client}
    )


def fail(service: Service, incoming: Incoming) -> Reply:
    if incoming.query.get("how") == "bad":
        raise InvalidRequestError("[stop] need texts", param="stop", code="odd")
    if incoming.query.get("how") == "busy":
        raise HttpError(429, "[server] full", retry_after_s=7)
    raise RuntimeError("secret of /home/somebody at 0x7f00")


ENDPOINTS = (
    Endpoint("POST", "/complete", complete, "Completes"),
    Endpoint("POST", "/echo", echo, "Tells what was asked"),
    Endpoint("GET", "/echo/{name}", echo, "Tells what was asked"),
    Endpoint("GET", "/open", echo, "Tells it to everybody", access="open"),
    Endpoint("GET", "/open/{name}/part", echo, "Tells it to everybody", access="open"),
    Endpoint("POST", "/fail", fail, "Fails"),
)


def make_llm(backend: FakeBackend | None = None, **options: Any) -> LLM:
    engine: Engine = make_engine(backend, **options)
    return LLM.over(engine, ByteTokenizer(), "fake")


def make_service(backend: FakeBackend | None = None, **fields: Any) -> Service:
    """A service whose model is there. fields: of ServerSettings."""
    settings = ServerSettings(**fields)
    service = Service(lambda: make_llm(backend, max_requests=settings.max_requests), settings)
    service.start()
    assert service.wait(60)
    return service
