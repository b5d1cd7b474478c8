"""Requests of one field and of two, made of a route's schema, and what can be seen of them: what the engine was asked
for, and the answer without its time of day."""

from __future__ import annotations

import asyncio
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asgi_client import ask
from fakes import FakeBackend

from llm_decoder.api.app import create_app
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.embedded import embedded_model
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.llm import LLM
from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.serving.schemas_base import SamplingFields
from llm_decoder.serving.schemas_chat import ChatRequest
from llm_decoder.serving.schemas_completions import CompletionRequest
from llm_decoder.serving.schemas_own import GenerateRequest
from llm_decoder.serving.schemas_rerank import RerankRequest, ScoreRequest
from llm_decoder.serving.service import Service
from llm_decoder.tokenizer import load_tokenizer

__all__ = ["BESIDE", "NEEDED", "SAMPLES", "Answer", "Walk", "fields_of", "noops_of", "pairs_of", "walked_endpoints"]

TEMPLATE = """{%- if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Calls are <tool_call>{"name": ..., "arguments": ...}</tool_call>
{% endif %}
{%- if enable_thinking is defined %}thinking {{ enable_thinking }}
{% endif %}
{%- for document in documents or [] %}{{ document | tojson }}
{% endfor %}
{%- if reasoning_effort is defined %}effort {{ reasoning_effort }}
{% endif %}
{%- for message in messages %}<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% if enable_thinking is defined and enable_thinking %}<think>
{% endif %}{% endif %}{# answers may begin with <think>...</think> #}"""

