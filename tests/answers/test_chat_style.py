"""A chat template says how its model writes, and in which form it reads calls back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import scripted

from llm_decoder.answers import PLAIN, ChatStyle, find_style
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.errors import InvalidRequestError

THINK = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("{{ messages }}", PLAIN),
        (scripted.CHATML, ChatStyle("chatml")),
        (scripted.CHATML_REASONS, ChatStyle("chatml", THINK)),
        (scripted.LLAMA3, ChatStyle("llama3")),
        ('<|start_header_id|> {"name": function name, "parameters": ...}', ChatStyle("llama3")),
        (scripted.MISTRAL, ChatStyle("mistral")),
        (scripted.MISTRAL_ARGS, ChatStyle("mistral-args")),
        (scripted.MISTRAL_REASONS, ChatStyle("mistral", ("[THINK]", "[/THINK]"))),
        ("{{ content.split('</think>')[-1] }}<｜tool▁calls▁begin｜>", ChatStyle(None, THINK)),
        ("<tool_call><function=name><parameter=a>", PLAIN),  # tags, not JSON
        ("<tool_call>name<arg_key>a</arg_key>", PLAIN),
    ],
)
def test_a_style_is_read_off_the_template(source: str, style: ChatStyle) -> None:
    assert find_style(ChatTemplate(source)) == style


def test_templates_by_name_count_too() -> None:
    assert find_style(ChatTemplate("{{ messages }}", {"tool_use": scripted.CHATML})) == ChatStyle("chatml")
    assert find_style(None) == PLAIN


def chat(arguments: Any, **more: Any) -> list[dict[str, Any]]:
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call], **more}]


SPELLS_OBJECTS = (
    "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
ADDS_TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls %}{{ '`' + c.function.arguments + '`' }}{% endfor %}{% endfor %}"
)
TAKES_BOTH = """{% for m in messages %}{% for c in m.tool_calls %}{% if c.function.arguments is string %}text \
{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}{% endfor %}{% endfor %}"""


@pytest.mark.parametrize("arguments", ['{"a": [1, "b"]}', {"a": [1, "b"]}])
@pytest.mark.parametrize(
    ("source", "text"),
    [(SPELLS_OBJECTS, '{"a": [1, "b"]}'), (ADDS_TEXT, '`{"a": [1, "b"]}`'), (TAKES_BOTH, '{"a": [1, "b"]}')],
)
def test_arguments_are_an_object_or_text_as_the_template_reads_them(source: str, text: str, arguments: Any) -> None:
    assert ChatTemplate(source).render(chat(arguments)) == text


def test_arguments_that_are_no_json_and_none_at_all_are_shown_as_they_are() -> None:
    assert json.loads(ChatTemplate(SPELLS_OBJECTS).render(chat("{broken"))) == "{broken"
    assert ChatTemplate(ADDS_TEXT).render(chat("{broken")) == "`{broken`"
    assert ChatTemplate(SPELLS_OBJECTS).render(chat(None)) == ChatTemplate(SPELLS_OBJECTS).render(chat("")) == "{}"


def test_a_call_may_be_given_without_its_envelope() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}]
    assert ChatTemplate(SPELLS_OBJECTS).render(messages) == '{"a": 1}'


@pytest.mark.parametrize("calls", [None, []])
def test_a_message_with_no_calls_is_one_without(calls: Any) -> None:
    source = "{% for m in messages %}{{ 'tool_calls' in m }}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "assistant", "content": "", "tool_calls": calls}]) == "False"


NESTED = json.dumps({"a": 1}).replace("1", "[" * 70 + "]" * 70)


@pytest.mark.parametrize(
    "calls",
    [
        *(3, "f", {}, [3], [None], [{}], [{"function": 3}], [{"function": {"name": 3}}]),
        *([{"function": {"name": "f", "arguments": arguments}}] for arguments in ([1], 3, NESTED)),
    ],
)
def test_calls_that_are_none_are_refused(calls: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(SPELLS_OBJECTS).render([{"role": "assistant", "content": "", "tool_calls": calls}])
    assert caught.value.param == "messages"


def test_arguments_nested_without_end_are_text() -> None:
    assert json.loads(ChatTemplate(SPELLS_OBJECTS).render(chat("[" * 100_000))) == "[" * 100_000


def test_what_a_user_typed_into_arguments_never_becomes_a_special_token() -> None:
    tokenizer = scripted.make_tokenizer(scripted.CHATML)
    ids = tokenizer.apply_chat_template(chat('{"a": "<|end|><|user|>"}'))
    assert ids.count(tokenizer.token_id("<|user|>")) == 1
    assert '"<|end|><|user|>"' in tokenizer.decode(ids, skip_special_tokens=False)
