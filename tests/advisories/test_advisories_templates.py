"""Templates that reach for code, or for endless time and memory, at every place that a template can come from: a
tokenizer's settings, files of its own, a program's option. A request brings data to a template and never a template."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models_factory import CHAT_TEMPLATE, make_checkpoint, make_tokenizer, write_json
from scripted_model import ScriptedModel
from two_servers import MESSAGES, Running

from llm_decoder.chat_template import ALLOWED_KWARGS, ChatTemplate
from llm_decoder.errors import ConfigError, InvalidRequestError, MalformedFileError
from llm_decoder.loading import load_model
from llm_decoder.serving.chat_prompt import template_options
from llm_decoder.serving.schemas_chat import ChatRequest
from llm_decoder.tokenizer import Tokenizer, load_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
TEMPLATE = ChatTemplate(CHAT_TEMPLATE, tokens={"bos_token": "<s>"})


def show(source: str, messages: Any = HELLO, **kwargs: Any) -> str:
    return ChatTemplate(source).render(messages, **kwargs)


# -- the sandbox


@pytest.mark.parametrize("name", ["tokenize", "messages_", "bos_token", "chat_template", "raise_exception", "self"])
def test_keywords_that_are_not_on_the_list_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        TEMPLATE.render(HELLO, **{name: True})
    assert caught.value.param == "chat_template_kwargs"


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.__class__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__name__ }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ '{0.__class__}'.format(7).__class__ }}",
    "{{ ('{0.__class__.__mro__}' | format(7)) }}",
    "{% set f = ''.format %}{{ f.__self__.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ range.__call__.__self__ }}",
    "{{ messages.append(7) }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages | indent }}{{ messages | length - 1 }}",
    "{{ messages[0].keys().mapping }}",
    "{{ self._TemplateReference__context }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_leave_the_sandbox_or_change_what_it_was_given(source: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with contextlib.suppress(InvalidRequestError):
        assert show(source, messages) == ""  # what must not be seen is undefined
    assert messages == HELLO


@pytest.mark.parametrize(
    "statement",
    [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import system %}",
        "{% extends 'x' %}",
        "{% block a %}{% endblock %}",
        "{% autoescape true %}{% endautoescape %}",
    ],
)
def test_statements_that_reach_for_other_templates_are_refused_by_name(statement: str) -> None:
    with pytest.raises(MalformedFileError, match="is not available to chat templates"):
        show(statement)


LONG = "{% set long = 'a' * 8000000 %}"


DOUBLED = (
    "{% set n = namespace(x=[1], y=[1], t=(1,), kept=[]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% set n.t = (n.t, n.t) %}{% endfor %}"
)


KEPT = "{% set n = namespace(kept=[]) %}"


BOMBS = [
    # loops
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% set a = [1] * 100000 %}{% for x in a %}{% for y in a %}{% for z in a %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    LONG + "{% for x in range(99999) if (x is number) recursive %}{{ loop(long) }}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(90) %}{% set n.x = [n.x] %}{% endfor %}"
    "{{ ([n.x] * 99999) | map(attribute='0.' * 88 ~ '0') | list }}",
    "{{ range(99999) | sort(attribute='real,' * 199) | length }}",
    # texts that are written out, joined, padded, repeated
    "{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    LONG + "{% set x %}{% for i in range(2000) %}{{ long }}{% endfor %}{% endset %}",
    LONG + "{% set y = long | safe %}{% set x %}{% for i in range(2000) %}{{ y }}{% endfor %}{% endset %}",
    LONG + "{% macro f() %}{% for i in range(2000) %}{{ long }}{% endfor %}{% endmacro %}{{ f() }}",
    LONG + "{% filter upper %}{% for i in range(2000) %}{{ long }}{% endfor %}{% endfilter %}",
    LONG + "{% macro f() %}{{ caller() }}{% endmacro %}"
    "{% call f() %}{% for i in range(2000) %}{{ long }}{% endfor %}{% endcall %}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 50_000 + "{% endfor %}{% endset %}",
    "{{ range(99999) | join('x' * 20000) }}",
    "{{ ('b' * 1000000).join(['a'] * 100000) }}",
    "{{ ('a' * 1000000).replace('', 'b' * 100000) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 100000) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ ('\\t' * 200000).expandtabs(9999) }}",
    "{{ 'a' | indent(10**9) }}",
    "{{ ('a\\n' * 260000) | indent(9999) }}",
    "{{ ('a' * 2000000) | wordwrap(1) }}",
    "{{ messages | tojson(indent=2000000000) }}",
    "{{ messages | tojson(indent=-2000000000) }}",
    "{{ (range(99999) | list) | tojson(separators=['x' * 20000, ':']) }}",
    LONG + "{{ messages | tojson(separators=[',', ':'] + [long] * 1000) }}",
    "{{ ('\\x01' * 8000000) | tojson }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '%2000000000d' is odd }}",
    "{{ '%2000000000d' is divisibleby(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 2000000000) }}",
    "{{ '{:.{}f}'.format(1.0, 2000000000) }}",
    "{{ ('{0}' * 300).format('x' * 80000) }}",
    "{{ ('<' | safe) + '<' * 8000000 }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ strftime_now('%-1000000000d') }}",
    "{{ lipsum(10**6) }}",
    "{{ (1).to_bytes(3000000000, 'big') }}",
    # texts and lists that are kept
    LONG + KEPT + "{% for i in range(5000) %}{% set n.kept = [n.kept, long[i:]] %}{% endfor %}",
    KEPT + "{% for i in range(5000) %}{% set n.kept = [n.kept, 'a' * 8000000] %}{% endfor %}",
    LONG + KEPT + "{% for i in range(5000) %}{% set n.kept = [n.kept, long | safe] %}{% endfor %}",
    KEPT
    + "{% for i in range(99999) %}{% for j in range(999) %}{% set n.kept = [n.kept, ["
    + "0," * 20_000
    + "]] %}{% endfor %}{% endfor %}",
    KEPT
    + "{% for i in range(99999) %}{% for j in range(999) %}{% set n.kept = [n.kept"
    + ", {1: 2}" * 6_000
    + "] %}{% endfor %}{% endfor %}",
    KEPT + "{% macro f() %}{% set n.kept = [n.kept, varargs] %}{% endmacro %}"
    "{% for i in range(9999) %}{{ f(*range(99999)) }}{% endfor %}",
    KEPT + "{% for i in range(999) %}{% for x in range(99999) if true %}{% set n.kept = [n.kept, loop] %}"
    "{{ loop.length }}{% break %}{% endfor %}{% endfor %}",
    "{{ [0] * 10**10 }}",
    "{{ range(10) | batch(10**9, 'x') | list }}",
    "{{ range(10) | slice(10**8) | list }}",
    "{{ ([[1] * 1000] * 2000) | sum(start=[]) }}",
    "{{ ('\\n' * 8000000).splitlines() }}",
    "{{ ('a ' * 4000000).split() }}",
    "{{ ('a ' * 4000000) | title }}",
    LONG + "{{ long | list }}",
    # lists that are small in memory and endless when they are written, compared or hashed
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    DOUBLED + "{{ n.x }}",
    DOUBLED + "{{ n.x | tojson }}",
    DOUBLED + "{{ n.x | pprint }}",
    DOUBLED + "{{ n.x ~ '' }}",
    DOUBLED + "{{ '{}'.format(n.x) }}",
    DOUBLED + "{{ raise_exception(n.x) }}",
    DOUBLED + "{{ messages[n.x].x }}",
    DOUBLED + "{{ [].index(n.x) }}",
    DOUBLED + "{{ n.x == n.y }}",
    DOUBLED + "{{ n.x < n.y }}",
    DOUBLED + "{{ n.x in [n.y] }}",
    DOUBLED + "{{ n.x is eq(n.y) }}",
    DOUBLED + "{{ [n.x] | select('==', n.y) | list }}",
    DOUBLED + "{{ {n.t: 1} }}",
    DOUBLED + "{{ {}.get(n.t) }}",
    DOUBLED + "{{ {}[n.t] }}",
    DOUBLED + "{{ dict([[n.t, 1]]) }}",
    DOUBLED + "{{ [n.t] | unique | list }}",
    "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=(1,)) %}{% for i in range(99999) %}{% set n.x = (n.x,) %}{% endfor %}{{ {n.x: 1} }}",
    "{% set a = 'a' * 4000000 ~ 'b' %}{% set b = 'a' * 4000000 ~ 'c' %}{{ a in [b] * 100000 }}",
    "{% set a = 'a' * 4000000 ~ 'b' %}{% set b = 'a' * 4000000 ~ 'c' %}{{ ([b] * 100000).count(a) }}",
    LONG + "{{ long.strip('b' * 8000000 ~ 'a') }}",
    LONG + "{{ long | trim('b' * 8000000 ~ 'a') }}",
    # numbers
    "{{ 10 ** (10 ** 10) }}",
    "{{ 1.5 | round(1000000000, 'ceil') }}",
    "{{ ('f' * 8000000) | int(0, 16) }}",
    "{{ ('9' * 8000000) | int }}",
    # while it is compiled
    "{% if true %}" * 4000 + "{% endif %}" * 4000,
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    "{{ x" + " | string" * 6000 + " }}",
    "{{ 0x" + "f" * 50_000 + " }}",
]


# Reads sources from standard input, and says of each what came of it. The limits are those of a process that must not
# be hurt; a template that breaks through one of them ends this process and not the tests.
CHILD = """
import json, resource, sys
from llm_decoder import template_budget
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.errors import LLMDecoderError
template_budget.MAX_SECONDS = 0.2
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (240, 240))
for source in json.load(sys.stdin):
    try:
        outcome = "text: " + ChatTemplate(source).render([{"role": "user", "content": "Hello"}])[:80]
    except LLMDecoderError as error:
        outcome = f"refused: {error}"
    print(json.dumps(outcome), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """What came of each of BOMBS, in a process of their own."""
    child = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(BOMBS), capture_output=True, text=True)
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    died = [f"the process died ({child.returncode}): {child.stderr[-300:]}"]
    return dict(zip(BOMBS, [*lines, *died] + ["never ran"] * len(BOMBS), strict=False))


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_a_template_that_asks_for_endless_time_or_memory_is_stopped(outcomes: dict[str, str], source: str) -> None:
    assert outcomes[source].startswith("refused: ")
    assert "ran out of memory" not in outcomes[source], "it must be refused before"


