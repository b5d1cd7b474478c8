"""Forms of answers that are nonsense, too large or too many: each is an invalid request, and the next one is served."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import numpy as np
import pytest
from fakes import ByteTokenizer
from two_servers import MESSAGES, Running

from llm_decoder import InvalidRequestError, StructuredOutputs, grammars
from llm_decoder.answers import AnswerParser, ChatStyle
from llm_decoder.grammars import Follower, GrammarCompiler

END = ByteTokenizer.eos_token_id


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(ByteTokenizer(), 300, frozenset({END}))


def allowed(follower: Follower) -> set[int]:
    mask = np.zeros(follower.n_words, np.uint32)
    follower.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def serves_the_next(compiler: GrammarCompiler) -> bool:
    return allowed(compiler.compile(StructuredOutputs(regex="next")).follow()) == {ord("n")}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "*"}, "repetition operator missing"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"json": {"type": "objct"}}, "objct"),
        ({"json": {"not": {"type": "string"}}}, "not"),
        ({"json": {"uniqueItems": True, "type": "array"}}, "uniqueItems"),
        ({"json": {"$ref": "#"}}, "allows no answer"),
        ({"json": {"$ref": "#/$defs/nobody"}}, "structured_outputs"),
        ({"json": {"$ref": "http://example.com/schema"}}, "structured_outputs"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "structured_outputs"),
        ({"json": {"type": "string", "pattern": "("}}, "unclosed group"),
        ({"json": {"type": "string", "pattern": 3}}, "structured_outputs"),
        ({"json": {"properties": []}}, "structured_outputs"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "structured_outputs"),
        ({"json": {"type": "integer", "multipleOf": 982451653}}, "fuel"),
        ({"grammar": 'foo: "a"'}, "no start rule"),
        ({"grammar": 'foo ::= "a"'}, "root"),
        ({"grammar": "root ::= nobody"}, "nobody"),
        ({"grammar": "root ::= ("}, "GBNF"),
        ({"grammar": 'root ::= "a'}, "GBNF"),
        ({"grammar": "root ::= *"}, "GBNF"),
        ({"grammar": "start: nobody"}, "nobody"),
        ({"grammar": "start: *"}, "Expected value"),
        ({"grammar": "start: start"}, "allows no answer"),
        ({"grammar": "start: A\nA: B\nB: A"}, "circular"),
        ({"grammar": "%import ../../etc/passwd\nstart: A"}, "structured_outputs"),
        ({"grammar": 'start: %json {"type": "objct"}'}, "objct"),
        ({"grammar": "\x00"}, "structured_outputs"),
    ],
)
def test_what_makes_no_sense_is_an_invalid_request(
    compiler: GrammarCompiler, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        compiler.compile(StructuredOutputs(**fields))
    assert caught.value.param == "structured_outputs"
    assert len(str(caught.value)) < 600
    for secret in ("/root", "site-packages", ".rs:", "0x"):
        assert secret not in str(caught.value)


def chain(n: int, rule: str, last: str) -> str:
    return "".join(rule.format(i, i + 1) for i in range(n)) + last.format(n)


def references(n: int) -> dict[str, Any]:
    rows: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": rows | {f"a{n}": {"type": "string"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "start: a0\n" + chain(900, "a{0}: a{1}\n", 'a{0}: "x"')},
        {"grammar": "start: A0\n" + chain(900, "A{0}: A{1}\n", 'A{0}: "x"')},
        {"grammar": "root ::= a0\n" + chain(900, "a{0} ::= a{1}\n", 'a{0} ::= "x"')},
        {"json": references(900)},
        {"json": {"enum": [f"value{i}" for i in range(2000)]}},
        {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}},
        {"json": {"type": "string", "minLength": 10**9}},
        {"json": {"type": "array", "maxItems": 10**9, "items": {"type": "array", "minItems": 10**6}}},
        {"grammar": "\n" * 200_000 + 'start: "a"'},
    ],
    ids=range(9),
)
def test_what_is_large_is_compiled_or_refused_and_harms_nobody(
    compiler: GrammarCompiler, fields: dict[str, Any]
) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert allowed(compiler.compile(StructuredOutputs(**fields)).follow())
    assert serves_the_next(compiler)


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "start: a0\n" + chain(20_000, "a{0}: a{1}\n", 'a{0}: "x"')},
        {"json": references(1001)},
        {"regex": "a{4000000000}"},
        {"regex": "((a{1000}){1000}){1000}"},
        {"json": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(12)]}},
    ],
    ids=["rules", "references", "repeats", "repeats of repeats", "product of alternatives"],
)
def test_what_is_too_large_is_refused(compiler: GrammarCompiler, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        compiler.compile(StructuredOutputs(**fields))


def test_unique_forms_do_not_pile_up() -> None:
    compiler = GrammarCompiler(ByteTokenizer(), 258, frozenset({END}))
    first = compiler.compile(StructuredOutputs(regex="0"))
    for i in range(1, grammars.MAX_CACHED + 1):
        compiler.compile(StructuredOutputs(regex=str(i)))
    assert len(compiler._cache) == grammars.MAX_CACHED
    assert compiler.compile(StructuredOutputs(regex="0")) is not first


def test_large_forms_leave_room_for_few_others() -> None:
    compiler = GrammarCompiler(ByteTokenizer(), 258, frozenset({END}))
    for i in range(12):
        compiler.compile(StructuredOutputs(json={"type": "null", "description": f"{i}" + "x" * 200_000}))
    assert sum(n for _, n in compiler._cache.values()) <= grammars.MAX_CACHED_CHARS


def test_who_waits_too_long_for_a_grammar_is_told_and_the_next_one_is_served(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "COMPILE_S", 0.05)
    with compiler._turn, pytest.raises(InvalidRequestError, match="longer"):
        compiler.compile(StructuredOutputs(regex="late"))
    monkeypatch.undo()
    assert serves_the_next(compiler)


# -- by requests


TOOL = {"type": "function", "function": {"name": "f"}}


def tool(parameters: Any, **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, **more}}]}


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "("},
        {"guided_regex": "(?P<a>" * 60},
        {"guided_regex": "(" * 60_000 + "a" + ")" * 60_000},
        {"guided_regex": "[" * 60_000},
        {"guided_regex": "a{4000000000}"},
        {"guided_regex": "((a{1000}){1000}){1000}"},
        {"guided_regex": "(a*)*" * 20_000},
        {"guided_regex": r"\p{Nonsense}"},
        {"guided_regex": "a" * 70_000},
        {"guided_grammar": "root ::= root"},
        {"guided_grammar": 'foo ::= "a"'},
        {"guided_grammar": "root ::= *"},
        {"guided_grammar": "start: start start"},
        {"guided_grammar": "root ::= " + "(" * 60_000},
        {"guided_grammar": "%ignore /.*/\nstart: nobody"},
        {"guided_choice": ["a"] * 5000},
        {"guided_json": {"type": "nonsense"}},
        {"guided_json": {"type": 5}},
        {"guided_json": {"pattern": "(", "type": "string"}},
        {"guided_json": {"pattern": 5, "type": "string"}},
        {"guided_json": {"$ref": "#"}},
        {"guided_json": {"$ref": "http://169.254.169.254/latest"}},
        {"guided_json": {"$ref": "file:///etc/passwd"}},
        {"guided_json": nested(150)},
        {"guided_json": "[" * 100_000},
        {"guided_json": {"minimum": 10**400, "type": "integer"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": nested(150)}}},
        {"structured_outputs": {"structural_tag": {"format": "x"}}},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_a_form_that_makes_no_sense_is_refused_and_the_next_request_is_served(
    server: Running, fields: dict[str, Any]
) -> None:
    answers = [
        server.post(path, prompt | {"max_tokens": 1} | fields)
        for path, prompt in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": MESSAGES}))
    ]
    assert (answers[0].status, answers[0].error["type"]) == (400, "invalid_request_error")
    # A chat's form may hold behind its reasoning only: then the answer ends where the form cannot go on.
    assert answers[1].status in (200, 400)
    for answer in answers:
        assert len(answer.body) < 1500
        for secret in (b"/root", b"site-packages", b".rs:", b"Traceback"):
            assert secret not in answer.body
    assert server.serves_the_next()


@pytest.mark.parametrize(
    "fields",
    [
        tool({"type": 5}),
        tool({"type": "nonsense"}),
        tool({"type": "array"}),
        tool("{"),
        tool({"type": "object", "properties": []}),
        tool({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}),
        tool({"type": "object", "properties": {"a": {"type": "string", "pattern": 3}}}),
        tool({"type": "object", "properties": {"a": nested(150)}}),
        tool({"type": "object", "$ref": "#"}),
        {"tools": [{"type": "function", "function": {"name": "../../etc"}}]},
        {"tools": [{"type": "function", "function": {"name": "a" * 200}}]},
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        {"tools": [{"type": "nonsense", "function": {"name": "f"}}]},
        {"tools": [TOOL, TOOL]},
        {"tools": [TOOL] * 10_000},
        {"tools": [[]]},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
    ],
    ids=lambda fields: str(fields)[:90],
)
def test_tools_that_make_no_sense_are_refused_and_the_next_request_is_served(
    server: Running, fields: dict[str, Any]
) -> None:
    answer = server.post(
        "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "tool_choice": "required"} | fields
    )
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert server.serves_the_next()


# -- what a model writes


STYLES = [
    *(ChatStyle("chatml", ("<think>", "</think>")), ChatStyle("llama3"), ChatStyle("mistral", ("[THINK]", "[/THINK]"))),
    ChatStyle("mistral-args"),
]
CALL = '<tool_call>{"name": "weather", "arguments": '


@pytest.mark.parametrize(
    "text",
    [
        *("<tool_call>" * 2000, "[TOOL_CALLS]" * 2000, "<think>" * 3000, "<" * 20_000, "{" * 20_000, "[" * 20_000),
        *(CALL + "[" * 20_000, CALL + '{"a": ' * 4000, CALL + "1" * 20_000, CALL + '"' + "\\" * 20_000),
        *('<tool_call>{"name": "' + "a" * 20_000, '<tool_call>{"' + "a" * 20_000, "<tool_call>" + " " * 20_000),
        *('<tool_call>{"arguments": {"a": "' + "b" * 20_000, "[TOOL_CALLS]" + "a" * 20_000),
        '[TOOL_CALLS] [{"name": "weather", "arguments": {}}' * 500,
        "<tool_call>__import__('os').system('id')</tool_call>" * 400,
        '<tool_call>{"name": "weather", "arguments": __import__("os").system("id")}</tool_call>' * 300,
    ],
    ids=lambda text: text[:40],
)
def test_hostile_answers_are_read_to_their_end(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tokens of a few characters, without losing count, and without anybody evaluating them."""
    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    for style in STYLES:
        parser = AnswerParser(style, tools=("weather",), max_calls=128)
        parts = [part for i in range(0, len(text), 7) for part in parser.push(text[i : i + 7])] + parser.finish()
        assert sum(len(part.text) for part in parts) <= len(text)
        assert {part.tool_name for part in parts} <= {"", "weather"}
        assert len({part.tool_index for part in parts}) <= 128
    assert ran == []
