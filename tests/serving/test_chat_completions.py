import asyncio

import openai
import pytest

from llm_decoder.sampling import SamplingParams

CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]


def test_a_chat_is_answered_as_llm_chat_answers_it(client, storyteller):
    answer = client.chat.completions.create(model="storyteller", messages=CHAT, temperature=0)
    expected = storyteller.chat(CHAT, SamplingParams(max_tokens=None, temperature=0))
    (choice,) = answer.choices
    assert choice.message.content == expected.outputs[0].text
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_a_stream_joined_is_the_message_that_is_not_streamed(client):
    asked = dict(model="storyteller", messages=CHAT, n=3, seed=3, temperature=1, max_completion_tokens=40)
    whole = client.chat.completions.create(**asked)
    texts, reasons, roles = {}, {}, {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            roles.setdefault(choice.index, choice.delta.role)
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert roles == {0: "assistant", 1: "assistant", 2: "assistant"}


def test_the_clients_own_helper_gathers_a_stream(client):
    asked = dict(model="storyteller", messages=CHAT, temperature=0, stop=".")
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        gathered = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)
    assert gathered.choices[0].message.content == whole.choices[0].message.content
    assert gathered.choices[0].finish_reason == "stop"
    assert gathered.usage == whole.usage.model_copy(
        update={"prompt_tokens_details": gathered.usage.prompt_tokens_details}
    )


def test_asyncio_clients_are_answered_too(async_client):
    async def ask():
        async with async_client as client:
            asked = dict(model="storyteller", messages=CHAT, temperature=0, max_tokens=20)
            whole = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            return whole.choices[0].message.content, [chunk.choices[0].delta.content async for chunk in stream]

    whole, streamed = asyncio.run(ask())
    assert whole == "".join(text or "" for text in streamed) != ""


def test_logprobs_are_of_every_token_streamed_or_not(client):
    asked = dict(model="storyteller", messages=CHAT, temperature=0, max_tokens=10, logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**asked).choices[0]
    assert len(whole.logprobs.content) == 10
    for entry in whole.logprobs.content:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == entry.top_logprobs[0].logprob
    assert "".join(entry.token for entry in whole.logprobs.content) == whole.message.content
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert streamed == whole.logprobs.content


def test_a_message_can_be_continued(client):
    begun = [*CHAT, {"role": "assistant", "content": "Once upon a time, a dog"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(
        model="storyteller", messages=begun, temperature=0, max_tokens=8, extra_body=body
    )
    assert not answer.choices[0].message.content.startswith("Once upon a time, a dog")
    with pytest.raises(openai.BadRequestError, match="continue_final_message"):
        client.chat.completions.create(
            model="storyteller", messages=begun, extra_body=body | {"add_generation_prompt": True}
        )


def test_a_chat_longer_than_the_context_is_refused_and_not_cut(client):
    turns = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "yes"}] * 4
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="storyteller", messages=turns + CHAT, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert caught.value.param == "messages"
        assert "n_ctx = 1024" in str(caught.value)


def test_content_may_come_in_parts_of_text_and_in_no_others(client):
    parts = [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a dog."}]
    asked = dict(model="storyteller", temperature=0, max_tokens=6)
    answer = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)
    assert answer.choices[0].message == client.chat.completions.create(messages=CHAT, **asked).choices[0].message
    image = [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]
    with pytest.raises(openai.BadRequestError, match="text parts only"):
        client.chat.completions.create(messages=[{"role": "user", "content": image}], **asked)


def test_an_answer_that_a_client_sends_back_is_taken_as_it_is(client):
    asked = dict(model="storyteller", temperature=0, max_tokens=6)
    message = client.chat.completions.create(messages=CHAT, **asked).choices[0].message
    answer = client.chat.completions.with_raw_response.create(
        messages=[*CHAT, message.model_dump(), {"role": "user", "content": "More!"}], **asked
    )
    assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}, 0]}]}, "messages.0.content.1"),
        ({"messages": CHAT, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": CHAT, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"messages": CHAT, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": CHAT, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": CHAT, "functions": []}, "functions"),
        ({"messages": CHAT, "modalities": ["text", "audio"]}, "modalities"),
        ({"messages": CHAT, "max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"messages": CHAT, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(server, body, param):
    status, answer, _ = server.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"], answer["error"]["type"]) == (400, param, "invalid_request_error")


def test_bytes_of_tokens_called_by_their_ids_are_those_of_their_text(server):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0, "logprobs": True}
    named, by_id = (
        server.post("/v1/chat/completions", body | {"return_tokens_as_token_ids": as_ids})[1]["choices"][0]
        for as_ids in (False, True)
    )
    tokens = by_id["logprobs"]["content"]
    assert all(token["token"].startswith("token_id:") for token in tokens)
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == named["message"]["content"]


def test_a_part_of_another_kind_is_named_without_its_content(server):
    parts = [{"type": "image_url", "image_url": {"url": "http://secret"}}]
    status, answer, _ = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    assert status == 400
    assert answer["error"]["message"].endswith("text parts only, got a part of type 'image_url'")
