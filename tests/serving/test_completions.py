import asyncio

import openai
import pytest
from direct import DirectServer, ready_service

from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.settings import ServerSettings

PROMPT = "Once upon a time"


def test_a_completion_is_what_generate_gives(client, storyteller):
    answer = client.completions.create(model="storyteller", prompt=PROMPT, temperature=0, max_tokens=20)
    (expected,) = storyteller.generate(PROMPT, SamplingParams(temperature=0, max_tokens=20))
    assert answer.choices[0].text == expected.outputs[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert answer.model == "storyteller"
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == len(expected.prompt_token_ids) + 20


def test_max_tokens_is_16_when_nobody_says(client):
    answer = client.completions.create(model="storyteller", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_a_stream_ends_with_usage_when_asked_and_has_none_otherwise(client):
    asked = dict(model="storyteller", prompt=PROMPT, max_tokens=5, stream=True)
    chunks = list(client.completions.create(**asked, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None and chunk.choices for chunk in client.completions.create(**asked))


def test_usage_is_null_until_the_end_of_a_stream(server):
    body = {"prompt": PROMPT, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    for path, more in (
        ("/v1/completions", {}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        events = server.post(path, body | more)[1]
        assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)


def test_usage_comes_with_every_chunk_when_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(model="storyteller", prompt=PROMPT, max_tokens=6, stream=True, stream_options=options)
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert counts[-1] == 6
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}


def test_asyncio_clients_are_answered_too(async_client):
    async def ask():
        async with async_client as client:
            whole = await client.completions.create(model="storyteller", prompt=PROMPT, temperature=0)
            stream = await client.completions.create(model="storyteller", prompt=PROMPT, temperature=0, stream=True)
            return whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


@pytest.mark.parametrize("stream", [False, True])
def test_echo_gives_the_prompt_back_before_the_answer(client, stream):
    asked = dict(model="storyteller", prompt=[PROMPT, "The dog"], temperature=0, max_tokens=8, n=2)
    plain = {choice.index: choice.text for choice in client.completions.create(**asked).choices}
    answer = client.completions.create(**asked, echo=True, stream=stream)
    texts = {}
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {i: (PROMPT, "The dog")[i // 2] + text for i, text in plain.items()}


def test_echo_with_logprobs_scores_the_prompt_as_evaluation_harnesses_need_it(client, storyteller):
    ids = storyteller.tokenizer.encode("Once upon a time there was a dog.")
    answer = client.completions.create(
        model="storyteller", prompt=[ids], temperature=0, max_tokens=1, logprobs=1, echo=True, seed=1234
    )
    columns = answer.choices[0].logprobs
    expected = storyteller.score(ids)
    assert columns.token_logprobs[0] is None
    assert columns.top_logprobs[0] is None
    assert columns.token_logprobs[1:-1] == pytest.approx(expected.tolist())
    assert len(columns.tokens) == len(columns.text_offset) == len(ids) + 1
    # How the harness sees whether greedy decoding would have said the same.
    for logprob, top in zip(columns.token_logprobs[1:], columns.top_logprobs[1:], strict=True):
        assert logprob <= max(top.values())
    assert columns.token_logprobs[-1] == max(columns.top_logprobs[-1].values())


def test_offsets_point_at_the_tokens_in_the_text(client):
    text = "Once upon a time, a café — naïve 😀"
    choice = client.completions.create(
        model="storyteller", prompt=text, temperature=0, max_tokens=8, logprobs=0, echo=True
    ).choices[0]
    columns = choice.logprobs
    assert columns.tokens[0] == "<|begin_of_text|>"
    assert columns.text_offset[:2] == [0, 0]
    for token, offset in zip(columns.tokens[1:], columns.text_offset[1:], strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token


def test_logprobs_of_a_stream_are_those_of_the_whole(client):
    asked = dict(model="storyteller", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=3)
    whole = client.completions.create(**asked).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts for item in getattr(part, name)] == getattr(whole, name)
    assert all(len(top) == 3 for top in whole.top_logprobs)


def test_a_stop_string_ends_the_answer_and_is_told(client):
    answer = client.completions.create(model="storyteller", prompt=PROMPT, temperature=0, max_tokens=60, stop=["."])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == "."
    assert "." not in answer.choices[0].text


def test_logit_bias_and_token_ids_are_honoured(server):
    body = {"prompt": PROMPT, "logit_bias": {"300": 100}, "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    status, answer, _ = server.post("/v1/completions", body)
    assert status == 200
    assert answer["choices"][0]["token_ids"] == [300, 300, 300]
    assert answer["choices"][0]["prompt_token_ids"] == server.service.llm.tokenizer.encode(PROMPT)


def test_cached_tokens_are_told_and_a_salt_keeps_tenants_apart(server):
    body = {"prompt": "A long beginning. " * 20, "max_tokens": 1, "cache_salt": "tenant"}
    cached = []
    for more in ({}, {}, {"cache_salt": "another"}, {"cache_prompt": False}):
        _, answer, _ = server.post("/v1/completions", body | more)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == cached[2] == cached[3] == 0
    assert cached[1] > 0


def test_a_prompt_without_begin_token_when_asked(server):
    body = {"prompt": PROMPT, "max_tokens": 1, "add_special_tokens": False, "return_token_ids": True}
    _, answer, _ = server.post("/v1/completions", body)
    tokenizer = server.service.llm.tokenizer
    assert answer["choices"][0]["prompt_token_ids"] == tokenizer.encode(PROMPT, add_special_tokens=False)


def test_prompt_logprobs_are_ranked_and_named(server):
    _, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": 2})
    entries = answer["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    for entry in entries[1:]:
        assert sorted(value["rank"] for value in entry.values())[:2] == [1, 2]
        assert all(value["logprob"] <= 0 for value in entry.values())


def test_llama_cpp_names_are_aliases(server):
    asked = {"prompt": PROMPT, "seed": 1, "timings_per_token": True}
    _, one, _ = server.post("/v1/completions", asked | {"n_predict": 7, "repeat_penalty": 3.0})
    _, other, _ = server.post("/v1/completions", asked | {"max_tokens": 7, "repetition_penalty": 3.0})
    assert one["choices"] == other["choices"]
    _, plain, _ = server.post("/v1/completions", asked | {"n_predict": 7})
    assert plain["choices"] != one["choices"]
    assert one["timings"]["predicted_n"] == 7


def test_two_names_that_differ_are_refused(server):
    status, answer, _ = server.post("/v1/completions", {"prompt": PROMPT, "n_predict": 7, "max_tokens": 8})
    assert status == 400
    assert answer["error"]["param"] == "n_predict"


def test_errors_reach_the_client_as_its_own_classes(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="storyteller", prompt=PROMPT, temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-5", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="storyteller", prompt=PROMPT * 2000)
    assert caught.value.code == "context_length_exceeded"
    assert "n_ctx = 1024" in str(caught.value)


def test_models_are_listed_and_shown(client):
    model, *encoders = client.models.list().data
    assert [encoder.task for encoder in encoders] in ([], ["rerank"])  # the embedded one, where there is one
    assert model.id == "storyteller"
    assert model.max_model_len == 1024
    assert client.models.retrieve("storyteller").id == "storyteller"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_a_clients_own_name_for_a_request_is_its_answers_id(server):
    assert server.post("/v1/completions", {"prompt": "a", "request_id": "mine-1"})[1]["id"] == "cmpl-mine-1"


@pytest.mark.parametrize("path", ["/v1/models/org/name", "/v1/models/org%2Fname"])
def test_a_models_name_may_have_a_slash(storyteller, path):
    server = DirectServer(ready_service(storyteller, ServerSettings(served_model_name="org/name")))
    status, card, _ = server.get(path)
    assert (status, card["id"], card["root"]) == (200, "org/name", "storyteller")
    assert server.post("/v1/completions", {"prompt": "a", "model": "org/name"})[1]["model"] == "org/name"


def test_what_stopped_an_answer_is_told_in_a_stream_too(server):
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 60, "stop": ["."], "stream": True}
    *events, last = [event["choices"][0] for event in server.post("/v1/completions", body)[1]]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", ".")
    assert all(event["finish_reason"] is None and "stop_reason" not in event for event in events)


def test_tokens_called_by_their_ids_have_the_text_and_the_places_that_they_have_by_name(server, storyteller):
    ids = storyteller.tokenizer.encode(PROMPT)
    body = {"prompt": ids, "echo": True, "temperature": 0, "max_tokens": 4, "logprobs": 1, "prompt_logprobs": 0}
    named = server.post("/v1/completions", body)[1]["choices"][0]
    by_id = server.post("/v1/completions", body | {"return_tokens_as_token_ids": True})[1]["choices"][0]
    assert by_id["logprobs"]["tokens"][: len(ids)] == [f"token_id:{id_}" for id_ in ids]
    assert by_id["logprobs"]["text_offset"] == named["logprobs"]["text_offset"]
    assert by_id["text"] == named["text"]
    assert by_id["text"].endswith(PROMPT + ", there was a")
    assert by_id["prompt_logprobs"] == named["prompt_logprobs"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_options_of_a_stream_that_is_not_asked_for_are_refused(server, path):
    body = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    for options in ({"include_usage": True}, {"include_usage": None}, {"continuous_usage_stats": True}):
        status, answer, _ = server.post(path, body | {"max_tokens": 1, "stream_options": options})
        assert (status, answer["error"]["param"]) == (400, "stream_options")
    assert server.post(path, body | {"max_tokens": 1, "stream_options": {}})[0] == 200


@pytest.mark.parametrize(
    ("path", "field", "prompt", "code"),
    [
        ("/v1/completions", "prompt", [99999], None),
        ("/v1/embeddings", "input", [99999], None),
        ("/v1/embeddings", "input", [5] * 2000, "context_length_exceeded"),
        ("/generate_batch", "prompts", [[5], [-1]], None),
        ("/generate_batch", "prompts", ["a"] * 300, None),
    ],
)
def test_a_prompt_at_fault_is_named_as_the_request_names_it(server, path, field, prompt, code):
    status, answer, _ = server.post(path, {field: prompt})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, field, code)
    assert answer["error"]["message"].startswith(f"[{field}] ")
