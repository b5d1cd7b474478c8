"""Tools and reasoning through LLM.chat: from the request to the message, over a model that writes what a test says."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from typing import Any

import jsonschema
import pytest
import scripted
from reading import joined
from scripted import make_llm

from llm_decoder.answers import AnswerMessage, ToolCall
from llm_decoder.async_llm import AsyncLLM
from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams

QUESTION = [{"role": "user", "content": "Warm?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "How it is.", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
ARGUMENTS = '{"city": "Paris"}'

# A template, and how its model calls the tool.
STYLES = {
    "chatml": (scripted.CHATML, f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'),
    "llama3": (scripted.LLAMA3, f'{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    "python_tag": (scripted.LLAMA3, f'<|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    "mistral": (scripted.MISTRAL, f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ARGUMENTS}}}]'),
    "mistral-args": (scripted.MISTRAL_ARGS, f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"),
}


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=200, **fields)


def message_of(output: Any) -> AnswerMessage:
    message = output.outputs[0].message
    assert message is not None
    return message


def only_call(message: AnswerMessage) -> ToolCall:
    (call,) = message.tool_calls
    return call


@pytest.mark.parametrize("style", STYLES)
def test_a_call_comes_out_of_every_style_special_tokens_or_not(style: str) -> None:
    with make_llm(*STYLES[style]) as llm:
        message = message_of(llm.chat(QUESTION, params(), tools=TOOLS))
    assert (only_call(message).name, only_call(message).arguments, message.content) == ("weather", ARGUMENTS, None)


@pytest.mark.parametrize("style", STYLES)
def test_a_call_and_its_result_go_back_into_the_chat_in_the_words_of_the_template(style: str) -> None:
    source, answer = STYLES[style]
    with make_llm(source, answer) as llm:
        message = message_of(llm.chat(QUESTION, params(), tools=TOOLS))
        result = {"role": "tool", "tool_call_id": only_call(message).id, "content": "warm"}
        prompt = llm.chat([*QUESTION, message.as_dict(), result], params(), tools=TOOLS).prompt_token_ids
        text = llm.tokenizer.decode(prompt, skip_special_tokens=False)
    assert f"<|assistant|>{answer.removeprefix('<|python_tag|>')}<|end|><|tool|>warm<|end|><|assistant|>" in text


@pytest.mark.parametrize("style", STYLES)
def test_the_parts_of_a_stream_are_those_of_the_message(style: str) -> None:
    with make_llm(STYLES[style][0], STYLES[style][1]) as llm:
        events = list(llm.stream_chat(QUESTION, params(), tools=TOOLS))
    (part,) = joined([part for event in events for part in event.parts])
    call = only_call(message_of(events[-1].output))
    assert (part.tool_id, part.tool_name, part.text) == (call.id, call.name, call.arguments)
    assert len([part for event in events for part in event.parts]) > 5, "arguments come in pieces"


def test_reasoning_and_content_come_apart() -> None:
    with make_llm(scripted.CHATML_REASONS, "<think>\nHm.\n</think>\n\nYes.") as llm:
        output = llm.chat(QUESTION, params())
    assert message_of(output) == AnswerMessage("Yes.", "Hm.")
    assert output.outputs[0].text == "<think>\nHm.\n</think>\n\nYes."


def test_marks_of_reasoning_that_are_special_tokens_are_found() -> None:
    with make_llm(scripted.MISTRAL_REASONS, "[THINK]Hm.[/THINK]Yes.") as llm:
        assert message_of(llm.chat(QUESTION, params())) == AnswerMessage("Yes.", "Hm.")


def test_a_template_that_opens_the_reasoning_needs_no_mark_in_the_answer() -> None:
    with make_llm(scripted.CHATML_REASONS, "Hm.</think>Yes.") as llm:
        assert message_of(llm.chat(QUESTION, params(), enable_thinking=True)) == AnswerMessage("Yes.", "Hm.")
        assert message_of(llm.chat(QUESTION, params())) == AnswerMessage("Hm.</think>Yes.")


@pytest.mark.parametrize(("begun", "message"), [("<think>I", AnswerMessage("Yes.", "Hm.")), ("Well, ", None)])
def test_an_answer_that_is_continued_goes_on_where_it_was(begun: str, message: AnswerMessage | None) -> None:
    chat = [*QUESTION, {"role": "assistant", "content": begun}]
    with make_llm(scripted.CHATML_REASONS, "Hm.</think>Yes.") as llm:
        output = llm.chat(chat, params(), continue_final_message=True)
    assert message_of(output) == (message or AnswerMessage("Hm.</think>Yes."))


def test_other_special_tokens_stay_out_of_the_text() -> None:
    with make_llm(scripted.MISTRAL, "a<|python_tag|>b[TOOL_CALLS]c") as llm:
        assert llm.chat(QUESTION, params(), tools=TOOLS).outputs[0].text == "ab[TOOL_CALLS]c"
        assert llm.chat(QUESTION, params()).outputs[0].text == "abc"
        shown = llm.chat(QUESTION, params(skip_special_tokens=False)).outputs[0].text
        assert shown == "a<|python_tag|>b[TOOL_CALLS]c"


def test_answers_of_one_request_are_each_taken_apart() -> None:
    with make_llm(*STYLES["chatml"]) as llm:
        output = llm.chat(QUESTION, params(n=2), tools=TOOLS)
        events = list(llm.stream_chat(QUESTION, params(n=2), tools=TOOLS))
    for completion in (*output.outputs, *events[-1].output.outputs):
        assert completion.message.tool_calls[0].name == "weather"


def test_async_chats_have_messages_and_parts_too() -> None:
    async def ask() -> None:
        with make_llm(*STYLES["chatml"]) as llm:
            over = AsyncLLM.over(llm)
            output = await over.chat(QUESTION, params(), tools=TOOLS)
            events = [event async for event in over.stream_chat(QUESTION, params(), tools=TOOLS)]
            assert over.chat_style.calls == "chatml"
        assert only_call(message_of(output)).arguments == ARGUMENTS
        assert only_call(message_of(events[-1].output)).arguments == ARGUMENTS
        assert any(event.parts for event in events)

    asyncio.run(ask())


# -- calls that must be


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_must_call_does_so_by_the_schema_whatever_it_would_rather_write(style: str, seed: int) -> None:
    with make_llm(STYLES[style][0], "I would rather not.") as llm:
        forced = SamplingParams(max_tokens=300, temperature=5.0, seed=seed, frequency_penalty=2.0)
        output = llm.chat(QUESTION, forced, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    message = message_of(output)
    assert message.content is None
    call = only_call(message)
    if output.outputs[0].finish_reason == "stop":
        schema = CITY if call.name == "weather" else {"type": "object"}
        jsonschema.validate(json.loads(call.arguments), schema)
    assert call.name in ("weather", "clock")


def test_a_named_tool_is_the_one_that_is_called() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    with make_llm(scripted.CHATML, "No.") as llm:
        message = message_of(llm.chat(QUESTION, params(seed=1), tools=[CLOCK, WEATHER], tool_choice=choice))
    assert only_call(message).name == "weather"


@pytest.mark.parametrize("marks_are_tokens", [True, False])
def test_a_model_that_must_call_may_reason_first(marks_are_tokens: bool) -> None:
    source, call = scripted.CHATML_REASONS, STYLES["chatml"][1]
    for written, thinks in ((f"<think>Hm.</think>\n{call}", False), (f"Hm.</think>{call}", True)):
        with make_llm(source, written, marks_are_tokens=marks_are_tokens) as llm:
            message = message_of(
                llm.chat(QUESTION, params(), tools=TOOLS, tool_choice="required", enable_thinking=thinks)
            )
        assert message.reasoning_content == "Hm."
        assert only_call(message).arguments == ARGUMENTS


def test_several_calls_come_only_where_they_may() -> None:
    source, call = STYLES["chatml"]
    with make_llm(source, f"{call}\n{call}") as llm:
        for choice in ("auto", "required"):
            many = message_of(llm.chat(QUESTION, params(), tools=TOOLS, tool_choice=choice))
            one = message_of(llm.chat(QUESTION, params(), tools=TOOLS, tool_choice=choice, parallel_tool_calls=False))
            assert (len(many.tool_calls), len(one.tool_calls)) == (2, 1)


def test_tools_that_must_not_be_called_are_not_shown_and_calls_are_content() -> None:
    source, answer = STYLES["chatml"]
    with make_llm(source, answer) as llm:
        output = llm.chat(QUESTION, params(), tools=TOOLS, tool_choice="none")
        assert output.prompt_token_ids == llm.chat(QUESTION, params()).prompt_token_ids
    assert message_of(output) == AnswerMessage(answer)


# -- forms of answers beside tools and reasoning

JSON_ANSWER = '{"warm": true}'
FORMS: dict[str, Any] = {
    "json": {"json": {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}},
    "regex": {"regex": r'\{"warm": (true|a/b)\}'},
    "choice": {"choice": [JSON_ANSWER, "no"]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_holds_for_what_follows_the_reasoning(form: str) -> None:
    asked = params(structured_outputs=FORMS[form])
    with make_llm(scripted.CHATML_REASONS, f"Hm, {{</think>{JSON_ANSWER}") as llm:
        assert message_of(llm.chat(QUESTION, asked, enable_thinking=True)) == AnswerMessage(JSON_ANSWER, "Hm, {")
    with make_llm(scripted.CHATML_REASONS, f"<think>Hm.</think>{JSON_ANSWER}") as llm:
        assert message_of(llm.chat(QUESTION, asked)) == AnswerMessage(JSON_ANSWER, "Hm.")


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_is_a_call_or_of_the_form(style: str) -> None:
    source, call = STYLES[style]
    asked = params(structured_outputs=FORMS["json"])
    with make_llm(source, call.removeprefix("<|python_tag|>")) as llm:
        assert only_call(message_of(llm.chat(QUESTION, asked, tools=TOOLS))).arguments == ARGUMENTS
    with make_llm(source, JSON_ANSWER) as llm:
        assert message_of(llm.chat(QUESTION, asked, tools=TOOLS)) == AnswerMessage(JSON_ANSWER)


@pytest.mark.parametrize(
    ("options", "fields", "param"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, FORMS["json"], "tool_choice"),
        ({"tools": TOOLS}, {"grammar": 'start: "a"'}, "structured_outputs"),
        ({"enable_thinking": True}, {"grammar": 'start: "a"'}, "structured_outputs"),
    ],
)
def test_forms_that_cannot_be_had_together_are_refused(options: Any, fields: Any, param: str) -> None:
    with make_llm(scripted.CHATML_REASONS, "") as llm, pytest.raises(InvalidRequestError) as caught:
        llm.chat(QUESTION, params(structured_outputs=fields), **options)
    assert caught.value.param == param


def test_a_form_may_hold_the_text_of_a_mark_that_is_a_token() -> None:
    asked = params(structured_outputs={"regex": "<tool_call>[a-z]{2}</tool_call>"})
    with make_llm(scripted.CHATML, "No.") as llm:
        text = llm.chat(QUESTION, asked).outputs[0].text
    assert re.fullmatch("<tool_call>[a-z]{2}</tool_call>", text)


def test_references_of_a_schema_hold_inside_of_the_form() -> None:
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/$defs/place"}},
        "required": ["at", "to"],
        "additionalProperties": False,
        "$defs": {"place": {"enum": ["x", "y"]}},
    }
    tool = {"type": "function", "function": {"name": "go", "parameters": schema}}
    for source, _ in STYLES.values():
        with make_llm(source, "No.") as llm:
            message = message_of(
                llm.chat(QUESTION, params(), tools=[tool], tool_choice="required", parallel_tool_calls=False)
            )
        jsonschema.validate(json.loads(only_call(message).arguments), schema)


def test_a_strict_schema_that_no_grammar_can_hold_is_refused_by_the_name_of_the_tools() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "no such format"}}}
    for strict in (True, False):
        tool = {"type": "function", "function": {"name": "f", "strict": strict, "parameters": schema}}
        with make_llm(scripted.CHATML, "") as llm:
            if not strict:
                llm.chat(QUESTION, params(), tools=[tool], tool_choice="required")
                continue
            for choice in ("required", "auto"):
                with pytest.raises(InvalidRequestError, match=r"^\[tools\]") as caught:
                    llm.chat(QUESTION, params(), tools=[tool], tool_choice=choice)
                assert caught.value.param == "tools"


STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}  # type: ignore[operator]


@pytest.mark.parametrize("marks_are_tokens", [True, False])
@pytest.mark.parametrize("style", [style for style in STYLES if style != "python_tag"])
def test_a_strict_tool_is_called_by_its_schema_in_an_answer_that_is_free(style: str, marks_are_tokens: bool) -> None:
    source, call = STYLES[style]
    make_llm = functools.partial(scripted.make_llm, marks_are_tokens=marks_are_tokens)
    for text in ("Well, {it} is warm.", "", "{"):
        with make_llm(source, text) as llm:
            message = message_of(llm.chat(QUESTION, params(), tools=[STRICT, CLOCK]))
        if text != "{":
            assert message == AnswerMessage(text or None)
    with make_llm(source, call) as llm:
        assert only_call(message_of(llm.chat(QUESTION, params(), tools=[STRICT, CLOCK]))).arguments == ARGUMENTS
    wrong = call.replace("city", "town")
    with make_llm(source, wrong) as llm:
        assert only_call(message_of(llm.chat(QUESTION, params(), tools=[WEATHER]))).arguments == '{"town": "Paris"}'
        output = llm.chat(QUESTION, SamplingParams(max_tokens=300, seed=2), tools=[STRICT], parallel_tool_calls=False)
    arguments = only_call(message_of(output)).arguments
    if output.outputs[0].finish_reason == "stop":
        jsonschema.validate(json.loads(arguments), CITY)
    assert arguments.startswith('{"city": "')


def test_text_may_stand_before_a_call_of_a_strict_tool_behind_it_and_reasoning_first() -> None:
    call = STYLES["chatml"][1]
    with make_llm(scripted.CHATML_REASONS, f"<think>Hm.</think>\nI look.{call}\nand again{call}Done.") as llm:
        message = message_of(llm.chat(QUESTION, params(), tools=[STRICT]))
    assert (message.reasoning_content, message.content) == ("Hm.", "I look.and againDone.")
    assert [call.arguments for call in message.tool_calls] == [ARGUMENTS, ARGUMENTS]


def test_tools_that_a_template_does_not_know_are_refused() -> None:
    with make_llm(scripted.NO_TOOLS, "Hello.") as llm:
        with pytest.raises(InvalidRequestError, match="chat template") as caught:
            llm.chat(QUESTION, params(), tools=TOOLS)
        assert caught.value.param == "tools"
        assert message_of(llm.chat(QUESTION, params(), tools=TOOLS, tool_choice="none")) == AnswerMessage("Hello.")
        assert message_of(llm.chat(QUESTION, params(), tools=[])) == AnswerMessage("Hello.")
