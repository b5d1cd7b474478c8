"""What a soak asks: every kind of request that is answered, by users who each have a canary, and what is refused.

All good questions are greedy or have a seed: an answer is a function of its question, so a page, a row or a word of
somebody else's shows as another answer.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CANARY = re.compile(rb"canary-(\d{5})")


@dataclass(frozen=True)
class Question:
    """path: of the answer in one piece; stream_path: of the streamed one. None = there is none."""

    kind: str
    user: int
    path: str | None
    fields: dict[str, Any]
    stream_path: str | None

    @property
    def whole_path(self) -> str:
        """Where the answer comes in one piece; to what the page streams, from where chats do."""
        return self.path or _CHATS


def canary(user: int) -> str:
    return f"canary-{user:05d}"


def story(user: int, n_words: int = 12) -> str:
    """A text of the user's, with the canary in front and behind."""
    rng = random.Random(user)
    words = [rng.choice(("dog", "ball", "moon", "garden", "story", "little", "bird")) for _ in range(n_words)]
    return f"{canary(user)} {' '.join(words)} {canary(user)}"


def _chat(user: int, said: str = "Tell me of it.") -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"You know {canary(user)}."},
        {"role": "user", "content": story(user, 3)},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": said},
    ]


_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["here", "there"]}, "days": {"type": "integer"}},
                "required": ["place", "days"],
                "additionalProperties": False,
            },
        },
    }
]
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "is_good": {"type": "boolean"}, "n": {"type": "integer"}},
    "required": ["name", "is_good", "n"],
    "additionalProperties": False,
}
_GREEDY = {"temperature": 0}
_DRAWN = {"temperature": 1.0, "top_p": 0.95, "ignore_eos": True}
_COMPLETIONS, _CHATS = "/v1/completions", "/v1/chat/completions"


def questions(user: int) -> list[Question]:
    """One of each kind."""
    n_tokens = 4 + user % 29
    greedy = _GREEDY | {"max_tokens": n_tokens, "ignore_eos": True}
    drawn = _DRAWN | {"max_tokens": n_tokens, "seed": user}
    made: list[Question] = []

    def add(kind: str, path: str | None, stream_path: str | None, **fields: Any) -> None:
        made.append(Question(kind, user, path, fields, stream_path))

    def complete(kind: str, **fields: Any) -> None:
        add(kind, _COMPLETIONS, _COMPLETIONS, **fields)

    def chat(kind: str, **fields: Any) -> None:
        add(kind, _CHATS, _CHATS, **fields)

    complete("completion", prompt=story(user), **greedy)
    complete("drawn", prompt=story(user), **drawn)
    complete("echo", prompt=story(user), echo=True, **greedy)
    complete("long prompt", prompt=story(user, 45), **greedy)
    complete("long answer", prompt=story(user), **(greedy | {"max_tokens": 120}))
    complete("several answers", prompt=story(user), n=3, **(drawn | {"max_tokens": 90}))
    complete("several prompts", prompt=[story(user), story(user, 4), "Once"], **greedy)
    complete("stop strings", prompt=story(user), stop=["e", "a ", "\n"], **greedy)
    complete("salt", prompt=story(user), cache_salt=canary(user), **greedy)
    complete("penalties", prompt=story(user), repetition_penalty=1.3, logit_bias={"40": 5}, **drawn)
    complete("priority", prompt=story(user), priority=user % 5 - 2, **greedy)
    complete("regex", prompt=story(user), guided_regex="[a-z]{3,9} [0-9]+", **greedy)
    complete("choice", prompt=story(user), guided_choice=["yes", "no", canary(user)], **greedy)
    add("log probabilities", _COMPLETIONS, None, prompt=story(user), logprobs=3, echo=True, **greedy)
    chat("chat", messages=_chat(user), **greedy)
    chat("chat, several answers", messages=_chat(user), n=2, **drawn)
    chat("tools", messages=_chat(user), tools=_TOOLS, tool_choice="required", **_GREEDY, max_tokens=70)
    chat("tools, free", messages=_chat(user), tools=_TOOLS, **greedy)
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": _SCHEMA}}
    chat("schema", messages=_chat(user), response_format=form, **_GREEDY, max_tokens=40)
    add("generate", "/generate", "/stream", prompt=story(user), **greedy)
    add("own chat", "/chat", None, messages=_chat(user), **greedy)
    add("batch", "/generate_batch", None, prompts=[story(user), story(user, 5)], **drawn)
    add("page", None, "/page/stream", messages=_chat(user), **greedy)
    complete("search", prompt=story(user), beam_width=3, n=2, **greedy)
    complete("reranked search", prompt=story(user), beam_width=3, n=2, rerank={"alpha": 0.7}, **greedy)
    add("search, its steps", "/generate", "/stream_chat_beam", prompt=story(user), width=4, **greedy)
    add("best of several", "/generate", "/stream", prompt=story(user), method="sample", width=3, n=2, **drawn)
    steps = {"method": "steps", "width": 2, "branches": 2, "step_tokens": 3, "n": 2, "scorer": "likelihood"}
    add("search by steps", "/generate", "/stream", messages=_chat(user), **steps, **drawn)
    documents = [story(user, n_words) for n_words in (2, 5, 9)]
    add("rerank", "/v1/rerank", None, query=story(user, 4), documents=documents, return_documents=True)
    add("score", "/v1/score", None, text_1=documents, text_2=documents[::-1])
    add("embeddings", "/v1/embeddings", None, input=[story(user), story(user, 40)])
    add("tokenize", "/tokenize", None, prompt=story(user), return_token_strs=True)
    add("render", "/page/render", None, text=f"# {canary(user)}\n\n```python\nprint('{canary(user)}')\n```\n")
    return made


