import pytest

from llm_decoder.sampling import SamplingParams

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]


def test_generate_answers_text_token_ids_finish_reason_and_usage(server, storyteller):
    status, answer, _ = server.post("/generate", {"prompt": PROMPT, "temperature": 0, "max_tokens": 9})
    (expected,) = storyteller.generate(PROMPT, SamplingParams(temperature=0, max_tokens=9))
    assert status == 200
    assert answer["text"] == expected.outputs[0].text
    assert answer["token_ids"] == expected.outputs[0].token_ids
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 9


def test_several_answers_stand_in_outputs(server):
    _, answer, _ = server.post("/generate", {"prompt": PROMPT, "n": 3, "seed": 2, "logprobs": 1, "max_tokens": 6})
    assert [output["index"] for output in answer["outputs"]] == [0, 1, 2]
    assert answer["outputs"][0]["text"] == answer["text"]
    assert len({output["text"] for output in answer["outputs"]}) == 3
    assert all(len(output["logprobs"]) == 6 for output in answer["outputs"])


def test_a_stream_joined_is_what_generate_answers(server):
    asked = {"prompt": PROMPT, "temperature": 0, "max_tokens": 20}
    _, whole, _ = server.post("/generate", asked)
    for events in (server.post("/stream", asked)[1], server.post("/generate", asked | {"stream": True})[1]):
        assert "".join(event["text"] for event in events) == whole["text"]
        assert events[-1]["finish_reason"] == whole["finish_reason"]
        assert events[-1]["usage"]["completion_tokens"] == 20
        assert all("finish_reason" not in event for event in events[:-1])


def test_stream_can_be_asked_in_a_url(server):
    _, by_post, _ = server.post("/stream", {"prompt": "5", "temperature": 0, "max_tokens": 5, "stop": ["x", "y"]})
    status, by_get, _ = server.get("/stream", prompt="5", temperature="0", max_tokens="5", stop='["x", "y"]')
    assert status == 200
    assert "".join(event["text"] for event in by_get) == "".join(event["text"] for event in by_post)


@pytest.mark.parametrize(
    ("query", "param"),
    [({}, "prompt"), ({"prompt": "a", "max_tokens": "many"}, "max_tokens"), ({"prompt": ""}, "prompt")],
)
def test_a_bad_url_is_refused_by_field(server, query, param):
    status, answer, _ = server.get("/stream", **query)
    assert (status, answer["error"]["param"]) == (400, param)


def test_chat_answers_to_the_end_of_the_context(server, storyteller):
    _, answer, _ = server.post("/chat", {"messages": CHAT, "temperature": 0})
    expected = storyteller.chat(CHAT, SamplingParams(temperature=0, max_tokens=None))
    assert answer["text"] == expected.outputs[0].text
    assert answer["finish_reason"] == "stop"
    assert server.post("/generate", {"messages": CHAT, "temperature": 0})[1]["text"] == answer["text"]
    events = server.post("/stream", {"messages": CHAT, "temperature": 0})[1]
    assert "".join(event["text"] for event in events) == answer["text"]


def test_a_chat_that_has_outgrown_the_context_tells_what_it_dropped(server):
    turns = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "yes"}] * 4
    _, answer, _ = server.post("/chat", {"messages": turns + CHAT, "max_tokens": 4})
    assert answer["dropped_messages"] > 0


def test_a_batch_answers_in_order(server):
    prompts = [PROMPT, "The dog", "A cat"]
    _, answer, _ = server.post("/generate_batch", {"prompts": prompts, "temperature": 0, "max_tokens": 6})
    alone = [server.post("/generate", {"prompt": p, "temperature": 0, "max_tokens": 6})[1]["text"] for p in prompts]
    assert [output["text"] for output in answer["outputs"]] == alone
    assert answer["usage"]["completion_tokens"] == 18


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate", {"prompt": ["a", "b"]}, "prompt"),
        ("/generate", {"prompt": "a", "messages": CHAT}, "prompt"),
        ("/generate", {}, "prompt"),
        ("/generate", {"prompt": "a", "chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ("/generate_batch", {"prompts": ["a"], "stream": True}, "stream"),
        ("/generate_batch", {"prompts": []}, "prompts"),
        ("/stream", {"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
        ("/chat", {"messages": []}, "messages"),
        ("/chat", {"messages": CHAT, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ("/chat", {"messages": CHAT, "chat_template_kwargs": {"sink": 1}}, "chat_template_kwargs"),
    ],
)
def test_what_contradicts_itself_is_refused(server, path, body, param):
    status, answer, _ = server.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)