MESSAGES = [{"role": "user", "content": "Weather in Paris?"}, {"role": "assistant", "content": "It is"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
# What a route cannot do without.
NEEDED: dict[str, Any] = {
    "prompt": "Once<|begin_of_text|>",
    "content": "Twice<|begin_of_text|>",
    "prompts": ["Once", "The"],
    "messages": MESSAGES,
    "input": "Once",
    "tokens": [302],
}
LENGTHS = frozenset({"max_tokens", "max_completion_tokens", "n_predict"})

# A value of every field that asks for something.
SAMPLES: dict[str, Any] = {
    "model": "another",
    "n": 2,
    "max_tokens": 5,
    "max_completion_tokens": 6,
    "n_predict": 7,
    "min_tokens": 2,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.4,
    "min_p": 0.3,
    "repetition_penalty": 1.5,
    "repeat_penalty": 1.25,
    "presence_penalty": 1.5,
    "frequency_penalty": -1.5,
    "logit_bias": {"300": 5},
    "allowed_token_ids": [300, 301, 302],
    "bad_words": ["dog"],
    "seed": 2,
    "stop": ["zebra"],
    "stop_token_ids": [303],
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
    "prompt_logprobs": 1,
    "cache_salt": "tenant",
    "priority": 5,
    "structured_outputs": {"choice": ["red", "blue"]},
    "response_format": {"type": "json_object"},
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "request_id": "mine",
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "guided_json": {"type": "integer"},
    "guided_regex": "[a-c]{3}",
    "guided_choice": ["one", "two"],
    "guided_grammar": 'start: "x" "y"',
    "json_schema": {"type": "boolean"},
    "grammar": 'root ::= "x" "z"',
    "cache_prompt": False,
    "timings_per_token": True,
    "use_beam_search": True,
    "beam_width": 3,
    "num_beams": 3,
    "num_beam_groups": 3,
    "num_return_sequences": 2,
    "diversity_penalty": 0.5,
    "length_penalty": 2.0,
    "early_stopping": True,
    "return_tree": "full",
    "rerank": {"model": "x"},
    "width": 3,
    "method": "sample",
    "groups": 2,
    "scorer": "likelihood",
    "alpha": 0.25,
    "normalise": "sigmoid",
    "query": "Where?",
    "separator": ".",
    "step_tokens": 9,
    "branches": 3,
    "best_of": 3,
    "truncate_prompt_tokens": 5,
    "prompt_embeds": "AAAA",
    "suffix": "end",
    "echo": True,
    "logprobs": 2,
    "top_logprobs": 2,
    "add_special_tokens": False,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "reasoning_effort": "high",
    "include_reasoning": False,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"enable_thinking": True},
    "documents": [{"title": "a", "text": "b"}, {"title": "c", "text": "d"}],
    "chat_template": "{{ messages }}",
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "audio": {"voice": "x"},
    "modalities": ["text", "audio"],
    "web_search_options": {},
    "dimensions": 8,
    "encoding_format": "base64",
    "texts": ["Rain", "Snow"],
    "text_1": "Who?",
    "text_2": ["You", "I"],
    "queries": "How?",
    "top_n": 1,
    "return_documents": True,
    "return_text": True,
    "raw_scores": True,
    # No-ops.
    "user": "somebody",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "a",
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "spaces_between_special_tokens": True,
    "return_progress": True,
    "prediction": {"type": "content", "content": "a"},
    "verbosity": "low",
    # Of /tokenize.
    "add_special": True,
    "parse_special": True,
    "return_token_strs": True,
    "with_pieces": True,
}


# What routes of pairs of texts cannot do without, and what may be given in place of it.
PAIRS: dict[type, dict[str, Any]] = {
    RerankRequest: {"query": "When?", "documents": ["Soon", "Later"]},
    ScoreRequest: {"text_1": "When?", "text_2": ["Soon", "Later"]},
}
IN_PLACE_OF = {"texts": "documents", "queries": "text_1", "documents": "text_2"}

# What says how something else is done or told: beside that, and satisfied of itself without it.
BESIDE: dict[str, tuple[str, ...]] = {
    "return_tokens_as_token_ids": ("logprobs",),
    "parallel_tool_calls": ("tools", "tool_choice"),
    "include_reasoning": ("chat_template_kwargs",),
}
# Said of messages, on routes that take a text too.
OF_MESSAGES = frozenset({"add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"})
# Names of one number of answers, beams and groups.
N, BEAMS, GROUPS = ("n", "num_return_sequences"), ("beam_width", "num_beams", "width"), ("groups", "num_beam_groups")
# What asks for nothing beside the other: the same by another name; that beams are wanted, beside their number; a
# message that goes on, or a text, has no beginning of an answer behind it; nothing but a prompt has special
# tokens around it.
ONE_THING = frozenset(
    {("add_generation_prompt", other) for other in ("content", "continue_final_message", "prompt")}
    | {pair for names in (N, BEAMS, GROUPS) for pair in itertools.combinations(names, 2)}
    | {(name, "use_beam_search") for name in ("beam_width", "num_beams")}
    | {("use_beam_search", "width")}
    | {tuple(sorted(("add_special_tokens", other))) for other in ("add_special", "content", "messages", *OF_MESSAGES)}
)
# Names of one thing: an error may have any of them.
FORMS = frozenset(
    {"structured_outputs", "response_format", "json_schema", "grammar"}
    | {f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar")}
)


@dataclass(frozen=True)
class Answer:
    """seen: what a client and the engine can tell of the request, comparable between requests."""

    status: int
    seen: str
    error: Mapping[str, Any]
    ignored: str | None

    def names_one_of(self, names: Sequence[str]) -> bool:
        field = str(self.error.get("param")).split(".")[0]
        is_form = field == "structured_outputs" and bool(FORMS & set(names))
        return field in names or is_form or all(name in self.error["message"] for name in names)


def walked_endpoints() -> list[Endpoint]:
    return [endpoint for endpoint in all_endpoints() if endpoint.method == "POST" and endpoint.request is not None]


def fields_of(endpoint: Endpoint) -> dict[str, Any]:
    """{name in a request: its pydantic field}"""
    assert endpoint.request is not None
    return {field.alias or name: field for name, field in endpoint.request.model_fields.items()}


def noops_of(endpoint: Endpoint) -> list[str]:
    return [name for name, field in fields_of(endpoint).items() if (field.description or "").startswith("no-op")]


class Hashes:
    """A reranker whose scores are a hash of each pair."""

    name = "hashes"

    def score(self, query: str, documents: Sequence[str]) -> list[float]:
        return [zlib.crc32(f"{query}|{document}".encode()) / 2**32 for document in documents]


class Walk:
    """A real server over an engine whose tokens are a hash of all that came before, so that one token more or less
    shows."""

    def __init__(self) -> None:
        tokenizer = load_tokenizer(embedded_model())
        tokenizer.chat_template = ChatTemplate(TEMPLATE, tokens=tokenizer.special_tokens)
        # Pages so large that nothing is found again: how often a request came before must not show.
        backend = FakeBackend(n_pages=8, page_size=512, vocab_size=4096, max_model_len=512)
        engine = Engine(lambda: backend, tokenizer, EngineOptions(eos_token_ids=frozenset(tokenizer.eos_token_ids)))
        self.llm = LLM.over(engine, tokenizer, "walked", reranker=Hashes())
        self._asked: list[Any] = []
        self._spy()
        self.service = Service(lambda: self.llm)
        self.service.start()
        assert self.service.wait(30)
        self._app = create_app(self.service)
        self._runner = asyncio.Runner()
        self._known: dict[str, Answer] = {}

    def _spy(self) -> None:
        engine = self.llm._engine
        submit = engine.submit

        def watched(token_ids: Any, params: Any, *, grammar: Any = None, **more: Any) -> Any:
            order = {name: more.get(name) for name in ("priority", "stream", "rows")}
            self._asked.append([list(token_ids), repr(params), order])
            return submit(token_ids, params, grammar=grammar, **more)

        engine.submit = watched  # type: ignore[method-assign]

    def close(self) -> None:
        self.service.close(0)
        self._runner.close()

    def body(self, endpoint: Endpoint, names: Sequence[str]) -> dict[str, Any]:
        fields = fields_of(endpoint)
        given = [name for name in ("prompt", "content", "messages") if name in names]
        if OF_MESSAGES & set(names) and "messages" in fields:
            given = given or ["messages"]
        if "add_special" in names:
            given = given or ["content"]
        texts = given or [name for name in ("prompt", "messages") if name in fields][:1]
        others = [name for name in ("prompts", "input", "tokens") if name in fields]
        body = {name: NEEDED[name] for name in (*texts, *others)}
        replaced = {IN_PLACE_OF.get(name) for name in names}
        body |= {name: value for name, value in PAIRS.get(endpoint.request, {}).items() if name not in replaced}
        if "seed" in fields:
            body["seed"] = 1
        if "max_tokens" in fields and not LENGTHS & set(names):
            body["max_tokens"] = 3
        return body | {name: self._sample(endpoint, name) for name in names}

    def _sample(self, endpoint: Endpoint, name: str) -> Any:
        if endpoint.request is ChatRequest and name in ("logprobs", "add_special_tokens"):
            return True
        if endpoint.path in ("/stream", "/stream_chat_beam") and name == "stream":
            return False
        if endpoint.path == "/stream_chat_beam" and name == "use_beam_search":
            return False
        if endpoint.request is ScoreRequest and name == "documents":
            return ["Never", "Now"]
        return {**SAMPLES, **NEEDED}[name]

    def ask(self, endpoint: Endpoint, *names: str) -> Answer:
        key = f"{endpoint.path} {sorted(names)}"
        if key not in self._known:
            self._known[key] = self._ask(endpoint.path, self.body(endpoint, names))
        return self._known[key]

    def _ask(self, path: str, body: Any) -> Answer:
        self._asked.clear()
        exchange = self._runner.run(
            ask(self._app, "POST", path, json_body=body, headers={"content-type": "application/json"})
        )
        ignored = exchange.headers.get("x-ignored-fields")
        if exchange.status != 200:
            return Answer(exchange.status, "", exchange.json()["error"], ignored)
        is_stream = exchange.headers["content-type"].startswith("text/event-stream")
        answer = [event for event in exchange.events() if event != "[DONE]"] if is_stream else exchange.json()
        return Answer(200, json.dumps([self._asked, is_stream, _plain(answer)], sort_keys=True), {}, ignored)


def pairs_of(endpoint: Endpoint) -> Iterator[tuple[str, str]]:
    """Of fields that do something. Those that all routes share are read by one piece of code: pairs of them are asked
    for on the first route. So it is with those that this project's own routes share."""
    shared = set() if endpoint.request is CompletionRequest else set(SamplingFields.model_fields)
    if endpoint.path in ("/stream", "/stream_chat_beam", "/chat", "/generate_batch"):
        shared |= set(GenerateRequest.model_fields)
    for pair in itertools.combinations(sorted(set(fields_of(endpoint)) - set(noops_of(endpoint))), 2):
        if not shared.issuperset(pair) and pair not in ONE_THING:
            yield pair


def _plain(value: Any) -> Any:
    """Without what is different each time: times, and ids that the server has made itself."""
    if isinstance(value, dict):
        return {
            name: sorted(item)
            if name == "timings"
            else (None if name == "created" else ("mine" in str(item) if name == "id" else _plain(item)))
            for name, item in value.items()
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value
