"""What a user can rely on, a test a promise. docs/promises.md says what each means."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi_client import Exchange
from direct import DirectServer, ready_service
from fakes import Desk, FakeBackend, alone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_factory import hf_config, make_checkpoint, make_tokenizer, write_json
from pairs_of_fields import BESIDE, NEEDED, SAMPLES, Answer, Walk, fields_of, noops_of, pairs_of, walked_endpoints
from programs import FASTAPI, FLASK, Program
from scripted_model import ScriptedModel
from serving_fakes import make_service
from stand_in_hub import StandInHub

from llm_decoder import LLM, SamplingParams, SearchParams
from llm_decoder.api.app import create_app
from llm_decoder.convert import convert
from llm_decoder.serving.exchange import Endpoint
from llm_decoder.serving.routes import all_endpoints
from llm_decoder.serving.schemas_rerank import RerankRequest, ScoreRequest

ROOT = Path(__file__).parents[2]
SERVERS = {"fastapi": FASTAPI, "flask": FLASK}
PRECISIONS: dict[str, dict[str, Any]] = {
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "bfloat16": {"dtype": "bfloat16"},
}
PROMPTS = [
    "Once upon a time there was a little girl who lived near a big forest. Every day she",
    "Tom and his dog found a red ball under the old tree. They did not know whose ball it was, so they asked the bird.",
    "Hi",
    "The sun was warm and the sea was blue. " * 12,
]
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=11, max_tokens=48, ignore_eos=True, logprobs=2)
REQUESTS = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, SAMPLED)]


def contents(output: Any) -> Any:
    """Of an answer, what may depend on nothing else; floats are compared bit for bit."""
    return (
        [(one.token_ids, one.text, one.cumulative_logprob, one.logprobs, one.finish_reason) for one in output.outputs],
        output.prompt_logprobs,
    )


def answers_alone(precision: dict[str, Any], requests: Any = REQUESTS, **options: Any) -> list[Any]:
    """Each request by itself, and nothing of it in the cache before."""
    found = []
    with LLM(**precision, max_num_seqs=1, **options) as llm:
        for prompt, params in requests:
            forget(llm)
            (output,) = llm.generate(prompt, params)
            assert output.metrics.n_cached_tokens == 0
            found.append(contents(output))
    return found


def forget(llm: LLM) -> None:
    llm._engine.call(lambda backend: backend.cache.clear_prefix_index())


def page_bytes(precision: dict[str, Any], page_size: int) -> int:
    with LLM(**precision, page_size=page_size) as llm:
        stats = llm.stats()
    return int(stats["backend"]["kv_cache_bytes"] // stats["pages"]["n_pages"])


# -- 1


def test_1_an_abort_frees_its_pages_within_one_step() -> None:
    """At every moment of its life: in the line, in the middle of its prompt, answering three times over, preempted."""
    beside: dict[str, Any] = {"prompt": "another, who stays", "max_tokens": 30, "seed": 2, "ignore_eos": True}
    expected = alone(**beside)
    moments = set()
    for n_steps in range(60):
        desk = Desk(FakeBackend(n_pages=9, max_model_len=80, max_tokens_per_step=16))
        stays = desk.add(**beside)
        leaves = desk.add("hello " * 8, max_tokens=30, n=3, seed=1, ignore_eos=True)
        for _ in range(n_steps):
            desk.core.step()
        if desk.last(leaves) is not None:
            break
        n_preemptions = desk.core.stats()["n_preemptions"]
        n_sequences = desk.backend.cache.stats()["n_sequences"]
        moments.add((n_sequences, n_preemptions > 0))
        desk.core.cancel(leaves)
        desk.core.step()
        assert desk.backend.cache.stats()["n_sequences"] <= 1
        assert desk.backend.cache.stats()["n_held"] <= 3  # of the one who stays: 18 + 30 tokens
        desk.backend.cache.check_integrity()
        reasons = {completion.finish_reason for completion in desk.last(leaves).outputs}
        assert "abort" in reasons
        desk.run()
        assert contents(desk.last(stays)) == contents(expected)
        desk.assert_nothing_is_held()
    assert {n for n, _ in moments} >= {0, 1, 2, 4}
    assert any(was_preempted for _, was_preempted in moments)


# -- 2

BEGINNING = b"The same beginning for everybody, of three pages."
WORDS = [b"canary-%02d " % i for i in range(16)]
STRAY = ord("!")


def repeat_your_word(history: Any, logits: Any) -> None:
    """The model goes on with the word that its history repeats, and says so when there is any other in it."""
    after = bytes(history[len(BEGINNING) :].astype("uint8").tolist())
    word = after[: len(WORDS[0])]
    is_whole = word in WORDS and after == (word * (len(after) // len(word) + 1))[: len(after)]
    is_mine = is_whole and bytes(history[: len(BEGINNING)].astype("uint8").tolist()) == BEGINNING
    logits[after[-len(word)] if is_mine else STRAY] = 50.0


def test_2_no_request_sees_anothers_tokens() -> None:
    """Each client knows one word. A page that is another's, or that was, would bring another word into its answer."""
    backend = FakeBackend(n_pages=22, max_model_len=160, max_tokens_per_step=32)
    backend.spoil = repeat_your_word
    service = make_service(backend, max_requests=64)
    app = create_app(service)
    n_cached = []

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(6):
            word, n_tokens, n = rng.choice(WORDS), rng.choice((5, 30, 60)), rng.choice((1, 1, 3))
            prompt = BEGINNING + word * rng.randrange(1, 4)
            stream = rng.random() < 0.5
            asked = {"prompt": list(prompt), "max_tokens": n_tokens, "n": n, "stream": stream, "seed": seed}
            options = {"stream_options": {"include_usage": True}} if stream else {}
            body = json.dumps(asked | options | {"priority": rng.randrange(3)}).encode()
            headers = {"content-type": "application/json"}
            exchange = Exchange(app, "POST", "/v1/completions", body=body, headers=headers)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() / 20)
                exchange.hang_up()
                await exchange.end()
                continue
            await exchange.end()
            assert exchange.status == 200, exchange.body
            texts, usage = texts_and_usage(exchange, stream)
            assert texts == {i: (word * 20)[:n_tokens].decode() for i in range(n)}
            n_cached.append(usage["prompt_tokens_details"]["cached_tokens"])

    async def everybody() -> None:
        await asyncio.gather(*(client(seed) for seed in range(20)))

    asyncio.run(everybody())
    stats = service.llm.stats()
    service.close(30)
    assert stats["n_preemptions"] > 0
    assert stats["n_finished"]["abort"] > 0
    assert max(n_cached) >= len(BEGINNING) // 16 * 16
    assert backend.cache.stats()["n_held"] == 0
    backend.cache.check_integrity()


