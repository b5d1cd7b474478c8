"""What of a chat's request reaches the model's template."""

import json

import pytest
from direct import DirectServer, ready_service
from scripted_model import ScriptedModel

SHOWN = """{{ messages | tojson }}|{{ documents | tojson }}|{{ reasoning_effort | default('unset') }}|
{{- enable_thinking | default('unset') }}|{{ add_generation_prompt }}"""


@pytest.fixture
def prompt_of():
    """The prompt that a request becomes, by its parts."""
    made = []

    def prompt_of(template=SHOWN, **body):
        made.append(ScriptedModel(template))
        server = DirectServer(ready_service(made[-1].llm))
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "return_token_ids": True} | body
        status, answer, _ = server.post("/v1/chat/completions", body)
        assert status == 200, answer
        text = made[-1].llm.tokenizer.decode(answer["prompt_token_ids"])
        messages, documents, effort, thinking, generates = text.split("|")
        return json.loads(messages), json.loads(documents), effort, thinking, generates

    yield prompt_of
    for model in made:
        model.llm.close()


def test_nothing_but_the_messages_when_nothing_is_said(prompt_of):
    assert prompt_of() == ([{"role": "user", "content": "a"}], None, "unset", "unset", "True")


def test_documents_and_reasoning_effort_reach_it(prompt_of):
    _, documents, effort, thinking, _ = prompt_of(documents=[{"text": "d"}], reasoning_effort="low")
    assert (documents, effort, thinking) == ([{"text": "d"}], "low", "unset")


def test_no_effort_is_no_thinking_unless_a_keyword_says_otherwise(prompt_of):
    assert prompt_of(reasoning_effort="none")[2:4] == ("none", "False")
    assert prompt_of(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})[3] == "True"


def test_a_prompt_without_the_beginning_of_an_answer(prompt_of):
    assert prompt_of(add_generation_prompt=False)[4] == "False"


def test_messages_reach_it_with_what_they_have_and_no_more(prompt_of):
    messages = [
        {"role": "user", "content": "a", "name": "Tim", "tool_calls": None, "mood": "x"},
        {"role": "assistant", "content": None, "reasoning": "why", "refusal": None}
        | {"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "b", "reasoning_content": "so"},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert prompt_of(messages=messages)[0] == [
        {"role": "user", "content": "a", "name": "Tim"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "why"},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "b", "reasoning_content": "so"},
        {"role": "user", "content": "cd"},
    ]


def test_a_developer_is_the_system_of_templates_that_do_not_know_him(prompt_of):
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    assert [message["role"] for message in prompt_of(messages=messages)[0]] == ["system", "user"]
    shown = prompt_of(SHOWN + "{# developer #}", messages=messages)[0]
    assert [message["role"] for message in shown] == ["developer", "user"]
