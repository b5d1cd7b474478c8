"""Answers of a server of the OpenAI API, whole or from their chunks, as this library tells them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from llm_decoder.answers import Part, message_of
from llm_decoder.errors import ServerError
from llm_decoder.outputs import Completion, FinishReason, RequestMetrics, RequestOutput, StreamEvent, TokenLogprob

if TYPE_CHECKING:
    from llm_decoder.prompts import Prompt
    from llm_decoder.sampling import SamplingParams

__all__ = ["GatheredAnswers", "is_chat", "logprobs_of"]


def is_chat(prompt: Prompt) -> bool:
    """As prompts.is_chat, which imports numpy: a client of a server starts without."""
    return not isinstance(prompt, str) and bool(prompt) and not isinstance(prompt[0], int)


@dataclass
class GatheredAnswers:
    """An answer, or several to one prompt, from their chunks."""

    prompt: Prompt
    params: SamplingParams
    dropped_messages: int = 0
    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    prompt_token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    answers: dict[int, Completion] = field(default_factory=dict)
    parts: dict[int, list[Part]] = field(default_factory=dict)

    def add(self, chunk: dict[str, Any]) -> Iterator[StreamEvent]:
        """Raises KeyError, TypeError for what is no chunk."""
        self.usage = chunk.get("usage") or self.usage
        self.prompt_token_ids = chunk.get("prompt_token_ids") or self.prompt_token_ids
        for choice in chunk.get("choices") or ():
            self.prompt_token_ids = choice.get("prompt_token_ids") or self.prompt_token_ids
            yield self._take(choice)

    def _take(self, choice: dict[str, Any]) -> StreamEvent:
        index = choice.get("index", 0)
        if index not in self.answers:
            self.answers[index] = Completion(index, "", [], float("nan"))
            self.parts[index] = []
        answer = self.answers[index]
        parts = _parts(choice["delta"]) if "delta" in choice else None
        text = choice["text"] if parts is None else "".join(part.text for part in parts if part.kind == "content")
        ids = choice.get("token_ids") or []
        if self.first_s is None and (text or parts or ids):
            self.first_s = time.monotonic()
        answer.text += text
        answer.token_ids += ids
        logprobs = logprobs_of(choice.get("logprobs"), self.params.logprobs or 0)
        if logprobs:
            answer.logprobs = (answer.logprobs or []) + logprobs
        if choice.get("prompt_logprobs"):
            self.prompt_logprobs = _prompt_logprobs(
                choice["prompt_logprobs"], self.prompt_token_ids, self.params.prompt_logprobs or 0
            )
        if choice.get("finish_reason") is not None:
            answer.finish_reason = cast(FinishReason, choice["finish_reason"])
            answer.stop_reason = choice.get("stop_reason")
        self.parts[index] += parts or ()
        return StreamEvent(
            index,
            text,
            ids,
            answer.finish_reason,
            logprobs,
            dropped_messages=self.dropped_messages,
            stop_reason=answer.stop_reason,
            parts=parts,
        )

    def output(self) -> RequestOutput:
        """Of an answer that is over."""
        total_s = time.monotonic() - self.started_s
        first_s = total_s if self.first_s is None else self.first_s - self.started_s
        n_generated = self.usage.get("completion_tokens") or sum(len(a.token_ids) for a in self.answers.values())
        is_chat = not isinstance(self.prompt, str)
        for index, answer in self.answers.items():
            if answer.logprobs is not None:
                answer.cumulative_logprob = sum(entry.logprob for entry in answer.logprobs)
            if is_chat:
                answer.message = message_of(self.parts[index])
        metrics = RequestMetrics(
            n_prompt_tokens=self.usage.get("prompt_tokens") or len(self.prompt_token_ids),
            n_cached_tokens=(self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            n_generated_tokens=n_generated,
            time_to_first_token_s=first_s,
            total_s=total_s,
            tokens_per_s=(n_generated - 1) / (total_s - first_s) if n_generated > 1 and total_s > first_s else 0.0,
        )
        return RequestOutput(
            None if is_chat else cast(str, self.prompt),
            self.prompt_token_ids,
            [self.answers[index] for index in sorted(self.answers)],
            metrics,
            self.prompt_logprobs,
            self.dropped_messages,
        )


def _parts(delta: dict[str, Any]) -> list[Part]:
    """reasoning: newer servers' name of reasoning_content."""
    reasoning = delta.get("reasoning_content") or delta.get("reasoning")
    pairs = (("reasoning", reasoning), ("content", delta.get("content")))
    return [Part(cast(Any, kind), text) for kind, text in pairs if text]


def logprobs_of(given: dict[str, Any] | None, n_top: int) -> list[TokenLogprob] | None:
    """Of an answer, in the form of /v1/completions or of a chat. Raises ServerError where tokens have no ids."""
    if not given:
        return None
    if "content" in given:
        entries = given["content"] or ()
        tokens = [entry["token"] for entry in entries]
        values = [entry["logprob"] for entry in entries]
        tops = [{top["token"]: top["logprob"] for top in entry.get("top_logprobs") or ()} for entry in entries]
    else:
        tokens, values = given["tokens"], given["token_logprobs"]
        tops = given.get("top_logprobs") or [{}] * len(tokens)
    return [_entry(token, value, top or {}, n_top) for token, value, top in zip(tokens, values, tops, strict=True)]


def _entry(token: str, logprob: float, top: dict[str, float], n_top: int) -> TokenLogprob:
    """rank: 0 where the server does not say it. top: may have the token itself beyond the n_top best."""
    best = sorted(((_token_id(name), value) for name, value in top.items()), key=lambda pair: -pair[1])[:n_top]
    ranks = {name: rank for rank, (name, _) in enumerate(best, 1)}
    token_id = _token_id(token)
    return TokenLogprob(token_id, logprob, ranks.get(token_id, 0), tuple(best))


def _token_id(name: str) -> int:
    if not name.startswith("token_id:"):
        raise ServerError("[--logprobs] need a server that names tokens by their ids, got texts; leave it out")
    return int(name.removeprefix("token_id:"))


def _prompt_logprobs(given: list[Any], token_ids: Sequence[int], n_top: int) -> list[TokenLogprob | None]:
    entries: list[TokenLogprob | None] = []
    for token_id, one in zip(token_ids, given, strict=True):
        if one is None:
            entries.append(None)
            continue
        best = sorted((entry["rank"], int(name), entry["logprob"]) for name, entry in one.items())[:n_top]
        own = one[str(token_id)]
        entries.append(TokenLogprob(token_id, own["logprob"], own["rank"], tuple((i, p) for _, i, p in best)))
    return entries