def texts_and_usage(exchange: Exchange, stream: bool) -> tuple[dict[int, str], Any]:
    if not stream:
        answer = exchange.json()
        return {choice["index"]: choice["text"] for choice in answer["choices"]}, answer["usage"]
    *events, done = exchange.events()
    assert done == "[DONE]"
    texts: dict[int, str] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts, events[-1]["usage"]


# -- 3, 5, 6


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_3_the_same_seed_gives_the_same_tokens_at_any_batch_size(precision: dict[str, Any]) -> None:
    expected = answers_alone(precision, threads=1, max_tokens_per_step=1024)
    assert len({str(tokens) for tokens in expected}) == len(expected)
    with LLM(**precision) as llm:
        for size in (2, 5, 16):
            batch = [(i * 3 + size) % len(REQUESTS) for i in range(size)]
            outputs = llm.generate([REQUESTS[i][0] for i in batch], [REQUESTS[i][1] for i in batch])
            assert [contents(output) for output in outputs] == [expected[i] for i in batch]


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_4_one_beam_is_greedy_and_the_score_of_every_beam_is_that_of_its_log_probabilities(
    precision: dict[str, Any],
) -> None:
    with LLM(**precision) as llm:
        one = llm.search(PROMPTS, SearchParams(width=1, max_tokens=48, ignore_eos=True))
        greedy = llm.generate(PROMPTS, GREEDY)
        assert [output.outputs[0].token_ids for output in one] == [output.outputs[0].token_ids for output in greedy]
        for output in llm.search(PROMPTS, SearchParams(width=6, n=6, max_tokens=20, logprobs=0)):
            for answer in output.outputs:
                logprobs = [entry.logprob for entry in answer.logprobs or []]
                again = llm.score([*output.prompt_token_ids, *answer.token_ids])[-len(answer.token_ids) :]
                assert answer.beam_score == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
                assert logprobs == pytest.approx(again.tolist(), abs=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_5_what_was_preempted_or_evicted_is_computed_again_the_same(precision: dict[str, Any]) -> None:
    expected = answers_alone(precision, page_size=32)
    with LLM(**precision, page_size=32, kv_cache_bytes=9 * page_bytes(precision, 32)) as llm:
        outputs = llm.generate([prompt for prompt, _ in REQUESTS], [params for _, params in REQUESTS])
        assert [contents(output) for output in outputs] == expected
        assert llm.stats()["n_preemptions"] > 0
        for word in ("Other", "More", "Last"):
            llm.generate(f"{word} words, " * 40, GREEDY)
        again = [llm.generate(*REQUESTS[i])[0] for i in (6, 2)]
        assert again[0].metrics.n_cached_tokens == 0  # its pages had been there, and had to go
        assert [contents(output) for output in again] == [expected[6], expected[2]]
        stats = llm.stats()
        assert stats["pages"]["n_held"] == 0


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_6_a_prefix_hit_answers_as_a_cold_prompt(precision: dict[str, Any]) -> None:
    """Tokens, their log probabilities and those of the prompt, and whatever is asked of the next token's."""
    scored = SamplingParams(max_tokens=12, seed=3, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    cut = SamplingParams(max_tokens=24, temperature=0, stop=["."], logprobs=1, repetition_penalty=1.3)
    with LLM(**precision) as llm:
        (first,) = llm.generate(PROMPTS[3], GREEDY)
        longer = PROMPTS[3] + first.outputs[0].text[:60]
        requests = [(prompt, params) for prompt in (PROMPTS[3], longer) for params in (GREEDY, SAMPLED, scored, cut)]
        warm = [llm.generate(*request)[0] for request in requests]
    hits = [output.metrics.n_cached_tokens for output, (_, params) in zip(warm, requests, strict=True)]
    assert sum(n_cached >= 96 for n_cached in hits) >= 6  # where a prompt is scored, it is computed whole
    assert [contents(output) for output in warm] == answers_alone(precision, requests)


# -- 7, 8: over HTTP

TOOLS_TEMPLATE = """{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Calls are <tool_call>{"name": ..., "arguments": ...}</tool_call>
{% endif %}{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("program")
    (folder / "template.jinja").write_text(TOOLS_TEMPLATE)
    program = Program(request.param, folder / "log", "--chat-template", str(folder / "template.jinja"))
    try:
        program.wait_until_ready()
        yield program
    finally:
        program.process.terminate()
        assert program.process.wait(60) == 0, program.log.read_text()


CHAT = [{"role": "user", "content": "Tell me a story about a dog."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 99}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
WIDE = "é日😀ß"  # of two, three and four bytes, which are tokens of their own
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0},
    "n answers": {"n": 2, "seed": 5, "temperature": 1.0},
    "stop strings": {"seed": 3, "n": 2, "stop": [" the", "dog ", ". "], "max_tokens": 60},
    "stop strings that stay": {"seed": 3, "stop": [" the", ". "], "include_stop_str_in_output": True},
    "characters of several bytes": {"seed": 1, "structured_outputs": {"regex": f"[{WIDE}]{{9}}"}, "max_tokens": 80},
    "bytes that are no characters": {"seed": 2, "temperature": 3.0, "allowed_token_ids": ..., "n": 3},
    "a form": {"seed": 4, "structured_outputs": {"json": {"enum": ["red", "blue", "😀"]}}},
    "special tokens": {"seed": 6, "temperature": 5.0, "skip_special_tokens": False, "ignore_eos": True},
}
ONE_PROMPT = {"prompt": PROMPTS[0], "max_tokens": 40}
STREAMED: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/completions", ONE_PROMPT | more) for more in TEXTS.values()),
    ("/v1/completions", {"prompt": [PROMPTS[0], "The dog"], "n": 2, "seed": 5, "max_tokens": 20, "echo": True}),
    *(("/v1/chat/completions", {"messages": CHAT, "max_tokens": 40} | more) for more in TEXTS.values()),
    ("/v1/chat/completions", {"messages": CHAT, "seed": 1, "tools": [WEATHER], "tool_choice": "required"}),
    ("/v1/chat/completions", {"messages": CHAT, "seed": 2, "tools": [WEATHER], "max_tokens": 40, "n": 2}),
    *(("/generate", ONE_PROMPT | more) for more in TEXTS.values()),
    ("/chat", {"messages": CHAT, "temperature": 0, "max_tokens": 40}),
]


def test_7_a_streams_concatenation_is_the_text_of_no_stream(program: Program) -> None:
    wide = json.loads(program.ask("/tokenize", {"content": WIDE}))["tokens"]
    assert len(wide) > len(WIDE)
    n_calls = 0
    for path, asked in STREAMED:
        body = {name: wide if value is ... else value for name, value in asked.items()}
        whole = whole_texts(json.loads(program.ask(path, body)))
        streamed, n_pieces = streamed_texts(program.ask(path, body | {"stream": True}))
        assert streamed == whole, (path, body)
        assert n_pieces > 1
        n_calls += sum(bool(calls) for _, calls, _ in whole.values())
        if "regex" in str(body):
            assert all(set(text) <= set(WIDE) and len(text) == 9 for text, _, _ in whole.values())
    assert n_calls >= 1


def whole_texts(answer: Any) -> dict[int, Any]:
    """{index of an answer: (its text, its calls of tools, why it ended)}"""
    if "choices" not in answer:
        found = answer.get("outputs") or [{"index": 0, **answer}]
        return {one["index"]: (one["text"], [], one["finish_reason"]) for one in found}
    texts = {}
    for choice in answer["choices"]:
        message = choice.get("message", choice)
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
        text = message["text"] if "text" in message else message["content"] or ""
        texts[choice["index"]] = (text, calls, choice["finish_reason"])
    return texts


def streamed_texts(raw: bytes) -> tuple[dict[int, Any], int]:
    """The same, of the events of a stream joined, and how many of them had text."""
    blocks = [block for block in raw.decode().split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == "data: [DONE]"
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    texts: dict[int, str] = {}
    calls: dict[int, list[list[str]]] = {}
    reasons: dict[int, str] = {}
    n_pieces = 0
    for choice in (choice for event in events for choice in event.get("choices", [event])):
        index, piece = choice.get("index", 0), choice.get("delta", choice)
        text = piece.get("text") or piece.get("content") or ""
        texts[index] = texts.get(index, "") + text
        for call in piece.get("tool_calls") or []:
            mine = calls.setdefault(index, [])
            if call["index"] == len(mine):
                mine.append(["", ""])
            mine[call["index"]][0] += call["function"].get("name") or ""
            mine[call["index"]][1] += call["function"].get("arguments") or ""
        n_pieces += bool(text or piece.get("tool_calls"))
        if choice.get("finish_reason"):
            assert index not in reasons
            reasons[index] = choice["finish_reason"]
    return {i: (texts[i], [(a, b) for a, b in calls.get(i, [])], reasons[i]) for i in texts}, n_pieces


# -- 8

POSTS = [endpoint for endpoint in all_endpoints() if endpoint.method == "POST"]
MESSAGES = [{"role": "user", "content": "a"}]
GOOD = {"prompt": "a", "prompts": ["a"], "messages": MESSAGES, "input": "a", "tokens": [1]}
PAIRS: dict[Any, dict[str, Any]] = {
    RerankRequest: {"query": "a", "documents": ["a", "b"]},
    ScoreRequest: {"text_1": "a", "text_2": ["a", "b"]},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 20, 21, 4095, 4096, 2**31 - 1, 2**31, -(2**63), 2**64, 10**30])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\x00", "\ud83d\ude00", "auto", "none", "required", "json_object", "storyteller", "scripted"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
plausible = st.sampled_from(
    [
        *(MESSAGES, [TOOL], {"include_usage": True}, {"type": "json_object"}, {"regex": "a+"}, {"choice": ["a"]}),
        *(["a", "b"], [1, 2], [[1, 2], [3]], {"1": 1.5}, {"enable_thinking": True}, {"json": {"type": "integer"}}),
        *([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], 0.5, True, 3, "a"),
    ]
)


@pytest.fixture(scope="module")
def scripted() -> Iterator[DirectServer]:
    model = ScriptedModel()
    yield DirectServer(ready_service(model.llm))
    model.llm.close()


@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_8_no_input_gives_a_5xx(scripted: DirectServer, endpoint: Endpoint, data: st.DataObject) -> None:
    """Any fields with any values, through the real engine."""
    assert endpoint.request is not None
    names = sorted(endpoint.request.model_fields)
    good = PAIRS.get(endpoint.request, GOOD)
    body: dict[str, Any] = {name: good[name] for name in names if name in good and data.draw(st.integers(0, 9))}
    if "messages" in body and "prompt" in body:
        del body[data.draw(st.sampled_from(["messages", "prompt"]))]
    if "max_tokens" in names:
        body["max_tokens"] = 3
    aliases = [endpoint.request.model_fields[name].alias or name for name in names]
    body |= data.draw(st.dictionaries(st.sampled_from(aliases), plausible | values, max_size=5))
    status, answer, _ = scripted.post(endpoint.path, json.dumps(body).encode())
    assert status == 200 or 400 <= status < 500, (body, answer)
    if isinstance(answer, list):
        assert not any("error" in event for event in answer), (body, answer)


LARGE = 1 << 20
WORD = b"a" * LARGE  # to a tokenizer one word: how little of it counts shows when it has been read
HOSTILE: list[tuple[str, bytes]] = [
    ("/v1/completions", b"[" * LARGE),
    ("/v1/completions", b'{"prompt":' * 100_000),
    ("/v1/completions", b'{"prompt": "' + b"a " * (LARGE // 2) + b'"}'),
    ("/v1/completions", b'{"prompt": [' + b"1," * (LARGE // 2) + b"1]}"),
    ("/v1/completions", b'{"prompt": "\\ud800"}'),
    ("/v1/completions", b'{"prompt": "' + b"\\u0000" * 1000 + b'", "max_tokens": 1}'),
    ("/v1/completions", b'{"prompt": "a", "n": 1000000000, "max_tokens": 1000000000}'),
    ("/v1/completions", b'{"prompt": "a", "n": 128, "max_tokens": 1000000000}'),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}"),
    ("/v1/completions", b'{"prompt": "a", "guided_regex": "' + b"(" * 30_000 + b")" * 30_000 + b'"}'),
    ("/v1/completions", b'{"prompt": "a", "guided_regex": "((a{1,999}){1,999}){1,999}", "max_tokens": 2}'),
    ("/v1/completions", b'{"prompt": "a", "grammar": "root ::= root root"}'),
    ("/v1/completions", b'{"prompt": "a", "json_schema": ' + b'{"items":' * 150 + b"{}" + b"}" * 150 + b"}"),
    ("/v1/completions", b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d":1' % i for i in range(300_000)) + b"}}"),
    ("/v1/completions", b'{"prompt": "a", "stop": [' + b'"a",' * 500_000 + b'"a"]}'),
    ("/v1/chat/completions", b'{"messages": [' + b'{"role":"user","content":"a"},' * 100_000 + b'{"role": 1}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": [' + b"{}," * 1000 + b"{}]}]}"),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ range(9) }}"}'),
    ("/v1/embeddings", b'{"input": [' + b'"a",' * 1_000_000 + b'"a"]}'),
    ("/v1/completions", b'{"prompt": "a", "beam_width": 1000000000, "n": 1000000000, "max_tokens": 1}'),
    ("/v1/completions", b'{"prompt": "a", "beam_width": 4, "max_tokens": 2, "rerank": {"query": "' + WORD + b'"}}'),
    ("/v1/completions", b'{"prompt": "a", "beam_width": 4, "rerank": {"alpha": NaN}}'),
    ("/stream_chat_beam", b'{"prompt": "a", "max_tokens": 2, "method": "steps", "separator": "' + WORD + b'"}'),
    ("/v1/rerank", b'{"query": "' + WORD + b'", "documents": [' + b'"a",' * 2000 + b'"a"]}'),
    (
        "/v1/rerank",
        b'{"query": "a", "documents": ["' + WORD + b'", "' + b" " * LARGE + b'", "' + b"a " * LARGE + b'"]}',
    ),
    ("/v1/rerank", b'{"query": "a", "documents": [' + b'"a",' * 100_000 + b'"a"]}'),
    ("/v1/rerank", b'{"query": "a", "documents": [' + b'{"text":1},' * 100_000 + b"{}]}"),
    ("/v1/rerank", b'{"query": "a", "documents": ' + b"[" * LARGE),
    ("/v1/rerank", b'{"query": "a", "documents": ["\\ud800"]}'),
    ("/v1/rerank", b'{"query": "a", "texts": ["' + b"\\u0000" * 100_000 + b'"], "raw_scores": true}'),
    ("/v1/rerank", b'{"query": "a", "documents": ["a"], "top_n": NaN}'),
    ("/v1/rerank", b'{"query": "a", "documents": ["a"], "top_n": ' + b"9" * 100_000 + b"}"),
    ("/v1/rerank", b'{"query": {"text": "a"}, "documents": {"text": "a"}, "texts": 1e999, "model": []}'),
    ("/v1/score", b'{"text_1": "' + WORD + b'", "text_2": [' + b'"a",' * 2000 + b'"a"]}'),
    ("/v1/score", b'{"queries": [' + b'"a b",' * 2000 + b'"c"], "documents": [' + b'"b a",' * 2000 + b'"c"]}'),
    ("/v1/score", b'{"text_1": "a", "text_2": [' + b'"a",' * 1_000_000 + b'"a"]}'),
    ("/v1/score", b'{"text_1": "\\ud800", "text_2": ["\\udfff"]}'),
    ("/v1/score", b'{"text_1": ' + b'[{"a":' * 50_000 + b"1" + b"}]" * 50_000 + b', "text_2": "a"}'),
    ("/v1/score", b'{"text_1": [NaN, 1e999, -0, null, true], "text_2": Infinity}'),
    ("/tokenize", b'{"prompt": "' + "😀".encode() * (LARGE // 4) + b'"}'),
    ("/detokenize", b'{"tokens": [' + b"4095," * 500_000 + b"1]}"),
    ("/generate", b"\xff\xfe" * 1000),
    ("/generate_batch", b'{"prompts": [' + b'"a",' * 100_000 + b'"a"]}'),
    ("/v1/completions", b"x" * (9 << 20)),
]
GROWTH_BYTES = 64 << 20


def test_8_hostile_bodies_crash_nothing_and_leave_no_memory_taken(program: Program) -> None:
    def round_of_bodies() -> None:
        for path, body in HOSTILE:
            status = status_of(program, path, body)
            assert status == 200 or 400 <= status < 500, (path, body[:80], status)
            assert status_of(program, "/v1/completions", b'{"prompt": "a", "max_tokens": 1}') == 200

    round_of_bodies()
    before = anonymous_bytes(program)
    for _ in range(2):
        round_of_bodies()
    assert anonymous_bytes(program) - before < GROWTH_BYTES
    assert "Traceback" not in program.log.read_text()


def status_of(program: Program, path: str, body: bytes) -> int:
    request = urllib.request.Request(program.url + path, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except urllib.error.URLError as error:
        # A body over the limit may be refused before it is read to its end.
        if not isinstance(error.reason, (BrokenPipeError, ConnectionResetError)):
            raise
        return 413


def anonymous_bytes(program: Program) -> int:
    lines = Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


# -- 9


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_9_sigterm_truncates_no_answer_inside_the_drain_window(command: list[str], tmp_path: Path) -> None:
    """Answers that are streamed, that are not, and the page's own: whole, and then the program ends well."""
    program = Program(command, tmp_path / "log", "--drain-s", "120", "--threads", "1")
    long = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "Once", **long}),
        ("/v1/completions", {"prompt": "The dog", "stream": True, **long}),
        ("/page/stream", {"messages": CHAT, **long}),
    ]
    answers: dict[int, bytes] = {}

    def get(i: int) -> None:
        answers[i] = program.ask(*asked[i])

    try:
        program.wait_until_ready()
        threads = [threading.Thread(target=get, args=(i,)) for i in range(len(asked))]
        for thread in threads:
            thread.start()
        running = re.compile(rb"num_requests_running\{[^}]*\} 3\.0")
        while not running.search(program.ask("/metrics")):
            assert not answers, "an answer was over before all had begun"
        program.process.send_signal(signal.SIGTERM)
        while is_taking_requests(program):
            time.sleep(0.01)
        assert not answers, "they were over before the signal could hurt them"
        for thread in threads:
            thread.join(120)
        assert program.process.wait(120) == 0
    finally:
        program.process.kill()
        program.process.wait()
    whole = json.loads(answers[0])
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"]
    assert whole["usage"]["completion_tokens"] == 900
    assert streamed_texts(answers[1])[0][0][2] == "length"
    assert answers[2].rstrip().endswith(b"data: [DONE]")
    assert b'"completion_tokens":900' in answers[2]
    assert "Traceback" not in program.log.read_text()


