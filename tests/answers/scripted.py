"""A model that writes what a test says, through the whole engine: real tokens, real sampler, real grammar."""

from __future__ import annotations

from typing import Any

import numpy as np
from fakes import FakeBackend
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from llm_decoder.chat_template import ChatTemplate
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.llm import LLM
from llm_decoder.tokenizer import Tokenizer

END = "<|end|>"
ANSWER = "<|assistant|>"
SPECIAL_TOKENS = [END, ANSWER, "<|user|>", "<|system|>", "<|tool|>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]",
                  "[CALL_ID]", "[THINK]", "[/THINK]"]  # fmt: skip
# Tokens of their own that are not special, as Qwen has them.
PLAIN_TOKENS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

_HEAD = """\
{%- if tools %}{{ '<|system|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|end|>' }}{% endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>' + message.content }}
    {%- for call in message.tool_calls %}"""
_TAIL = """\
{% endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% if enable_thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"""


def template(call: str = "", more: str = "") -> str:
    """A template that writes calls as `call` does, and says `more` where nobody sees it."""
    return f"{_HEAD}{call}{_TAIL}{{# {more} #}}"


_CHATML_CALL = (
    """{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    "{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}"
)
CHATML = template(_CHATML_CALL)
CHATML_REASONS = template(_CHATML_CALL, "</think>")
LLAMA3 = template(
    """{{ '{"name": "' + call.function.name + '", "parameters": ' }}{{ call.function.arguments | tojson }}{{ '}' }}""",
    "<|python_tag|>",
)
MISTRAL = template("{{ '[TOOL_CALLS] [' }}{{ call.function | tojson }}{{ ']' }}")
MISTRAL_REASONS = template("", "[TOOL_CALLS] [/THINK]")
MISTRAL_ARGS = template("{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{ call.function.arguments | tojson }}")
NO_TOOLS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"


def make_tokenizer(source: str, marks_are_tokens: bool = True) -> Tokenizer:
    """A token a byte, and those of marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(SPECIAL_TOKENS if marks_are_tokens else SPECIAL_TOKENS[:5])
    rust.add_tokens(PLAIN_TOKENS if marks_are_tokens else [])
    return Tokenizer(rust, special_tokens={"eos_token": END}, chat_template=ChatTemplate(source))


def make_llm(source: str, answer: str, max_model_len: int = 4096, marks_are_tokens: bool = True) -> LLM:
    """An LLM with this chat template, which writes `answer`, as far as the request lets it."""
    tokenizer = make_tokenizer(source, marks_are_tokens)
    script = [*tokenizer.encode(answer, allow_special_tokens=True), *tokenizer.eos_token_ids]
    begin = tokenizer.token_id(ANSWER)
    backend = FakeBackend(n_pages=max_model_len // 8, vocab_size=len(tokenizer), max_model_len=max_model_len)

    def follow(history: Any, logits: Any) -> None:
        written = history[np.flatnonzero(history == begin)[-1] + 1 :].tolist()
        n_prompt = next((n for n in range(len(written) + 1) if script[: len(written) - n] == written[n:]), 0)
        logits[script[min(len(written) - n_prompt, len(script) - 1)]] += 50

    backend.spoil = follow
    engine = Engine(lambda: backend, tokenizer, EngineOptions(eos_token_ids=tokenizer.eos_token_ids))
    return LLM.over(engine, tokenizer, "scripted")
