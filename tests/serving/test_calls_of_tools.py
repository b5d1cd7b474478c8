import json

import pytest
from direct import DirectServer, ready_service
from scripted_model import ScriptedModel

CHAT = [{"role": "user", "content": "Weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def model():
    model = ScriptedModel()
    yield model
    model.llm.close()


@pytest.fixture
def server(model):
    return DirectServer(ready_service(model.llm))


def ask(client, stream=False, **more):
    """The one choice of an answer, whole or gathered from a stream by the client itself."""
    asked = dict(model="scripted", messages=CHAT, temperature=0) | more
    if not stream:
        return client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as events:
        return events.get_final_completion().choices[0]


def calls_of(choice):
    return [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]


def texts_of(answer):
    """Every content in an answer, or in the events of a stream."""
    for part in answer if isinstance(answer, list) else [answer]:
        for choice in part["choices"]:
            yield choice["delta" if "delta" in choice else "message"].get("content") or ""


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_as_tool_calls(client, model, stream):
    model.says("Let me look.\n" + CALLS)
    choice = ask(client, stream, tools=[WEATHER, CLOCK])
    assert choice.message.content == "Let me look."
    assert calls_of(choice) == [("weather", {"city": "Paris"}), ("clock", {})]
    assert choice.finish_reason == "tool_calls"
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_a_call_alone_has_no_content(client, model):
    model.says(CALLS)
    assert ask(client, tools=[WEATHER, CLOCK]).message.content is None


def test_one_call_when_parallel_ones_are_not_wanted(client, model):
    model.says(CALLS)
    choice = ask(client, tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert calls_of(choice) == [("weather", {"city": "Paris"})]


@pytest.mark.parametrize("more", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_a_call_is_text(client, model, more):
    model.says(CALLS)
    choice = ask(client, **more)
    assert choice.message.tool_calls is None
    assert "<tool_call>" in choice.message.content
    assert choice.finish_reason == "stop"


def test_arguments_are_streamed_as_they_come(client, model):
    model.says(CALLS)
    chunks = list(
        client.chat.completions.create(
            model="scripted", messages=CHAT, temperature=0, tools=[WEATHER, CLOCK], stream=True
        )
    )
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    first = [call for call in calls if call.index == 0]
    assert first[0].function.name == "weather"
    assert first[0].id
    assert all(call.id is None and call.function.name is None for call in first[1:])
    assert len(first) > 2
    assert "".join(call.function.arguments for call in first) == '{"city": "Paris"}'


def test_each_token_has_its_log_probability_once_however_many_pieces_it_becomes(server, model):
    model.says("Let me look.\n" + CALLS)
    body = {"messages": CHAT, "temperature": 0, "tools": [WEATHER, CLOCK], "logprobs": True, "stream": True}
    events = server.post("/v1/chat/completions", body | {"stream_options": {"include_usage": True}})[1]
    choices = [choice for event in events for choice in event["choices"]]
    entries = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert len(entries) == events[-1]["usage"]["completion_tokens"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_come_does_whatever_the_model_would_say(client, model, choice):
    model.says("I will not call anything.")
    answer = ask(client, tools=[WEATHER, CLOCK], tool_choice=choice, max_tokens=100)
    calls = calls_of(answer)
    assert calls
    assert answer.finish_reason == "tool_calls"
    if choice != "required":
        assert [name for name, _ in calls] == ["weather"]
        assert list(calls[0][1]) == ["city"]


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_apart_from_the_answer(client, model, stream):
    model.says("<think>\nParis is in France.\n</think>\n\nSunny.")
    choice = ask(client, stream)
    assert choice.message.content == "Sunny."
    assert choice.message.reasoning_content == "Paris is in France."
    assert choice.finish_reason == "stop"


def test_reasoning_that_the_prompt_has_begun_is_reasoning(client, model):
    model.says("Paris is in France.\n</think>\n\nSunny.")
    choice = ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    assert choice.message.reasoning_content == "Paris is in France."
    assert choice.message.content == "Sunny."


def test_reasoning_is_counted_and_can_be_left_out(server, model):
    model.says("<think>\nParis is in France.\n</think>\n\nSunny.")
    body = {"messages": CHAT, "temperature": 0}
    _, answer, _ = server.post("/v1/chat/completions", body)
    expected = len(model.llm.tokenizer.encode("Paris is in France.", add_special_tokens=False))
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == expected
    events = server.post("/v1/chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}})[1]
    assert events[-1]["usage"]["completion_tokens_details"] == answer["usage"]["completion_tokens_details"]
    for stream in (False, True):
        answer = server.post("/v1/chat/completions", body | {"include_reasoning": False, "stream": stream})[1]
        assert "reasoning_content" not in json.dumps(answer)
        assert "".join(texts_of(answer)) == "Sunny."


def test_own_routes_tell_reasoning_apart_too(server, model):
    model.says("<think>\nParis is in France.\n</think>\n\nSunny.")
    _, answer, _ = server.post("/chat", {"messages": CHAT, "temperature": 0})
    assert (answer["text"], answer["reasoning_content"]) == ("Sunny.", "Paris is in France.")
    events = server.post("/stream", {"messages": CHAT, "temperature": 0})[1]
    assert "".join(event.get("text", "") for event in events) == "Sunny."
    assert "".join(event.get("reasoning_content", "") for event in events) == "Paris is in France."


def test_a_chat_with_calls_and_their_results_goes_back_in(client, model):
    model.says(CALLS)
    message = ask(client, tools=[WEATHER, CLOCK]).message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    model.says("Sunny.")
    more = {"messages": [*CHAT, message.model_dump(), *results], "tools": [WEATHER, CLOCK]}
    assert ask(client, **more).message.content == "Sunny."


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [CLOCK], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_tools_that_are_none_are_refused(server, more, param):
    status, answer, _ = server.post("/v1/chat/completions", {"messages": CHAT} | more)
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize("parameters", [{"type": 5}, {"properties": {"a": {"pattern": "("}}}, {"type": "array"}])
def test_parameters_that_are_no_schema_are_refused(server, parameters):
    tool = {"type": "function", "function": {"name": "a", "parameters": parameters}}
    status, answer, _ = server.post("/v1/chat/completions", {"messages": CHAT, "tools": [tool]})
    assert (status, answer["error"]["param"]) == (400, "tools")


def test_a_model_that_knows_no_tools_refuses_them(storyteller):
    server = DirectServer(ready_service(storyteller))
    status, answer, _ = server.post("/v1/chat/completions", {"messages": CHAT, "tools": [CLOCK]})
    assert (status, answer["error"]["param"]) == (400, "tools")
