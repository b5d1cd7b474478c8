"""The tools of a chat and how they may be called: what a request may say of them, checked once."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from llm_decoder.errors import InvalidRequestError

__all__ = ["MAX_TOOLS", "Tool", "ToolChoice", "ToolUse", "as_tool_use"]

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 1 << 16
MAX_PATTERN_CHARS = 2048
MAX_SCHEMA_DEPTH = 48
MAX_SCHEMA_VALUES = 20_000

ToolChoice: TypeAlias = Literal["none", "auto", "required"]

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
# Keywords of JSON Schema (draft 2020-12) by what stands behind them.
_SCHEMA = frozenset({"not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"})
_SCHEMA_OR_LIST = frozenset({"items"})
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_TEXTS = frozenset({"title", "description", "format", "$ref", "$id", "$schema", "$comment"})


@dataclass(frozen=True, slots=True)
class Tool:
    """parameters: the JSON Schema of its arguments. is_strict: a schema that the model cannot be held to in all is an
    error. definition: all that the request said, for the template."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool
    definition: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """choice: "none" = the answer has no calls, "auto" = it may have, "required" = it has. name: of the one tool
    that is called. parallel: whether there may be more calls than one."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def has_form(self) -> bool:
        """Whether answers are held to a form: they must call, or a tool that they may call is strict."""
        return self.choice == "required" or any(tool.is_strict for tool in self.callable_tools)

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """Those that an answer may call."""
        if self.choice == "none":
            return ()
        return tuple(tool for tool in self.tools if self.name in (None, tool.name))


def as_tool_use(tools: Any, tool_choice: Any = None, parallel_tool_calls: Any = None) -> ToolUse:
    """What a request says of tools, in the form of OpenAI's API: tools [{"type": "function", "function": {"name",
    "description", "parameters"}}, ...], tool_choice "none", "auto", "required" or {"type": "function", "function":
    {"name"}}. None = not said. Raises InvalidRequestError, whose param is the field at fault."""
    checked = _tools(tools)
    choice, name = _choice(tool_choice, checked)
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        raise InvalidRequestError(
            f"[parallel_tool_calls] need true or false, got {parallel_tool_calls!r:.80}", param="parallel_tool_calls"
        )
    return ToolUse(checked, choice, name, parallel_tool_calls is not False)


def _tools(tools: Any) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        _refuse("tools", "a list", tools)
    if len(tools) > MAX_TOOLS:
        _refuse("tools", f"at most {MAX_TOOLS} tools", len(tools))
    budget = [MAX_SCHEMA_VALUES]
    checked = tuple(_tool(f"tools[{index}]", tool, budget) for index, tool in enumerate(tools))
    names = [tool.name for tool in checked]
    for index, name in enumerate(names):
        if name in names[:index]:
            _refuse(f"tools[{index}].function.name", "a name that no other tool has", name)
    return checked


def _tool(place: str, tool: Any, budget: list[int]) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        _refuse(place, 'an object with type "function" and function', tool)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        _refuse(f"{place}.function", "an object with name, description and parameters", function)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _refuse(f"{place}.function.name", "1 to 128 letters, digits and any of _ . : -", name)
    description = function.get("description")
    if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARS):
        _refuse(f"{place}.function.description", f"a text of at most {MAX_DESCRIPTION_CHARS} characters", description)
    if not isinstance(function.get("strict"), bool | None):
        _refuse(f"{place}.function.strict", "true or false", function["strict"])
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        _refuse(f"{place}.function.parameters", 'a JSON Schema of type "object"', parameters)
    _check_schema(f"{place}.function.parameters", parameters, budget, 0)
    return Tool(name, parameters, bool(function.get("strict")), tool)


def _check_schema(place: str, schema: Any, budget: list[int], depth: int) -> None:
    """Refuses what no reader of JSON Schema could make sense of. What a reader does not know is data."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        _refuse(place, "a JSON Schema", schema)
    for key, value in schema.items():
        below = f"{place}.{key!s:.60}"
        if key in _SCHEMA or (key in _SCHEMA_OR_LIST and not isinstance(value, list | tuple)):
            _pay(below, budget, depth)
            _check_schema(below, value, budget, depth + 1)
        elif key in _SCHEMA_LISTS or key in _SCHEMA_OR_LIST:
            _check_list(below, value)
            for index, item in enumerate(value):
                _pay(below, budget, depth)
                _check_schema(f"{below}[{index}]", item, budget, depth + 1)
        elif key in _SCHEMA_MAPS:
            if not isinstance(value, Mapping):
                _refuse(below, "an object of JSON Schemas", value)
            for name, item in value.items():
                if key == "patternProperties":
                    _check_pattern(below, name)
                _pay(below, budget, depth)
                _check_schema(f"{below}.{name!s:.60}", item, budget, depth + 1)
        else:
            _check_keyword(below, key, value)
            _check_data(below, value, budget, depth)


