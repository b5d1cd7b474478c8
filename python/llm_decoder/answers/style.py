"""How a model's answers are written, read off its chat template: the marks of its reasoning, the form of its calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from llm_decoder.chat_template import ChatTemplate

__all__ = ["PLAIN", "CallForm", "ChatStyle", "find_style"]

# chatml: <tool_call>{"name", "arguments"}</tool_call> (Hermes, Qwen). llama3: {"name", "parameters"} as the answer
# itself, or behind <|python_tag|>. mistral: [TOOL_CALLS] [{"name", "arguments"}]; mistral-args, since 2025:
# [TOOL_CALLS]name[ARGS]{...}.
CallForm: TypeAlias = Literal["chatml", "llama3", "mistral", "mistral-args"]

_REASONING_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_MISTRAL_TOKENS = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
_CALL_TOKENS: dict[CallForm, tuple[str, ...]] = {
    "chatml": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": _MISTRAL_TOKENS,
    "mistral-args": _MISTRAL_TOKENS,
}


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """calls: the form of a model's calls of tools, None = it makes none that can be read. reasoning: the marks before
    and after its reasoning, None = it shows none."""

    calls: CallForm | None = None
    reasoning: tuple[str, str] | None = None

    def mark_tokens(self, with_tools: bool) -> tuple[str, ...]:
        """Texts of the tokens that must stay in an answer's text for it to be taken apart, special or not."""
        calls = _CALL_TOKENS[self.calls] if self.calls and with_tools else ()
        return (*(self.reasoning or ()), *calls)


PLAIN = ChatStyle()


def find_style(template: ChatTemplate | None) -> ChatStyle:
    """The style of a model with this template; PLAIN for one without."""
    if template is None:
        return PLAIN
    sources = (template.source, *template.named.values())
    calls = next((form for form in map(_call_form, sources) if form), None)
    reasoning = next((marks for marks in _REASONING_MARKS if _has(sources, marks[1])), None)
    return ChatStyle(calls, reasoning)


def _has(sources: Iterable[str], mark: str) -> bool:
    return any(mark in source for source in sources)


def _call_form(source: str) -> CallForm | None:
    if "[TOOL_CALLS]" in source:
        return "mistral-args" if "[ARGS]" in source else "mistral"
    # Qwen3-Coder and GLM put tags of their own between these marks in place of JSON.
    if "<tool_call>" in source and "<function=" not in source and "<arg_key>" not in source:
        return "chatml"
    if "<|python_tag|>" in source or ("<|start_header_id|>" in source and '"parameters": ' in source):
        return "llama3"
    return None
