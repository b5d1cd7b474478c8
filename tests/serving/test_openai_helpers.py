"""What the openai package has beside `create`: events of a stream, classes, raw and streamed responses, its retries."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest
from direct import DirectServer, http_library, transport
from pydantic import BaseModel, Field

from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings

CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]
ASKED = dict(model="storyteller", messages=CHAT, temperature=0, max_tokens=12)


class Child(BaseModel):
    name: str = Field(pattern="^(Tim|Lily)$")
    age: int = Field(ge=1, le=9)


@pytest.fixture
def text(client):
    return client.chat.completions.create(**ASKED).choices[0].message.content


def test_a_stream_is_told_in_events(client, text):
    with client.chat.completions.stream(**ASKED | {"logprobs": True}) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "content.delta"]
    assert "".join(event.delta for event in deltas) == text
    assert deltas[-1].snapshot == text
    (done,) = [event for event in events if event.type == "content.done"]
    assert done.content == text
    (logprobs,) = [event for event in events if event.type == "logprobs.content.done"]
    assert "".join(entry.token for entry in logprobs.content) == text
    assert {event.type for event in events} >= {"chunk", "content.delta", "logprobs.content.delta"}


def test_a_class_is_parsed_while_it_is_streamed(client, async_client):
    asked = dict(model="storyteller", messages=CHAT, response_format=Child, seed=3)
    with client.chat.completions.stream(**asked) as stream:
        parsed = stream.get_final_completion().choices[0].message.parsed

    async def ask():
        async with async_client as client:
            whole = await client.chat.completions.parse(**asked)
            async with client.chat.completions.stream(**asked) as stream:
                parsed = [event.parsed async for event in stream if event.type == "content.done"]
        return whole.choices[0].message.parsed, parsed

    assert isinstance(parsed, Child)
    assert asyncio.run(ask()) == (parsed, [parsed])


def test_an_answer_can_be_had_with_its_headers(client, text):
    raw = client.chat.completions.with_raw_response.create(**ASKED, extra_body={"fancy": 1})
    assert (raw.status_code, raw.headers["x-ignored-fields"]) == (200, "fancy")
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == text
    raw = client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == text


def test_an_answer_can_be_read_as_it_comes(client, async_client, text):
    with client.chat.completions.with_streaming_response.create(**ASKED) as response:
        assert response.parse().choices[0].message.content == text
    with client.completions.with_streaming_response.create(model="storyteller", prompt="One", stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-1])

    async def ask():
        async with async_client as client, client.chat.completions.with_streaming_response.create(**ASKED) as response:
            return await response.parse()

    assert asyncio.run(ask()).choices[0].message.content == text


def test_vectors_come_to_asyncio_clients_too(client, async_client):
    async def ask():
        async with async_client as client:
            both = [client.embeddings.create(model="storyteller", input=["a", "b"], encoding_format=encoding)
                    for encoding in ("base64", "float")]  # fmt: skip
            return await asyncio.gather(*both)

    in_base64, as_floats = asyncio.run(ask())
    assert as_floats.data == client.embeddings.create(model="storyteller", input=["a", "b"]).data
    assert isinstance(in_base64.data[0].embedding, str)  # who asks for base64 gets the text


def test_models_are_listed_page_by_page(client):
    (model,) = client.models.list()
    assert client.models.retrieve(model.id).id == model.id == "storyteller"


def test_while_the_model_loads_a_client_waits_as_long_as_it_is_told_and_is_served(storyteller, monkeypatch):
    service = Service(lambda: storyteller, ServerSettings())
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        service.start()
        assert service.wait(60)

    httpx = http_library()
    http = httpx.Client(transport=transport(DirectServer(service), httpx))
    with openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http) as client:
        monkeypatch.setattr(time, "sleep", wait)
        answer = client.completions.create(model="storyteller", prompt="One day", max_tokens=2)
    assert waits == [2]  # Retry-After, and not the client's own first half second
    assert answer.usage.completion_tokens == 2


def test_a_client_that_may_not_try_again_is_told_so(storyteller):
    httpx = http_library()
    http = httpx.Client(transport=transport(DirectServer(Service(lambda: storyteller)), httpx))
    asked = openai.OpenAI(base_url="http://server/v1", api_key="none", http_client=http, max_retries=0)
    with asked as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="storyteller", prompt="One day")
    assert (caught.value.status_code, caught.value.code) == (503, "loading")
    assert caught.value.response.headers["retry-after"] == "2"