def _check_keyword(place: str, key: Any, value: Any) -> None:
    if key == "type":
        types = value if isinstance(value, list | tuple) and value else [value]
        if not all(isinstance(item, str) and item in _TYPES for item in types):
            _refuse(place, f"one of {', '.join(sorted(_TYPES))}, or a list of them", value)
    elif key == "pattern":
        _check_pattern(place, value)
    elif key == "enum":
        _check_list(place, value)
    elif key == "required":
        _check_list(place, value)
        if not all(isinstance(item, str) for item in value):
            _refuse(place, "a list of names", value)
    elif key in _COUNTS and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        _refuse(place, "an integer from 0", value)
    elif key in _NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool)):
        _refuse(place, "a number", value)
    elif key in _TEXTS and not isinstance(value, str):
        _refuse(place, "a text", value)


def _check_pattern(place: str, pattern: Any) -> None:
    """Patterns are ECMA's, which Python's compiler does not know all of: it has a say on what both have."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
        _refuse(place, f"a regular expression of at most {MAX_PATTERN_CHARS} characters", pattern)
    if re.search(r"\\[pPcuk]|\(\?<", pattern):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        _refuse(place, f"a regular expression ({error!s:.100})", pattern)


def _check_list(place: str, value: Any) -> None:
    if not isinstance(value, list | tuple):
        _refuse(place, "a list", value)


def _check_data(place: str, value: Any, budget: list[int], depth: int) -> None:
    if isinstance(value, Mapping):
        values = list(value.values())
    elif isinstance(value, list | tuple):
        values = list(value)
    else:
        return
    for item in values:
        _pay(place, budget, depth)
        _check_data(place, item, budget, depth + 1)


def _pay(place: str, budget: list[int], depth: int) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        _refuse(place, f"at most {MAX_SCHEMA_VALUES} values in all tools", "more")
    if depth >= MAX_SCHEMA_DEPTH:
        _refuse(place, f"at most {MAX_SCHEMA_DEPTH} levels", "more")


def _choice(choice: Any, tools: tuple[Tool, ...]) -> tuple[ToolChoice, str | None]:
    if choice is None:
        return "auto", None
    if choice == "none" or choice == "auto":
        return choice, None
    form = 'none, auto, required or {"type": "function", "function": {"name": ...}}'
    name: str | None = None
    if choice != "required":
        function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            _refuse("tool_choice", form, choice)
        if name not in [tool.name for tool in tools]:
            _refuse("tool_choice", "the name of one of the tools", name)
    elif not tools:
        _refuse("tool_choice", "tools beside it", "none")
    return "required", name


def _refuse(place: str, need: str, got: object) -> NoReturn:
    shown = got if isinstance(got, str) else reprlib.repr(got)  # which does not follow what is nested deeply
    param = place.partition("[")[0].partition(".")[0]
    raise InvalidRequestError(f"[{place}] need {need}, got {shown[:100]}", param=param)