def is_taking_requests(program: Program) -> bool:
    """A new one finds a closed port, or is told that the server closes."""
    body = b'{"prompt": "a", "max_tokens": 1}'
    try:
        return status_of(program, "/v1/completions", body) == 200
    except OSError:
        return False


# -- 10

OFFLINE = """
import os, sys
FORBIDDEN = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"}
def watch(event, arguments):
    if event in FORBIDDEN:
        print("NETWORK", event, arguments[1:], file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(watch)
from llm_decoder.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_10_offline_reaches_no_network(tmp_path: Path) -> None:
    """A program that would connect, or look a name up, ends with 99 at once."""
    with StandInHub({"owner/fetched": make_checkpoint(tmp_path / "source", "llama")}) as hub:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": paths}

        def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", program, *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

        few = ("--max-tokens", "3", "--temperature", "0")
        assert run(OFFLINE, "generate", "Once", "--model", "owner/fetched", *few).returncode == 99  # the judge sees it
        online = OFFLINE.replace("sys.addaudithook(watch)", "")
        fetched = run(online, "generate", "Once", "--model", "owner/fetched", *few)
        assert fetched.returncode == 0, fetched.stderr
        assert hub.requests
        hub.requests.clear()
        for model in ((), ("--model", "owner/fetched")):
            done = run(OFFLINE, "generate", "Once", "--offline", *model, *few)
            assert done.returncode == 0, done.stderr
        assert done.stdout == fetched.stdout
        for verb in (("generate", "Once"), ("serve", "--port", "0")):
            done = run(OFFLINE, *verb, "--offline", "--model", "owner/absent")
            assert done.returncode == 1, done.stderr
            assert "owner/absent" in done.stderr
            assert "--offline" in done.stderr
            assert "Traceback" not in done.stderr
        assert hub.requests == []


# -- 11

RAN = "the code of a model has run"
PICKLED = b"cos\nsystem\n(S'touch %s'\ntR."
OPENING = """
import json, os, sys
from pathlib import Path
from llm_decoder import LLM, SamplingParams, SearchParams
from llm_decoder.config.files import load_settings
from llm_decoder.errors import LLMDecoderError
PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"}
def watch(event, arguments):
    of_a_model = (event == "import" and "evil" in str(arguments[0])) or (
        event == "exec" and "evil" in getattr(arguments[0], "co_filename", ""))
    if of_a_model or event in PROGRAMS:
        print("RAN", event, arguments, file=sys.stderr, flush=True)
        os._exit(99)
