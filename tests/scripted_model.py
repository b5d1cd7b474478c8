"""A model that writes what a test tells it to: the real engine and the embedded model's tokenizer over scripted logits,
with the chat template of a family that calls tools and reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
from fakes import FakeBackend

from llm_decoder.chat_template import ChatTemplate
from llm_decoder.embedded import embedded_model
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.llm import LLM
from llm_decoder.tokenizer import load_tokenizer

CHATML = """{%- if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Calls are <tool_call>{"name": ..., "arguments": ...}</tool_call>
{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% if enable_thinking is defined and enable_thinking %}<think>
{% endif %}{% endif %}"""
REASONING = CHATML + "{# answers may begin with <think>...</think> #}"


class ScriptedModel:
    def __init__(self, template: str = REASONING) -> None:
        self._tokenizer = load_tokenizer(embedded_model())
        self._tokenizer.chat_template = ChatTemplate(template, tokens=self._tokenizer.special_tokens)
        self.backend = FakeBackend(n_pages=256, vocab_size=4096, max_model_len=1024)
        self.backend.spoil = self._write
        self._script: list[int] = []
        self._n_prompt: int | None = None
        engine = Engine(lambda: self.backend, self._tokenizer, EngineOptions(eos_token_ids=frozenset({self._end})))
        self.llm = LLM.over(engine, self._tokenizer, "scripted")

    @property
    def _end(self) -> int:
        return next(iter(self._tokenizer.eos_token_ids))

    def says(self, text: str) -> None:
        """What it answers to the next prompts of one length."""
        self._script = [*self._tokenizer.encode(text, add_special_tokens=False), self._end]
        self._n_prompt = None

    def _write(self, history: Any, logits: Any) -> None:
        if not self._script:
            return
        if self._n_prompt is None:
            self._n_prompt = len(history)
        place = min(len(history) - self._n_prompt, len(self._script) - 1)
        logits += np.float32(-8)
        logits[self._script[place]] = 40
