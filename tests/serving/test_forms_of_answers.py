"""Every name by which a client may say what an answer must look like."""

import json
import re

import jsonschema
import pytest

PROMPT = "Once upon a time"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tim", "Lily"]}, "age": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def as_json(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


FORMS = [
    ({"structured_outputs": {"json": SCHEMA}}, as_json),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, as_json),
    ({"guided_json": SCHEMA}, as_json),
    ({"json_schema": SCHEMA}, as_json),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}, as_json),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, as_json),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, as_json),
    ({"structured_outputs": {"regex": "[a-c]{3}"}}, re.compile("[a-c]{3}").fullmatch),
    ({"guided_regex": "[a-c]{3}"}, re.compile("[a-c]{3}").fullmatch),
    ({"structured_outputs": {"choice": ["red", "blue"]}}, re.compile("red|blue").fullmatch),
    ({"guided_choice": ["red", "blue"]}, re.compile("red|blue").fullmatch),
    ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z")'}}, re.compile("x[yz]").fullmatch),
    ({"guided_grammar": 'start: "x" "y"'}, re.compile("xy").fullmatch),
    ({"grammar": 'root ::= "x" ("y" | "z")'}, re.compile("x[yz]").fullmatch),
]


@pytest.mark.parametrize(("form", "is_good"), [pytest.param(*pair, id=str(pair[0])[:60]) for pair in FORMS])
def test_every_name_of_a_form_is_honoured(server, form, is_good):
    body = {"prompt": PROMPT, "max_tokens": 200, "seed": 7, "temperature": 1.5}
    status, answer, headers = server.post("/v1/completions", body | form)
    assert status == 200, answer
    assert "x-ignored-fields" not in headers
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert is_good(answer["choices"][0]["text"])
    own = server.post("/generate", body | form)[1]
    assert own["text"] == answer["choices"][0]["text"]


def test_a_json_object_is_one(server):
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_object"},
        "max_tokens": 60,
    }
    for seed in range(4):
        _, answer, _ = server.post("/v1/chat/completions", body | {"seed": seed})
        (choice,) = answer["choices"]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
        else:
            assert choice["message"]["content"].lstrip().startswith("{")


def test_the_official_client_parses_into_a_class(client):
    pydantic = pytest.importorskip("pydantic")

    class Child(pydantic.BaseModel):
        name: str = pydantic.Field(pattern="^(Tim|Lily)$")
        age: int = pydantic.Field(ge=1, le=9)

    answer = client.chat.completions.parse(
        model="storyteller", messages=[{"role": "user", "content": "Who?"}], response_format=Child, seed=3
    )
    assert answer.choices[0].message.parsed.name in ("Tim", "Lily")
    assert 1 <= answer.choices[0].message.parsed.age <= 9


@pytest.mark.parametrize(
    "form",
    [
        {"guided_regex": "("},
        {"guided_grammar": "nonsense"},
        {"guided_json": {"type": "nonsense"}},
        {"structured_outputs": {"choice": [""]}},
        {"structured_outputs": {"regex": "(" * 60_000 + ")" * 60_000}},
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_form_that_makes_no_sense_is_a_400(server, form):
    status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT} | form)
    assert (status, answer["error"]["param"].split(".")[0]) == (400, "structured_outputs")