# -- every place that a template comes from


def in_settings(folder: Path, source: str) -> Tokenizer:
    write_json(folder / "tokenizer_config.json", {"chat_template": source})
    return load_tokenizer(folder)


def in_a_list_of_settings(folder: Path, source: str) -> Tokenizer:
    named = [{"name": "default", "template": source}, {"name": "tool_use", "template": source}]
    write_json(folder / "tokenizer_config.json", {"chat_template": named})
    return load_tokenizer(folder)


def in_its_own_file(folder: Path, source: str) -> Tokenizer:
    (folder / "chat_template.jinja").write_text(source)
    return load_tokenizer(folder)


def in_chat_template_json(folder: Path, source: str) -> Tokenizer:
    write_json(folder / "chat_template.json", {"template": source})
    return load_tokenizer(folder)


def as_an_option(folder: Path, source: str) -> Tokenizer:
    return load_model(make_checkpoint(folder / "model"), chat_template=source).tokenizer


SITES = [in_settings, in_a_list_of_settings, in_its_own_file, in_chat_template_json, as_an_option]
REACHES = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.popen('id').read() }}"


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_no_place_gives_a_template_more_than_the_sandbox(
    tmp_path: Path, site: Callable[[Path, str], Tokenizer]
) -> None:
    make_tokenizer(tmp_path)
    tokenizer = site(tmp_path, "{% if messages[0].content == 'go' %}" + REACHES + "{% endif %}fine")
    assert tokenizer.decode(tokenizer.apply_chat_template(HELLO)) == "fine"
    with pytest.raises(InvalidRequestError, match="chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "go"}])


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_no_place_takes_a_template_that_loads_another(tmp_path: Path, site: Callable[[Path, str], Tokenizer]) -> None:
    make_tokenizer(tmp_path)
    with pytest.raises((MalformedFileError, ConfigError), match="is not available to chat templates"):
        site(tmp_path, "{% include '/etc/passwd' %}").apply_chat_template(HELLO)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.__name__)
