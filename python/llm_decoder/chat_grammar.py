"""The form of an answer in a chat as one grammar, in llguidance's Lark: reasoning, then calls of tools in the spelling
that the model's own template teaches it, or the form that the request asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from llm_decoder.answers import CallForm, ChatStyle
from llm_decoder.errors import InvalidRequestError
from llm_decoder.structured import StructuredOutputs
from llm_decoder.tools import Tool, ToolUse

__all__ = ["chat_grammar"]

# How templates write JSON. A model that may choose white space may write it for ever.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_DATA = frozenset({"const", "enum", "default", "examples"})  # what stands behind these in a schema is none

Spell: TypeAlias = Callable[[str], str]  # a mark -> what stands for it in the grammar


def chat_grammar(
    style: ChatStyle,
    use: ToolUse,
    answer: StructuredOutputs | None = None,
    added_token_id: Callable[[str], int | None] = lambda text: None,
    begins_in_reasoning: bool = False,
) -> StructuredOutputs | None:
    """The form of answers that call tools as `use` wants it, and are of the form `answer` where they call none; None
    where the model is free. Reasoning may come first. added_token_id: of the token that a mark is; a mark
    that is none is text like any other.

    Raises InvalidRequestError where the forms cannot be had together.
    """
    must_call = use.choice == "required"
    may_call = style.calls is not None and bool(use.callable_tools)
    if not must_call and (answer is None or (style.reasoning is None and not may_call)):
        return answer
    if must_call and answer is not None:
        raise InvalidRequestError(
            "[tool_choice] an answer that must call a tool has the form of a call, got structured_outputs beside it; "
            "leave one of them out",
            param="tool_choice",
        )
    if answer is not None and answer.grammar is not None:
        if not may_call and not begins_in_reasoning:
            return answer
        raise InvalidRequestError(
            "[structured_outputs] a grammar cannot be had together with tools or reasoning; give json, regex or choice "
            "instead, or leave tools out and turn reasoning off",
            param="structured_outputs",
        )

    def spell(mark: str) -> str:
        id_ = added_token_id(mark)
        return _quoted(mark) if id_ is None else f"<[{id_}]>"

    ways: list[str] = []
    reasoning, rules = _reasoning(style.reasoning, spell, begins_in_reasoning)
    if may_call and style.calls is not None:
        calls, call = _calls(style.calls, use.parallel and use.name is None, spell)
        ways.append(calls)
        rules += [f"call: {call}", _either("object", len(use.callable_tools))]
        for index, tool in enumerate(use.callable_tools):
            rules += _object(style.calls, index, tool, spell)
    if answer is not None:
        ways.append("answer")
        rules.append(_answer(answer))
    start = " | ".join(f"{reasoning} {way}".strip() for way in ways)
    return StructuredOutputs(grammar="\n".join([f"start: {start}", *rules]) + "\n")


def _either(name: str, count: int) -> str:
    return f"{name}: {' | '.join(f'{name}_{index}' for index in range(count))}"


def _answer(answer: StructuredOutputs) -> str:
    if answer.schema is not None:
        schema = json.loads(answer.schema)
        if isinstance(schema, dict):
            schema.setdefault("x-guidance", _SPELLING)
        return f"answer: %json {_json(schema)}"
    if answer.choice is not None:
        return f"answer: ANSWER\nANSWER: {' | '.join(map(_quoted, answer.choice))}"
    from llguidance import LLMatcher

    assert answer.regex is not None
    lark = json.loads(LLMatcher.grammar_from_regex(answer.regex))["grammars"][0]["lark_grammar"]
    return f"answer: ANSWER\nANSWER: {str(lark).removeprefix('start: ')}"


def _calls(form: CallForm, has_more: bool, spell: Spell) -> tuple[str, str]:
    """(all calls, one call)"""
    if form == "chatml":
        one = f'{spell("<tool_call>")} "\\n" object "\\n" {spell("</tool_call>")}'
        return 'call ("\\n" call)*' if has_more else "call", one
    if form == "llama3":
        return "call", "object"  # its templates take back one call in a message, and no more
    if form == "mistral":
        calls = 'call (", " call)*' if has_more else "call"
        return f'{spell("[TOOL_CALLS]")} " "? "[" {calls} "]"', "object"
    return "call+" if has_more else "call", f"{spell('[TOOL_CALLS]')} object"


def _object(form: CallForm, index: int, tool: Tool, spell: Spell) -> Sequence[str]:
    """The rules of a call's name and arguments."""
    # Of a tool that is not strict, what the grammar cannot hold the model to is left to it.
    guidance = {"x-guidance": {**_SPELLING, "lenient": not tool.is_strict}}
    parameters = {**tool.parameters, "type": "object"}
    if form == "llama3":
        # Such a call may be the beginning of other JSON, which a text before the arguments could not.
        schema = _object_of({"name": {"const": tool.name}, "parameters": _moved(parameters, "#/properties/parameters")})
        return [f"object_{index}: %json {_json(schema | guidance)}"]
    arguments = f"arguments_{index}: %json {_json(parameters | guidance)}"
    if form == "mistral-args":
        return [f"object_{index}: {_quoted(tool.name)} {spell('[ARGS]')} arguments_{index}", arguments]
    head = f'{{"name": {_json(tool.name)}, "arguments": '
    return [f'object_{index}: {_quoted(head)} arguments_{index} "}}"', arguments]


def _object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own parts hold when it stands at `place` in another one."""
    if isinstance(schema, list | tuple):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: value if key in _DATA else _moved(value, place) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference.removeprefix("#")
    return moved


def _reasoning(marks: tuple[str, str] | None, spell: Spell, has_begun: bool) -> tuple[str, list[str]]:
    """(what stands before the calls, its rules)"""
    if marks is None:
        return "", []
    begin, end = map(spell, marks)
    gap = r"GAP: /[ \n]{0,3}/"
    # A special token ends a text by itself; a mark that is text is the first that comes.
    is_text = end == _quoted(marks[1])
    text = f"thought[suffix={end}]: /(.|\\n)*/" if is_text else f"thought: TEXT {end}\nTEXT: /(.|\\n)*/"
    if has_begun:
        return "thought GAP", [text, gap]
    return "reasoning?", [f"reasoning: {begin} thought GAP", text, gap]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    """A text in Lark."""
    return _json(text)
