"""Our tokenizer and chat template against transformers' own, on the same folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models_factory import make_checkpoint
from tokenizers import Tokenizer

from llm_decoder.chat_template import ChatTemplate
from llm_decoder.embedded import embedded_model
from llm_decoder.tokenizer import load_tokenizer

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

TEXTS = ["", "Once upon a time", " two  spaces\n\n", "naïve café 🙂 שלום", "a\tb\r\n<|end|", "x" * 300, "1 + 1 = 2;"]
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Tell me a story."}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]
# The constructs that real templates are made of.
TEMPLATES = {
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
        "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}"
        "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
        "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "chatml with namespaces and macros": (
        "{%- macro turn(role, text) -%}\n<|im_start|>{{ role }}\n{{ text | trim }}<|im_end|>\n{%- endmacro -%}\n"
        "{%- set ns = namespace(n=0) %}\n"
        "{%- for message in messages %}\n    {%- set ns.n = ns.n + 1 %}\n{{ turn(message.role, message.content) }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}"
        "<|im_start|>assistant #{{ ns.n }} ~ {{ 'a' ~ ns.n ~ 'b' }}{%- endif %}"
    ),
    "tools as json": (
        "{% if tools %}{{ tools | tojson(indent=4) }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
        "{% for m in messages | reverse %}{{ m.content.split('\\n') | join('|') }}{{ m | tojson }}{% endfor %}"
        "{% for key, value in messages[0].items() %}{{ key }}={{ value }}{% if not loop.last %},{% endif %}{% endfor %}"
    ),
}
TOOLS = [{"type": "function", "function": {"name": "f<é>", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module", params=["factory", "embedded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return embedded_model()
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


def test_texts_become_the_same_ids_and_texts_again(folder: Path, theirs: Any) -> None:
    ours = load_tokenizer(folder)
    assert len(ours) == len(theirs)
    for text in TEXTS:
        for add_special_tokens in (False, True):
            ids = ours.encode(text, add_special_tokens)
            assert ids == theirs.encode(text, add_special_tokens=add_special_tokens)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_chats_become_the_same_ids(folder: Path, theirs: Any) -> None:
    ours = load_tokenizer(folder)
    for chat in CHATS:
        for prompt in (False, True):
            expected = theirs.apply_chat_template(chat, add_generation_prompt=prompt, tokenize=True, return_dict=False)
            assert ours.apply_chat_template(chat, add_generation_prompt=prompt) == list(expected)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_to_the_same_text(folder: Path, theirs: Any, name: str) -> None:
    tokens = {"bos_token": theirs.bos_token, "eos_token": theirs.eos_token}
    ours = ChatTemplate(TEMPLATES[name], tokens=tokens)
    tools = TOOLS if "tools" in name else None
    for chat in CHATS:
        expected = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=False, tools=tools
        )
        assert ours.render(chat, **({"tools": tools} if tools else {})) == expected


def test_an_open_final_message_is_rendered_the_same(folder: Path, theirs: Any) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    expected = theirs.apply_chat_template(chat, continue_final_message=True, tokenize=True, return_dict=False)
    assert load_tokenizer(folder).apply_chat_template(chat, continue_final_message=True) == list(expected)


def test_a_folder_without_tokenizer_json_goes_through_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = Tokenizer.from_file(str(make_checkpoint(tmp_path / "model", "llama") / "tokenizer.json"))
    old = tmp_path / "old"
    old.mkdir()
    source.model.save(str(old))  # vocab.json and merges.txt, as GPT-2's tokenizer keeps them
    (old / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end_of_text|>"}')
    text = "Once upon a time there was a naïve dog."
    ours = load_tokenizer(old)
    assert ours.encode(text) == source.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text