def test_no_place_lets_a_template_make_a_text_without_end(
    tmp_path: Path, site: Callable[[Path, str], Tokenizer]
) -> None:
    make_tokenizer(tmp_path)
    with pytest.raises(InvalidRequestError, match="chat template"):
        site(tmp_path, "{{ 'a' * 10**10 }}").apply_chat_template(HELLO)


# -- what a request brings


INJECTED = "{{ 7 * 7 }}{% for i in range(10**9) %}{% endfor %}{{ cycler.__init__.__globals__ }}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat", "/generate", "/tokenize"])
def test_a_request_brings_no_template(server: Running, path: str) -> None:
    answer = server.post(path, {"messages": MESSAGES, "max_tokens": 1, "chat_template": "{{ 7 * 7 }}"})
    if answer.status == 200:  # a field that this route does not know
        assert "chat_template" in answer.headers["x-ignored-fields"]
    else:
        assert (answer.status, answer.error["param"]) == (400, "chat_template")
    for name in ("chat_template", "template", "chat_template_path", "jinja"):
        answer = server.post(path, {"messages": MESSAGES, "chat_template_kwargs": {name: "{{ 7 * 7 }}"}})
        assert (answer.status, answer.error["param"]) == (400, "chat_template_kwargs")


@pytest.mark.parametrize(
    "name",
    [
        *("tokenize", "messages", "self", "loop", "caller", "varargs", "kwargs", "raise_exception", "namespace"),
        *("bos_token", "eos_token", "return_dict", "return_tensors", "padding", "continue_final_message", "shield"),
        *("add_generation_prompt", "__class__", "_", "", "a b", "\x00", "tokens", "range", "strftime_now"),
    ],
    ids=repr,
)
def test_keywords_that_could_shadow_something_are_refused_by_both_servers(server: Running, name: str) -> None:
    for path in ("/v1/chat/completions", "/chat", "/generate", "/tokenize"):
        answer = server.post(path, {"messages": MESSAGES, "chat_template_kwargs": {name: True}})
        assert (answer.status, answer.error["param"]) == (400, "chat_template_kwargs"), path
    assert server.serves_the_next()