@dataclass(frozen=True)
class Bad:
    """What is refused. sent: bytes as they go over the wire, in place of a request with `body`."""

    kind: str
    statuses: tuple[int, ...]
    path: str = _COMPLETIONS
    body: bytes = b""
    sent: bytes = b""


def bad_questions(user: int) -> Iterator[Bad]:
    name = canary(user)

    def fields(kind: str, path: str = _COMPLETIONS, statuses: tuple[int, ...] = (400,), **given: Any) -> Bad:
        return Bad(kind, statuses, path, json.dumps(given).encode())

    yield Bad("no JSON", (400,), body=b"{" * 50 + name.encode())
    yield Bad("nested deep", (400,), body=b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}")
    yield Bad("a lone surrogate", (400,), body=b'{"prompt": "' + name.encode() + b' \\ud800"}')
    yield Bad("NaN", (400,), body=b'{"prompt": "' + name.encode() + b'", "temperature": NaN}')
    yield Bad("keys twice", (400,), body=b'{"prompt": "a", "prompt": "' + name.encode() + b'"}')
    yield Bad("no UTF-8", (400,), body=b'{"prompt": "\xff' + name.encode() + b'"}')
    yield Bad("too large a body", (413,), body=b'{"prompt": "' + 6000 * (name.encode() + b" ") + b'"}')
    yield fields("too long a prompt", prompt=story(user, 3000))
    yield fields("a wrong type", prompt=story(user), max_tokens="many " + name)
    yield fields("out of range", prompt=story(user), temperature=500)
    yield fields("too many answers", prompt=story(user), n=1_000_000_000)
    yield fields("no such model", statuses=(404,), prompt="a", model=name)
    yield fields("no such route", path="/v1/none", statuses=(404,), prompt=name)
    yield fields("a bad expression", prompt=story(user), guided_regex=f"({name}[")
    yield fields("a bad grammar", prompt=story(user), guided_grammar=f"root ::= {name} (")
    yield fields("a bad schema", prompt=story(user), guided_json={"type": name})
    yield fields("bad tools", _CHATS, messages=_chat(user), tools=[{"type": name}])
    yield fields("bad messages", _CHATS, messages=[{"role": name, "content": 3}])
    yield fields("too many beams", prompt=story(user), beam_width=65)
    yield fields("nothing to rerank", "/v1/rerank", query=name, documents=[])
    yield fields("pairs that are none", "/v1/score", text_1=[name] * 2, text_2=[name] * 3)
    yield fields("an empty prompt", prompt="")
    yield fields("token ids that are none", prompt=[10**9])
    yield Bad("no HTTP", (400,), sent=name.encode() + b"\r\n\r\n")
    yield Bad(
        "a bad length", (400,), sent=b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n"
    )


def new_grammar(number: int, user: int) -> dict[str, Any]:
    """A form of an answer that nobody has asked for before: caches of grammars have a bound."""
    words = [f"{canary(user)}-{number}-{i}" for i in range(4)]
    return {"prompt": "a", "guided_choice": words, "max_tokens": 40, **_GREEDY}
