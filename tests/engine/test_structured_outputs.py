"""What form may be asked for: StructuredOutputs, and what is refused before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_decoder import InvalidRequestError, SamplingParams, StructuredOutputs
from llm_decoder.structured import MAX_CHARS, MAX_CHOICES, MAX_DEPTH


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {"items": schema}
    return schema


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one .* none"),
    ({"json_object": False}, "exactly one .* none"),
    ({"json": {}, "regex": "a"}, "exactly one .* json, regex"),
    ({"json_object": 1}, "json_object"),
    ({"json": False}, "JSON Schema"),
    ({"json": 3}, "JSON Schema"),
    ({"json": []}, "JSON Schema"),
    ({"json": "{"}, "no JSON"),
    ({"json": "nothing"}, "no JSON"),
    ({"json": "[1]"}, "JSON Schema"),
    ({"json": {"minimum": float("nan")}}, "no JSON"),
    ({"json": {"minimum": 10**5000}}, "no JSON"),
    ({"json": {"title": "\ud800"}}, "surrogate"),
    ({"json": {"type": {1, 2}}}, "JSON values"),
    ({"json": {1: "a"}}, "keys"),
    ({"json": nested(MAX_DEPTH)}, "deep"),
    ({"json": '{"items":' * 20_000 + "{}" + "}" * 20_000}, "deep"),
    ({"json": '{"items":' * 60_000 + "{}" + "}" * 60_000}, "characters"),
    ({"json": {"enum": ["x" * 1000] * 300}}, "characters"),
    ({"regex": ""}, "something"),
    ({"regex": 3}, "text"),
    ({"regex": "\udfff"}, "surrogate"),
    ({"regex": "a" * (MAX_CHARS + 1)}, "characters"),
    ({"regex": "(" * 60_000 + "a" + ")" * 60_000}, "deep"),
    ({"grammar": "  \n"}, "something"),
    ({"grammar": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000}, "deep"),
    ({"choice": []}, "1 to"),
    ({"choice": "yes"}, "list"),
    ({"choice": ["a", ""]}, "not empty"),
    ({"choice": ["a", 3]}, "list of texts"),
    ({"choice": ["a"] * (MAX_CHOICES + 1)}, "1 to"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_is_no_form_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        StructuredOutputs(**fields)
    assert caught.value.param == "structured_outputs"
    assert len(str(caught.value)) < 600


def test_brackets_in_quotes_or_escaped_are_not_depth() -> None:
    StructuredOutputs(grammar="start: " + ' "(" ' * (MAX_DEPTH + 1))
    StructuredOutputs(regex=r"\(" * (MAX_DEPTH + 1))
    StructuredOutputs(json={"const": "[" * (MAX_DEPTH + 1)})
    StructuredOutputs(json=json.dumps({"const": "[" * (MAX_DEPTH + 1)}))


def test_equal_forms_are_equal_however_they_are_written() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    assert StructuredOutputs(json=schema) == StructuredOutputs(json=json.dumps(schema, indent=2))
    assert hash(StructuredOutputs(json=schema)) == hash(StructuredOutputs(json=dict(schema)))
    assert StructuredOutputs(choice=["a", "b", "a"]) == StructuredOutputs(choice=("a", "b"))


def test_properties_keep_their_order() -> None:
    schema = {"properties": {"b": {}, "a": {}}}
    assert StructuredOutputs(json=schema).schema == '{"properties":{"b":{},"a":{}}}'
    assert StructuredOutputs(json=True).schema == "{}"
    assert StructuredOutputs(json_object=True).schema == '{"type":"object"}'
    assert StructuredOutputs(regex="a").schema is None


def test_sampling_params_take_a_mapping_of_its_fields() -> None:
    params = SamplingParams(structured_outputs={"regex": "[0-9]+"})
    assert params.structured_outputs == StructuredOutputs(regex="[0-9]+")
    assert SamplingParams.from_dict({"structured_outputs": {"choice": ["a"]}}).structured_outputs is not None


@pytest.mark.parametrize("value", ["[0-9]+", 3, ["a"], {"pattern": "a"}, {"regex": "a", "backend": "x"}, {}])
def test_sampling_params_refuse_what_is_no_form(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(structured_outputs=value)
    assert caught.value.param == "structured_outputs"
