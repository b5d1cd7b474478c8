"""JSON followed character by character is JSON as Python's own reader has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_decoder.answers.json_text import whole_value

VALUES = ["0", "-0", "-1.5e+10", "1E9", "12", "0.25e-3", "true", "false", "null", '""', '"\\u00e9\\n"', "[]", "{}",
          '[1, [2], {"a": [3]}]', '{"a": 1, "b" : {"c":[ ]} , "d":null}', "[\n]", '{"a":"\\ud800"}']  # fmt: skip
NO_VALUES = ["", " ", "01", "-", "1.", ".5", "1e", "1e+", "1.e5", "+1", "--1", "1+2", "0x1", "NaN", "Infinity", "tru",
             "nul", "True", "'a'", '"', '"a', '"\\x"', '"\\u12g4"', '"\\u12', "[", "]", "[1", "[1 2]", "[1,]", "[,1]",
             "[1,,2]", "{", "}", '{"a"}', '{"a" 1}', '{"a":}', '{"a":1,}', '{,"a":1}', '{"a":1 "b":2}', "{1:2}",
             '{"a":1]', "[1}", "1 2", "{} {}", "[]]"]  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_what_is_json_is_passed_on_as_it_is(text: str) -> None:
    json.loads(text)
    assert whole_value(text) == text


@pytest.mark.parametrize("text", NO_VALUES)
def test_what_is_none_is_noticed(text: str) -> None:
    assert whole_value(text) is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='{}[]",:\\/ \n0123.-+eEtrufalsn', max_size=14))
def test_any_text_is_json_here_as_it_is_for_python(text: str) -> None:
    value: Any
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        value = None
    passed = whole_value(text.strip(" \n"))
    assert (passed is None) == (value is None and text.strip() != "null")
    if passed is not None:
        assert json.loads(passed) == value
