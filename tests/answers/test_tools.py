"""What a request may say of tools."""

from __future__ import annotations

from typing import Any

import pytest

from llm_decoder.errors import InvalidRequestError
from llm_decoder.tools import MAX_TOOLS, ToolUse, as_tool_use


def tool(name: Any = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def with_schema(schema: Any) -> list[dict[str, Any]]:
    return [tool(parameters=schema)]


def of(**properties: Any) -> list[dict[str, Any]]:
    return with_schema({"type": "object", "properties": properties})


def nested(depth: int, key: str = "items") -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {key: schema}
    return {"type": "object", "properties": {"a": schema}}


def refused(tools: Any, choice: Any = None, parallel: Any = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        as_tool_use(tools, choice, parallel)
    return caught.value


def test_what_is_not_said_leaves_the_model_free() -> None:
    assert as_tool_use(None) == as_tool_use([], "auto") == ToolUse(())
    use = as_tool_use([tool("a"), tool("b")])
    assert (use.choice, use.parallel, [t.name for t in use.callable_tools]) == ("auto", True, ["a", "b"])


def test_a_choice_says_what_may_be_called() -> None:
    tools = [tool("a"), tool("b")]
    assert as_tool_use(tools, "none").callable_tools == ()
    assert len(as_tool_use(tools, "required", False).callable_tools) == 2
    named = as_tool_use(tools, {"type": "function", "function": {"name": "b"}})
    assert (named.choice, [t.name for t in named.callable_tools]) == ("required", ["b"])


def test_a_tool_keeps_all_that_was_said_of_it_and_has_a_schema_in_any_case() -> None:
    given = tool("a", description="d", strict=True, unknown=[1])
    (checked,) = as_tool_use([given]).tools
    assert checked.definition is given
    assert checked.is_strict
    assert checked.parameters == {"type": "object", "properties": {}}


SCHEMAS = [
    {"a": {"type": ["string", "null"], "pattern": "^[a-z]+$", "maxLength": 3, "format": "date"}},
    {"a": {"pattern": r"\p{L}+(?<year>\d)\cA"}},  # of ECMA's regular expressions, not of Python's
    {"a": {"anyOf": [{"$ref": "#/$defs/b"}, True]}, "b": {"items": [{"type": "null"}, False]}},
    {"a": {"enum": [None, {"type": 3}], "const": {"type": "nonsense"}, "default": [[]], "x-of-somebody": {"a": 1}}},
    {"type": {"type": "string"}, "pattern": {"type": "integer"}},  # names of properties, not keywords
]


@pytest.mark.parametrize("properties", SCHEMAS)
def test_schemas_that_make_sense_are_taken(properties: dict[str, Any]) -> None:
    assert as_tool_use(of(**properties)).tools


NO_TOOLS = [
    *("weather", {"type": "function"}, 3, [3], ["weather"], [None]),
    [{"type": "retrieval", "function": {"name": "a"}}],
    [{"type": "function", "function": "a"}],
    *([tool(name)] for name in (None, 3, "", "two words", "a\n", "x" * 129, "naïve", "<tool_call>")),
    [tool(description=3)],
    [tool(description="x" * 70_000)],
    [tool(strict="yes")],
    [tool("a"), tool("a")],
    [tool(f"t{i}") for i in range(MAX_TOOLS + 1)],
    *(with_schema(schema) for schema in ([], "object", 3, True, {"type": "array"}, {"type": ["object"]})),
    *(of(a=schema) for schema in (3, "string", None, [], {"type": "strin"}, {"type": 3}, {"type": []}, {"type": [3]})),
    *(of(a={"pattern": pattern}) for pattern in (3, "(", "*", "a{99999999999999}", "(" * 60_000, "[", "x" * 4096)),
    *(of(a={"patternProperties": {"(": {}}}) for _ in range(1)),
    *(of(a={key: "3"}) for key in ("minLength", "maximum", "enum", "required", "anyOf", "properties", "multipleOf")),
    *(of(a={key: -1}) for key in ("minItems", "title", "not", "items", "$ref", "$defs")),
    of(a={"required": [3]}),
    of(a={"anyOf": [3]}),
    *(with_schema(nested(depth, key)) for depth in (60, 100_000) for key in ("items", "x", "not")),
    [tool(f"t{i}", parameters={"type": "object", "enum": list(range(400))}) for i in range(60)],
]


@pytest.mark.parametrize("tools", NO_TOOLS, ids=range(len(NO_TOOLS)))
def test_what_is_no_tool_is_refused_by_the_name_of_the_field(tools: Any) -> None:
    error = refused(tools)
    assert error.param == "tools"
    assert str(error).startswith("[tools")
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "choice",
    [
        "any",
        3,
        [],
        {},
        {"type": "function"},
        {"type": "function", "function": {"name": "no such"}},
        {"name": "weather"},
    ],
)
def test_what_is_no_choice_is_refused(choice: Any) -> None:
    assert refused([tool()], choice).param == "tool_choice"


def test_a_choice_needs_tools() -> None:
    assert refused([], "required").param == "tool_choice"
    assert refused([tool()], None, "yes").param == "parallel_tool_calls"
