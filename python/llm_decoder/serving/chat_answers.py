"""A chat model's text as a message of OpenAI's API: content, reasoning_content, tool_calls; whole, and in pieces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llm_decoder.answers import PLAIN, AnswerParser, ChatStyle, Part, find_style
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.outputs import FinishReason

if TYPE_CHECKING:
    from llm_decoder.llm import LLM
    from llm_decoder.tokenizer import Tokenizer

__all__ = ["AnswerReader", "ChatReading"]

_N_LAST_TOKENS = 16  # of a prompt: where a template opens the model's reasoning


@dataclass(frozen=True)
class ChatReading:
    """How the answers to one request are read. tools: the names that may be called."""

    style: ChatStyle
    tokenizer: Tokenizer | None
    tools: Collection[str] = ()
    max_calls: int | None = None

    @classmethod
    def of(cls, llm: LLM, tools: Collection[str] = (), max_calls: int | None = None) -> Self:
        try:
            tokenizer = llm.tokenizer
        except ModelNotFoundError:
            return cls(PLAIN, None)  # the chat will be refused
        return cls(find_style(getattr(tokenizer, "chat_template", None)), tokenizer, tools, max_calls)

    @property
    def marks_are_special(self) -> bool:
        """Whether a text without special tokens would lack the marks that it is read by."""
        if self.tokenizer is None:
            return False
        ids = [self.tokenizer.token_id(mark) for mark in self.style.mark_tokens(bool(self.tools))]
        return any(id_ is not None and not self.tokenizer.decode([id_]) for id_ in ids)

    def reader(self, prompt_token_ids: Sequence[int], keeps_reasoning: bool = True) -> AnswerReader:
        parser = AnswerParser(
            self.style,
            tools=self.tools,
            begins_in_reasoning=self._begins_in_reasoning(prompt_token_ids),
            max_calls=self.max_calls,
        )
        return AnswerReader(parser, self.tokenizer, keeps_reasoning)

    def _begins_in_reasoning(self, prompt_token_ids: Sequence[int]) -> bool:
        if self.style.reasoning is None or self.tokenizer is None:
            return False
        end = self.tokenizer.decode(prompt_token_ids[-_N_LAST_TOKENS:], skip_special_tokens=False)
        return end.rstrip().endswith(self.style.reasoning[0])


class AnswerReader:
    """One answer. Deltas are those of a stream's chunks."""

    def __init__(self, parser: AnswerParser, tokenizer: Tokenizer | None, keeps_reasoning: bool) -> None:
        self._parser = parser
        self._tokenizer = tokenizer
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

    def n_reasoning_tokens(self) -> int:
        text = "".join(self._texts["reasoning"])
        return len(self._tokenizer.encode(text, add_special_tokens=False)) if text and self._tokenizer else 0
