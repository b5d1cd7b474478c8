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
    form = style.calls if use.callable_tools else None
    must_call = use.choice == "required"
    is_held = any(tool.is_strict for tool in use.callable_tools)
    if answer is None and not (must_call or is_held):
        return None
    if form is None and style.reasoning is None:
        return answer
    if must_call and answer is not None:
        raise InvalidRequestError(
            "[tool_choice] an answer that must call a tool has the form of a call, got structured_outputs beside it; "
            "leave one of them out",
            param="tool_choice",
        )
    if answer is not None and answer.grammar is not None:
        if form is None and not begins_in_reasoning:
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
    if form is not None:
        is_free = not must_call and answer is None
        has_more = use.parallel and use.name is None
        calls, more = (_calls_or_text if is_free else _calls)(form, has_more, spell)
        ways.append(calls)
        rules += [*more, _either("object", len(use.callable_tools))]
        for index, tool in enumerate(use.callable_tools):
            rules += _object(form, index, tool, tool.is_strict or not is_free, spell)
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


def _call(form: CallForm, has_more: bool, spell: Spell) -> tuple[str, str]:
    """(the mark before a call, what comes behind it)"""
    if form == "chatml":
        return "<tool_call>", f'"\\n" object "\\n" {spell("</tool_call>")}'
    if form == "mistral":
        objects = 'object (", " object)*' if has_more else "object"
        return "[TOOL_CALLS]", f'" "? "[" {objects} "]"'
    return ("" if form == "llama3" else "[TOOL_CALLS]"), "object"


def _calls(form: CallForm, has_more: bool, spell: Spell) -> tuple[str, list[str]]:
    """(what an answer of calls is, its rules). Llama's templates take back one call in a message, and no more."""
    mark, rest = _call(form, has_more, spell)
    more = {"chatml": '("\\n" call)*', "mistral-args": "call*"}.get(form, "") if has_more else ""
    return f"call {more}", [f"call: {spell(mark) if mark else ''} {rest}"]


def _calls_or_text(form: CallForm, has_more: bool, spell: Spell) -> tuple[str, list[str]]:
    """(what an answer is whose calls alone have a form, its rules)"""
    mark, rest = _call(form, has_more, spell)
    if form == "llama3":
        # What begins like JSON is a call.
        tag = spell("<|python_tag|>")
        tag = "" if _is_text(tag) else f"{tag}?"
        return "(TEXT | call)?", [r"TEXT: /[^{\s;,](.|\n)*/", f"call: {tag} {rest}"]
    begin = spell(mark)
    # A token ends the text before it. A mark that is text is the first that comes.
    lead = rf"lead[suffix={begin}]: /(.|\n)*/" if _is_text(begin) else f"lead: TEXT? {begin}"
    return f"(lead call){'*' if has_more else '?'} TEXT?", [r"TEXT: /(.|\n)+/", lead, f"call: {rest}"]


def _object(form: CallForm, index: int, tool: Tool, is_held: bool, spell: Spell) -> Sequence[str]:
    """The rules of a call's name and arguments. is_held: to the schema."""
    # Of a tool that is not strict, what the grammar cannot hold the model to is left to it.
    guidance = {"x-guidance": {**_SPELLING, "lenient": not tool.is_strict}}
    parameters = {**(tool.parameters if is_held else {}), "type": "object"}
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
    rules = [rf"thought[suffix={end}]: /(.|\n)*/" if _is_text(end) else f"thought: THOUGHT {end}\nTHOUGHT: /(.|\\n)*/"]
    rules.append(r"GAP: /[ \n]{0,3}/")
    if has_begun:
        return "thought GAP", rules
    return "reasoning?", [f"reasoning: {begin} thought GAP", *rules]


def _is_text(spelled: str) -> bool:
    return spelled.startswith('"')


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    """A text in Lark."""
    return _json(text)
