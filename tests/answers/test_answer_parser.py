"""The text of an answer becomes content, reasoning and calls, whatever pieces it comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import CHATML, LLAMA3, MISTRAL, STYLES, TOOLS, call, content, pieces_of, read, reasoning

from llm_decoder.answers import PLAIN, AnswerParser, ChatStyle, Part

ARGUMENTS = '{"city": "Paris", "days": [1, -2.5e+3, true, null, {"a": []}]}'
WEATHER = f'{{"name": "weather", "arguments": {ARGUMENTS}}}'
CLOCK = '{"name": "clock", "arguments": {}}'
LLAMA_WEATHER = WEATHER.replace("arguments", "parameters")

ANSWERS = [
    (CHATML, "Hello.  ", [content("Hello.  ")]),
    (CHATML, "", []),
    (CHATML, "<think>\nHm <b>\n</think>\n\nYes. ", [reasoning("Hm <b>"), content("Yes. ")]),
    (CHATML, "<think>\n\n</think>\n\nYes", [content("Yes")]),
    (CHATML, "<think>no end", [reasoning("no end")]),
    (CHATML, "The tag <think> is text here.", [content("The tag <think> is text here.")]),
    (CHATML, f"<tool_call>\n{WEATHER}\n</tool_call>", [call(0, "weather", ARGUMENTS)]),
    (
        CHATML,
        f"Look:\n<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{CLOCK}\n</tool_call>\n bye",
        [content("Look:"), call(0, "weather", ARGUMENTS), call(1, "clock", "{}"), content("bye")],
    ),
    (
        CHATML,
        f"<think>x</think>\n<tool_call>{WEATHER}{CLOCK}</tool_call>",
        [reasoning("x"), call(0, "weather", ARGUMENTS), call(1, "clock", "{}")],
    ),
    (CHATML, f"<tool_call>{WEATHER}}}\n</tool_call>", [call(0, "weather", ARGUMENTS)]),
    (CHATML, f"<tool_call>{WEATHER} and so on", [call(0, "weather", ARGUMENTS), content("and so on")]),
    (CHATML, '<tool_call>{"name": "clock"}</tool_call>', [call(0, "clock", "{}")]),
    (CHATML, '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [call(0, "f", '{"a": 1}')]),
    (CHATML, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [call(0, "f", '{"a": 1}')]),
    (CHATML, '<tool_call>{"id": [1], "name": "f", "arguments": null}</tool_call>', [call(0, "f", "{}")]),
    (LLAMA3, LLAMA_WEATHER, [call(0, "weather", ARGUMENTS)]),
    (LLAMA3, f"<|python_tag|>{LLAMA_WEATHER}", [call(0, "weather", ARGUMENTS)]),
    (LLAMA3, f' {{"type": "function", {LLAMA_WEATHER[1:]}', [call(0, "weather", ARGUMENTS)]),
    (LLAMA3, f"{LLAMA_WEATHER}; {CLOCK}", [call(0, "weather", ARGUMENTS), call(1, "clock", "{}")]),
    (LLAMA3, f"I look.<|python_tag|>{LLAMA_WEATHER}", [content("I look."), call(0, "weather", ARGUMENTS)]),
    (LLAMA3, f"{LLAMA_WEATHER}\nDone.", [call(0, "weather", ARGUMENTS), content("Done.")]),
    (MISTRAL, f"[TOOL_CALLS] [{WEATHER}]", [call(0, "weather", ARGUMENTS)]),
    (MISTRAL, f"[TOOL_CALLS][{WEATHER}, {CLOCK}]", [call(0, "weather", ARGUMENTS), call(1, "clock", "{}")]),
    (MISTRAL, f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}", [call(0, "weather", ARGUMENTS)]),
    (
        MISTRAL,
        f"[THINK]x[/THINK]Well [TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{ARGUMENTS}[TOOL_CALLS]clock{{}}",
        [reasoning("x"), content("Well"), call(0, "weather", ARGUMENTS), call(1, "clock", "{}")],
    ),
]
# What looks like a call and is none comes out as it was written.
NO_CALLS = [
    *((CHATML, text) for text in ("<tool_call>", "<tool_call>nothing</tool_call> else", "a <tool_cal")),
    *((CHATML, f"<tool_call>{head}") for head in ("{", "{}", '{"name"', '{"name": 1}', '{"name": ""}', "[1]")),
    (CHATML, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (CHATML, '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>'),
    (CHATML, '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    (CHATML, '<tool_call>{"name": "f", "arguments": "{} and more"}</tool_call>'),
    (CHATML, '<tool_call>{"name": "a\\u0000b", "arguments": {}}</tool_call>'),
    (CHATML, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (LLAMA3, '{"name": "Bob", "parameters": {"age": 3}}'),
    (LLAMA3, '{"name": "weather"}'),
    (LLAMA3, '{"answer": 1, "name": "weather", "parameters": {}}'),
    (LLAMA3, '{"answer": {"name": "weather"}} is JSON that was asked for'),
    (LLAMA3, 'As JSON: {"name": "weather", "parameters": {}}'),
    (LLAMA3, "<|python_tag|>print(1)"),
    (MISTRAL, "[TOOL_CALLS]"),
    (MISTRAL, "[TOOL_CALLS] [1, 2]"),
    (MISTRAL, "[TOOL_CALLS]weather and sun"),
    (MISTRAL, "[TOOL_CALLS][THINK]"),
]


@pytest.mark.parametrize(("style", "text", "parts"), ANSWERS)
def test_an_answer_is_taken_apart(style: ChatStyle, text: str, parts: list[Part]) -> None:
    assert read(style, text) == parts


@pytest.mark.parametrize(("style", "text"), [*((style, text) for style, text, _ in ANSWERS), *NO_CALLS])
def test_every_cut_of_the_text_in_two_and_into_characters_gives_the_same_parts(style: ChatStyle, text: str) -> None:
    whole = read(style, text)
    assert read(style, list(text)) == whole
    for cut in range(len(text)):
        assert read(style, pieces_of(text, [cut])) == whole


@pytest.mark.parametrize(("style", "text"), NO_CALLS)
def test_text_that_only_looks_like_a_call_comes_out_as_content(style: ChatStyle, text: str) -> None:
    assert read(style, text) == [content(text)]


@pytest.mark.parametrize("style", STYLES)
def test_without_tools_calls_are_content(style: ChatStyle) -> None:
    for _, text, _ in ANSWERS:
        if text and not any(text.startswith(marks[0]) for marks in [style.reasoning] if marks):
            assert read(style, text, tools=()) == [content(text)]


def test_an_answer_without_style_passes_piece_by_piece() -> None:
    parser = AnswerParser(PLAIN, tools=TOOLS)
    pieces = ["a ", "<think>", " \n", "[TOOL_CALLS]", '{"name"']
    assert [parser.push(piece) for piece in pieces] == [[content(piece)] for piece in pieces]
    assert parser.finish() == []


def test_arguments_leave_as_they_come() -> None:
    parser = AnswerParser(CHATML, tools=TOOLS, new_id=lambda: "id")
    assert parser.push('<tool_call>{"name": "weather", ') == []
    assert parser.push('"arguments": {"city') == [
        Part("tool_call", "", 0, "id", "weather"),
        Part("tool_call", '{"city'),
    ]
    assert parser.push('": "P') == [Part("tool_call", '": "P')]
    assert parser.push('aris"}}</tool') == [Part("tool_call", 'aris"}')]
    assert parser.push("_call>") == parser.finish() == []


def test_reasoning_and_content_leave_as_they_come_but_for_what_may_be_a_mark() -> None:
    parser = AnswerParser(CHATML, tools=TOOLS)
    assert parser.push("<think>One ") == [reasoning("One")]
    assert parser.push("two </thi") == [reasoning(" two")]
    assert parser.push("s") == [reasoning(" </this")]
    assert parser.push("</think>Yes <") == [content("Yes")]
    assert parser.push("b") == [content(" <b")]


def test_white_space_behind_reasoning_is_no_content_without_tools_either() -> None:
    assert read(CHATML, list("<think>Hm.</think>\n\nYes. "), tools=()) == [reasoning("Hm."), content("Yes. ")]


@pytest.mark.parametrize("text", ["Hm.</think>Yes", "\n<think>\nHm.\n</think>\n\nYes"])
def test_reasoning_that_the_prompt_begins_needs_no_mark(text: str) -> None:
    assert read(CHATML, list(text), begins_in_reasoning=True) == [reasoning("Hm."), content("Yes")]


def test_arguments_that_are_no_json_stay_what_the_model_wrote() -> None:
    text = '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call> bye'
    assert read(CHATML, list(text)) == [call(0, "f", "{'a': 1}}"), content("bye")]


def test_a_call_behind_one_that_is_broken_is_a_call() -> None:
    broken = '{"name": "weather", "arguments": {oops'
    texts = {
        CHATML: f"<tool_call>{broken}</tool_call><tool_call>{CLOCK}</tool_call>",
        LLAMA3: f"{broken}<|python_tag|>{CLOCK}",
        MISTRAL: f"[TOOL_CALLS][{broken}[TOOL_CALLS][{CLOCK}]",
    }
    for style, text in texts.items():
        assert read(style, list(text)) == [call(0, "weather", "{oops"), call(1, "clock", "{}")]


def test_an_answer_cut_off_in_its_arguments_gives_those_that_are_there() -> None:
    assert read(CHATML, '<tool_call>{"name": "f", "arguments": {"a": "b') == [call(0, "f", '{"a": "b')]


def test_line_breaks_inside_of_strings_leave_escaped() -> None:
    (part,) = read(CHATML, '<tool_call>{"name": "f", "arguments": {"a": "b\n\tc"}}</tool_call>')
    assert json.loads(part.text) == {"a": "b\n\tc"}


def test_calls_past_the_limit_are_left_out() -> None:
    text = f"<tool_call>{WEATHER}</tool_call><tool_call>{CLOCK}</tool_call>bye"
    assert read(CHATML, text, max_calls=1) == [call(0, "weather", ARGUMENTS), content("bye")]


HOSTILE = [
    *(
        (CHATML, bit)
        for bit in ("<tool_call>", '<tool_call>{"a":"', '<tool_call>{"name":"f","arguments":[', "</think", " ")
    ),
    *((LLAMA3, bit) for bit in ('<|python_tag|>{"name":"weather",', "{", '{"name":', ";,")),
    *((MISTRAL, bit) for bit in ("[TOOL_CALLS]", "[TOOL_CALLS][{", '[TOOL_CALLS][{"name":"f","arguments":{"a":')),
]


@pytest.mark.parametrize(("style", "bit"), HOSTILE)
def test_a_long_text_made_to_be_looked_at_again_is_read_once(style: ChatStyle, bit: str) -> None:
    text = bit * (60_000 // len(bit))
    assert read(style, [text[i : i + 5] for i in range(0, len(text), 5)]) == read(style, text) != []


def test_a_value_nested_too_deeply_is_no_value() -> None:
    deep = '{"a": ' + "[" * 200 + "]" * 200 + "}"
    text = f'<tool_call>{{"name": "f", "arguments": {deep}}}</tool_call>'
    assert read(CHATML, text) == [call(0, "f", deep + "}")]


def test_a_value_nested_without_end_is_no_value() -> None:
    deep = '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 100_000
    assert read(CHATML, deep) == [call(0, "f", '{"a":' * 100_000)]


def test_a_fresh_parser_reads_another_answer_in_the_same_way() -> None:
    parser = AnswerParser(CHATML, tools=TOOLS, begins_in_reasoning=True)
    parser.push("some ")
    assert parser.fresh().push("Hm.</think>Yes") == [reasoning("Hm."), content("Yes")]


def test_ids_are_of_the_form_that_templates_take_back() -> None:
    for style, text, length in ((MISTRAL, f"[TOOL_CALLS][{CLOCK}]", 9), (CHATML, f"<tool_call>{CLOCK}", 29)):
        first, second = (AnswerParser(style, tools=TOOLS).push(text)[0].tool_id for _ in range(2))
        assert len(first) == length
        assert first != second
        assert first.removeprefix("call_").isalnum()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.text(), VALUES, max_size=4), data=st.data(), ascii_only=st.booleans())
def test_any_arguments_come_out_as_they_went_in(
    arguments: dict[str, Any], data: st.DataObject, ascii_only: bool
) -> None:
    text = json.dumps({"name": "weather", "parameters": arguments}, ensure_ascii=ascii_only)
    style, whole = data.draw(
        st.sampled_from(
            [(CHATML, f"<tool_call>{text}</tool_call>"), (LLAMA3, text), (MISTRAL, f"[TOOL_CALLS] [{text}]")]
        )
    )
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=5))
    (part,) = read(style, pieces_of(whole, cuts))
    assert part.tool_name == "weather"
    assert json.loads(part.text) == arguments


MARKS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "[THINK]"]
BITS = [
    *MARKS,
    '{"name": "weather", "arguments": {',
    '"a": 1',
    "}",
    "}}",
    "]",
    "[",
    ",",
    '"',
    "\\",
    " ",
    "\n",
    "x",
    "{",
]


@settings(max_examples=100, deadline=None)
@given(
    bits=st.lists(st.sampled_from(BITS), max_size=14),
    style=st.sampled_from(STYLES),
    begins_in_reasoning=st.booleans(),
    data=st.data(),
)
def test_any_text_gives_the_same_parts_in_any_pieces(
    bits: list[str], style: ChatStyle, begins_in_reasoning: bool, data: st.DataObject
) -> None:
    text = "".join(bits)
    whole = read(style, text, begins_in_reasoning=begins_in_reasoning)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert read(style, pieces_of(text, cuts), begins_in_reasoning=begins_in_reasoning) == whole
    assert read(style, list(text), begins_in_reasoning=begins_in_reasoning) == whole