sys.addaudithook(watch)
for case in json.loads(sys.argv[1]):
    try:
        if case["config_dir"]:
            load_settings(Path(case["config_dir"]), environment={})
        with LLM(case["model"], threads=1) as llm:
            params = SamplingParams(max_tokens=1, ignore_eos=True)
            output = llm.chat([{"role": "user", "content": "Hi"}], params)
            told = output.prompt
            told = told if isinstance(told, str) else llm.tokenizer.decode(output.prompt_token_ids)
    except LLMDecoderError as error:
        told = type(error).__name__ + ": " + str(error)
    print(json.dumps(told))
"""
ESCAPES = [
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ (messages | map(attribute='__class__') | list)[0].__name__ }}",
    "{% set f = ''.format %}{{ f.__self__.__class__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{% include 'evil.py' %}",
    "{% import 'os' as os %}{{ os.system('touch MARK') }}",
]


def test_11_no_code_from_model_files_runs(tmp_path: Path) -> None:
    """A program that imports a model's file, unpickles, or starts another program ends with 99 at once."""
    mark = tmp_path / "mark"
    evil = f"open({str(mark)!r}, 'w')\nraise RuntimeError({RAN!r})\n"
    auto_map = {name: "modeling_evil.Evil" for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")}
    remote = {"auto_map": auto_map, "trust_remote_code": True, "_attn_implementation_internal": "evil/kernel"}
    cases: list[tuple[Path, Path | None, str]] = []

    def model(name: str, told: str, **options: Any) -> Path:
        folder = make_checkpoint(tmp_path / name, "llama", **options)
        for file_name in ("modeling_evil.py", "configuration_evil.py", "evil.py", "__init__.py", "conftest.py"):
            (folder / file_name).write_text(evil)
        cases.append((folder, None, told))
        return folder

    folder = model("evil_known", "Hi", **remote)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", tokenizer_config | remote | {"tokenizer_class": "EvilTokenizer"})
    (folder / "pytorch_model.bin").write_bytes(PICKLED % os.fsencode(mark))
    unknown = model("evil_unknown", "UnsupportedModelError")
    write_json(unknown / "config.json", hf_config("llama") | remote | {"model_type": "evil"})
    for i, escape in enumerate(ESCAPES):
        # What a template must not see is undefined, or the template is refused.
        model(f"evil_template_{i}", "", chat_template=escape.replace("MARK", str(mark)) + "{{ messages[0].content }}")
    pickled = tmp_path / "evil_pickled"
    write_json(make_tokenizer(pickled) / "config.json", hf_config("llama"))
    (pickled / "pytorch_model.bin").write_bytes(PICKLED % os.fsencode(mark))
    cases.append((pickled, None, "UnsupportedModelError"))
    weights = tmp_path / "evil_weights" / "weights"
    convert(make_checkpoint(tmp_path / "plain", "llama"), weights)
    tag = f"!!python/object/apply:os.system ['touch {mark}']\n"
    for name in ("weight_paths.yaml", "model_config.yaml"):
        found = next(weights.rglob(name))
        kept = found.read_text()
        settings_of = tmp_path / f"evil_{name}"
        settings_of.mkdir()
        (settings_of / "runtime_config.yaml").write_text("temperature: " + tag)
        cases.append((folder, settings_of, "ConfigError"))
        copy = tmp_path / f"evil_copy_{name}"
        subprocess.run(["cp", "-r", str(weights.parent), str(copy)], check=True)
        (copy / found.relative_to(weights.parent)).write_text(kept + "\nevil: " + tag)
        cases.append((copy / "weights", None, "Error: "))
    asked = [{"model": str(path), "config_dir": config and str(config)} for path, config, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", OPENING, json.dumps(asked)], capture_output=True, text=True, timeout=120, cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(cases)
    for said, (path, _, expected) in zip(told, cases, strict=True):
        assert expected in said, (path, said)
        assert RAN not in said
        assert not re.search(r"<class|<module|<function|<built-in", said), (path, said)
    assert not mark.exists()


# -- 12


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    walk = Walk()
    yield walk
    walk.close()


@pytest.mark.parametrize("endpoint", walked_endpoints(), ids=lambda endpoint: endpoint.path)
def test_12_an_unsupported_combination_is_a_clear_400(walk: Walk, endpoint: Endpoint) -> None:
    """Every field, and every pair of two, that a schema has: an answer that shows what was asked for, or a refusal that
    names a field. A field is ignored when the request is answered as if it were not there."""
    fields, noops = fields_of(endpoint), noops_of(endpoint)
    assert set(fields) <= set(SAMPLES) | set(NEEDED), "a new field needs a sample in pairs_of_fields.py"
    plain = walk.ask(endpoint)
    assert plain.status == 200, plain.error
    if noops:
        assert walk.ask(endpoint, *noops) == plain
    troubles: list[str] = []
    for name in sorted(set(fields) - set(noops) - set(NEEDED)):
        beside = [] if name not in BESIDE or not set(BESIDE[name]) <= set(fields) else BESIDE[name]
        without = {name: walk.ask(endpoint, *beside)}
        troubles += troubles_of(walk.ask(endpoint, *beside, name), without, name, *beside)
    for one, other in pairs_of(endpoint):
        without = {one: walk.ask(endpoint, other), other: walk.ask(endpoint, one)}
        troubles += troubles_of(walk.ask(endpoint, one, other), without, one, other)
    assert not troubles, "\n".join(troubles)


def troubles_of(answer: Answer, without: dict[str, Answer], *names: str) -> Iterator[str]:
    """What is wrong with the answer to a request of these fields. without: the answer to it without one of them."""
    if answer.ignored is not None:
        yield f"{names}: {answer.ignored} were ignored"
    if answer.status != 200:
        is_clear = answer.status == (404 if answer.error["code"] == "model_not_found" else 400)
        if not is_clear or not answer.names_one_of(names):
            yield f"{names}: {answer.status} {answer.error}"
        return
    for name, other in without.items():
        is_shown = name not in NEEDED and (name not in BESIDE or set(BESIDE[name]) <= set(names))
        if is_shown and other.status == 200 and answer.seen == other.seen:
            yield f"{names}: {name} changed nothing"


# -- 13


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_13_reranking_keeps_every_answer_and_its_own_score(method: Any) -> None:
    def shortest(prompt: str, answers: list[str]) -> list[float]:
        return [-float(len(answer)) for answer in answers]

    search: dict[str, Any] = {"method": method, "width": 6, "n": 6, "max_tokens": 20, "seed": 3}
    with LLM() as llm:
        plain = llm.search(PROMPTS, SearchParams(**search))
        unasked = llm.search(PROMPTS, SearchParams(**search, scorer=shortest, alpha=0.0))
        ranked = llm.search(PROMPTS, SearchParams(**search, scorer=shortest, alpha=0.7))
    for before, other, after in zip(plain, unasked, ranked, strict=True):
        assert other.outputs == before.outputs
        assert sorted(answer.beam_rank or 0 for answer in after.outputs) == list(range(len(before.outputs)))
        for answer in after.outputs:
            own = before.outputs[answer.beam_rank or 0]
            assert (answer.token_ids, answer.text, answer.beam_score) == (own.token_ids, own.text, own.beam_score)
            assert answer.rerank_score == -len(answer.text)
            assert answer.final_score == pytest.approx(0.7 * -len(answer.text) + 0.3 * (own.beam_score or 0.0))
        order = [(-(answer.final_score or 0.0), answer.beam_rank) for answer in after.outputs]
        assert order == sorted(order)


# -- the page


def test_the_page_of_promises_names_each_test_and_no_other() -> None:
    page = (ROOT / "docs" / "promises.md").read_text()
    source = Path(__file__).read_text()
    assert re.findall(r"`(test_\d+_\w+)`", page) == re.findall(r"^def (test_\d+_\w+)", source, re.M)
    assert "docs/promises.md" in (ROOT / "README.md").read_text()
