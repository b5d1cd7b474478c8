"""The document that tells of every route."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from llm_decoder.serving.exchange import Endpoint, Incoming, Reply
from llm_decoder.serving.openapi import document, endpoints_of
from llm_decoder.serving.service import Service


class Asked(BaseModel):
    prompt: str = Field(max_length=5)
    stream: bool = False


class Answered(BaseModel):
    text: str


def nothing(service: Service, incoming: Incoming) -> Reply:
    return Reply(b"")


TABLE = (
    Endpoint("POST", "/ask", nothing, "Asks", request=Asked, response=Answered),
    Endpoint("GET", "/models/{model}", nothing, "Shows <one>", response=Answered),
    Endpoint("GET", "/free", nothing, "Is open", access="open"),
)


def test_a_route_is_told_with_its_schemas_its_stream_and_its_key() -> None:
    told = document(TABLE)
    asking = told["paths"]["/ask"]["post"]
    schema = asking["requestBody"]["content"]["application/json"]["schema"]
    assert resolve(told, schema)["properties"]["prompt"]["maxLength"] == 5
    answers = asking["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "text/event-stream"}
    assert resolve(told, answers["application/json"]["schema"])["required"] == ["text"]
    assert asking["security"] == [{"key": []}]
    assert told["paths"]["/free"]["get"]["security"] == []
    assert told["paths"]["/models/{model}"]["get"]["parameters"][0]["name"] == "model"


def resolve(told: dict[str, Any], schema: dict[str, Any]) -> Any:
    found: Any = told
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def test_every_reference_of_the_real_document_leads_somewhere() -> None:
    from llm_decoder.serving.routes import all_endpoints

    told = document(all_endpoints())
    references: list[dict[str, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            references.extend([value] if isinstance(value.get("$ref"), str) else [])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(told)
    assert len(references) > 20
    for reference in references:
        assert resolve(told, reference)
    names = [operation["operationId"] for path in told["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_programs_and_people_can_ask_for_it(path: str) -> None:
    endpoint = next(endpoint for endpoint in endpoints_of(TABLE) if endpoint.path == path)
    assert endpoint.access == "key"
    reply = endpoint.handle(None, Incoming("GET", path, "r"))  # type: ignore[arg-type]
    assert isinstance(reply, Reply)
    text = reply.body.decode()
    assert "/models/{model}" in text
    if path == "/docs":
        assert "<one>" not in text
        assert "<script" not in text
        assert "default-src 'none'" in reply.headers["content-security-policy"]
