"""What came back, as one can compare it: a whole answer, a streamed one, and what was read of one that was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_decoder.cli._sse_reader import DONE, EventReader

# Of the moment, not of the question. Ids of calls are drawn; usage counts what happened to be cached.
_PASSING = frozenset({"id", "created", "usage", "timings"})


@dataclass
class Said:
    """One answer of a request."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name, arguments
    finish_reason: str | None = None

    def begins(self, other: Said) -> bool:
        """Whether it may be what was read of the other before the connection broke."""
        calls = [call for call, _ in zip(other.calls, self.calls, strict=False)]
        return (
            other.text.startswith(self.text)
            and other.reasoning.startswith(self.reasoning)
            and len(self.calls) <= len(other.calls)
            and all(a[0] == b[0] and b[1].startswith(a[1]) for a, b in zip(self.calls, calls, strict=True))
            and self.finish_reason in (None, other.finish_reason)
        )


Answers = dict[int, Said]


def lasting(value: Any) -> Any:
    """A body without what is of the moment."""
    if isinstance(value, Mapping):
        return {name: lasting(each) for name, each in value.items() if name not in _PASSING}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def whole_answers(body: Mapping[str, Any]) -> Answers:
    """Of an answer in one piece; none where it is no text."""
    if "choices" in body:
        return {choice["index"]: _of_choice(choice, choice.get("message", {})) for choice in body["choices"]}
    if "text" in body:
        outputs = body.get("outputs", [{"index": 0, **body}])
        return {each["index"]: Said(each["text"], finish_reason=each["finish_reason"]) for each in outputs}
    return {}


def _of_choice(choice: Mapping[str, Any], message: Mapping[str, Any]) -> Said:
    calls = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls") or ()]
    text = choice.get("text") or message.get("content") or ""
    return Said(text, message.get("reasoning_content") or "", calls, choice["finish_reason"])


def streamed_answers(raw: bytes) -> tuple[Answers, bool]:
    """What the whole events in `raw` say; whether the last one, [DONE], is among them. Raises ValueError for an error
    told in the stream."""
    answers: Answers = {}
    events = EventReader().push(raw)
    for data in events:
        if data != DONE:
            _take(answers, json.loads(data))
    return answers, DONE in events


def _take(answers: Answers, event: Mapping[str, Any]) -> None:
    if "error" in event:
        raise ValueError(f"an error in the stream: {event['error']}")
    if "choices" in event:
        for choice in event["choices"]:
            _gain(answers.setdefault(choice["index"], Said()), choice, choice.get("delta", {}))
    elif "text" in event or "finish_reason" in event:
        said = answers.setdefault(event.get("index", 0), Said())
        said.text += event.get("text", "")
        said.finish_reason = event.get("finish_reason") or said.finish_reason


def _gain(said: Said, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
    said.text += choice.get("text") or delta.get("content") or ""
    said.reasoning += delta.get("reasoning_content") or ""
    said.finish_reason = choice.get("finish_reason") or said.finish_reason
    for call in delta.get("tool_calls") or ():
        if call["index"] == len(said.calls):
            said.calls.append(["", ""])
        function = call.get("function", {})
        said.calls[call["index"]][0] += function.get("name") or ""
        said.calls[call["index"]][1] += function.get("arguments") or ""


def difference(got: Iterable[tuple[str, Any, Any]]) -> str:
    """What differs, in a line: (what, is, should be)."""
    return "; ".join(f"{what} is {is_!r:.300}, alone {should!r:.300}" for what, is_, should in got if is_ != should)