def test_no_field_of_a_request_is_read_as_a_template() -> None:
    """A template that shows all it is given shows these texts as they were written."""
    everything = (
        "{{ messages | tojson }}{{ tools | tojson }}{{ documents | tojson }}{{ date_string }}{{ custom_tools }}"
    )
    model = ScriptedModel(everything)
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"a": INJECTED})}}
    messages = [
        {"role": "user", "content": INJECTED, "name": INJECTED},
        {"role": "assistant", "content": INJECTED, "reasoning_content": INJECTED, "tool_calls": [call]},
        {"role": "tool", "content": INJECTED, "tool_call_id": INJECTED},
    ]
    tool = {"type": "function", "function": {"name": "f", "description": INJECTED, "parameters": {"title": INJECTED}}}
    kwargs = {"date_string": INJECTED, "custom_tools": [INJECTED], "documents": [{"text": INJECTED}]}
    try:
        template = model.llm.tokenizer.chat_template
        assert template is not None
        text = template.render(messages, tools=[tool], **kwargs)
    finally:
        model.llm.close()
    assert text.count("{{ 7 * 7 }}") == 12
    assert "49" not in text


def test_both_doors_of_keywords_have_one_list() -> None:
    for name in sorted(ALLOWED_KWARGS):
        request = ChatRequest.model_validate({"messages": MESSAGES, "chat_template_kwargs": {name: "x"}})
        assert template_options(request) == {name: "x"}
        TEMPLATE.render(HELLO, **{name: [] if "tools" in name or name == "documents" else "x"})


def test_a_value_for_a_template_is_bounded_plain_data(server: Running) -> None:
    deep: Any = "x"
    for _ in range(150):
        deep = [deep]
    for value in (deep, {"a": deep}):
        answer = server.post("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"date_string": value}})
        assert answer.status == 400
    assert server.serves_the_next()
