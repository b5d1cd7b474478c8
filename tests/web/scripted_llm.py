"""An LLM that says what a test tells it to, when it tells it to; and streams of the page as a browser reads them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from llm_decoder.answers import AnswerParser, find_style
from llm_decoder.chat_answers import ChatAnswers
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.errors import InvalidRequestError
from llm_decoder.outputs import Completion, RequestMetrics, RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings


class ScriptedRequest:
    """A request under way: the test speaks for the model."""

    def __init__(self, messages: Any, params: SamplingParams, options: dict[str, Any], sink: Callable[[Any], None]):
        self.messages = messages
        self.params = params
        self.options = options
        self.is_cancelled = threading.Event()
        self._sink = sink
        self._texts: list[str] = []
        self.over = threading.Event()
        self._lock = threading.Lock()

    def say(self, *texts: str) -> None:
        for text in texts:
            self._texts.append(text)
            self._sink(StreamEvent(0, text, [1]))

    def end(self, finish_reason: Any = "stop") -> None:
        with self._lock:
            if self.over.is_set():
                return
            self.over.set()
        n_tokens = len(self._texts)
        completion = Completion(0, "".join(self._texts), [1] * n_tokens, 0.0, finish_reason=finish_reason)
        metrics = RequestMetrics(7, 3, n_tokens, tokens_per_s=12.5, time_to_first_token_s=0.25)
        output = RequestOutput(None, [1] * 7, [completion], metrics)
        self._sink(StreamEvent(0, "", [], finish_reason, output=output))

    def fail(self, error: Exception) -> None:
        self.over.set()
        self._sink(error)

    def cancel(self) -> None:
        self.is_cancelled.set()
        self.end("abort")


class ScriptedTokenizer:
    """A template whose source is all that is looked at."""

    def __init__(self, source: str) -> None:
        self.chat_template = ChatTemplate(source)


class ScriptedLLM:
    """The parts of LLM that the page needs. script: what every request says at once, None = the test speaks."""

    name = "scripted"
    max_model_len = 100
    is_closed = False
    has_reranker = False

    def __init__(self, script: Iterable[str] | None = None, template: str = "") -> None:
        self.sampling_defaults = {"temperature": 0.7}
        self.tokenizer = ScriptedTokenizer(template)
        self.requests: list[ScriptedRequest] = []
        self._script = None if script is None else list(script)
        self.closing = threading.Event()
        self._came = threading.Semaphore(0)

    def submit(
        self, prompt: Any, params: SamplingParams, *, stream: bool, sink: Any, **options: Any
    ) -> ScriptedRequest:
        if not isinstance(prompt, list) or not prompt:
            raise InvalidRequestError("[messages] need a list", param="messages")
        request = ScriptedRequest(prompt, params, options, sink)
        self.requests.append(request)
        self._came.release()
        if self._script is not None:
            request.say(*self._script)
            request.end()
        return request

    def answer_parser(self, messages: Any = (), **options: Any) -> AnswerParser:
        return self.chat_answers(messages, **options).parser()

    def chat_answers(self, messages: Any = (), **options: Any) -> ChatAnswers:
        style = find_style(self.tokenizer.chat_template)
        return ChatAnswers(self.tokenizer, style, messages, options)  # type: ignore[arg-type]

    def next_request(self) -> ScriptedRequest:
        assert self._came.acquire(timeout=10)
        return self.requests[-1]

    def close(self, drain_s: float = 0.0) -> None:
        """Waits until nothing runs, as the engine does."""
        self.is_closed = True
        self.closing.set()
        for request in self.requests:
            request.over.wait(drain_s)
            request.cancel()


def service_of(llm: ScriptedLLM, **settings: Any) -> Service:
    service = Service(lambda: llm, ServerSettings(**settings))  # type: ignore[arg-type,return-value]
    service.start()
    assert service.wait(10)
    return service


@dataclass(frozen=True)
class Event:
    name: str
    id: int
    data: Any


def events_of(raw: bytes) -> list[Event]:
    """The whole events in what came; [DONE] has the data "[DONE]". Comments are left out."""
    events = []
    for block in raw.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            data = fields["data"]
            value = data if data == "[DONE]" else json.loads(data)
            events.append(Event(fields.get("event", "message"), int(fields["id"]), value))
    return events


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "message" and event.data != "[DONE]")
