"""A chat model's answer as a message of OpenAI's API: content, reasoning_content, tool_calls; whole, and in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_decoder.answers import AnswerParser, Part
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.outputs import FinishReason

if TYPE_CHECKING:
    from llm_decoder.llm import LLM

__all__ = ["MessageReader"]


class MessageReader:
    """One answer. Deltas are those of a stream's chunks. keeps_reasoning: whether it is told."""

    def __init__(self, parser: AnswerParser, keeps_reasoning: bool = True) -> None:
        self._parser = parser
        self._keeps_reasoning = keeps_reasoning
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[dict[str, Any]] = []

    def push(self, text: str) -> list[dict[str, Any]]:
        return self._deltas(self._parser.push(text))

    def finish(self) -> list[dict[str, Any]]:
        return self._deltas(self._parser.finish())

    def _deltas(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if part.kind == "tool_call":
                deltas.append({"tool_calls": [self._call_delta(part)]})
                continue
            self._texts[part.kind].append(part.text)
            if part.kind == "content":
                deltas.append({"content": part.text})
            elif self._keeps_reasoning:
                deltas.append({"reasoning_content": part.text})
        return deltas

    def _call_delta(self, part: Part) -> dict[str, Any]:
        if not part.tool_id:
            self._calls[part.tool_index]["function"]["arguments"] += part.text
            return {"index": part.tool_index, "function": {"arguments": part.text}}
        function = {"name": part.tool_name, "arguments": part.text}
        self._calls.append({"id": part.tool_id, "type": "function", "function": function})
        return {"index": part.tool_index, "id": part.tool_id, "type": "function", "function": dict(function)}

    def message(self) -> dict[str, Any]:
        """All that has come, after `finish`. An answer of calls alone has no content."""
        content = "".join(self._texts["content"])
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else ""),
                                   "refusal": None}  # fmt: skip
        if self._texts["reasoning"] and self._keeps_reasoning:
            message["reasoning_content"] = "".join(self._texts["reasoning"])
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def finish_reason(self, reason: FinishReason | None) -> str | None:
        return "tool_calls" if reason == "stop" and self._calls else reason

    def n_reasoning_tokens(self, llm: LLM) -> int:
        text = "".join(self._texts["reasoning"])
        if not text:
            return 0
        try:
            return len(llm.tokenizer.encode(text, add_special_tokens=False))
        except ModelNotFoundError:
            return 0
