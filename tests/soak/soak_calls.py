"""The questions of a soak as calls of an engine that no server stands before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from soak_questions import Question, questions

from llm_decoder.llm import LLM
from llm_decoder.outputs import RequestOutput
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams

_RENAMED = {"beam_width": "width"}
_PROMPTS = ("prompt", "prompts", "messages")
_KNOWN = {field.name for field in fields(SearchParams)} | {*_RENAMED, *_PROMPTS, "priority", "rerank"}


@dataclass(frozen=True)
class Call:
    """prompts: texts and chats, each a request of its own."""

    kind: str
    user: int
    prompts: Sequence[Any]
    params: SamplingParams
    priority: int = 0

    @property
    def is_search(self) -> bool:
        return isinstance(self.params, SearchParams)


# Of a prompt the answers: token ids, text, how it ended.
Answers = list[tuple[list[int], str, str | None]]


def calls(user: int) -> list[Call]:
    """One of each kind of question that an engine is asked, without those whose form needs a grammar."""
    return [call_of(question) for question in questions(user) if set(question.fields) <= _KNOWN]


def call_of(question: Question) -> Call:
    given = {_RENAMED.get(name, name): value for name, value in question.fields.items()}
    priority = given.pop("priority", 0)
    if "rerank" in given:
        given |= {"scorer": "reranker", **given.pop("rerank")}
    (prompts,) = (given.pop(name) for name in _PROMPTS if name in given)
    several = isinstance(prompts, list) and isinstance(prompts[0], str)
    params = (SearchParams if given.keys() & {"width", "method"} else SamplingParams)(**given)
    return Call(question.kind, question.user, prompts if several else [prompts], params, priority)


def ask(llm: LLM, call: Call) -> list[RequestOutput]:
    handles = [llm.submit(prompt, call.params, priority=call.priority) for prompt in call.prompts]
    return [handle.result() for handle in handles]


def answers_of(output: RequestOutput) -> Answers:
    return [(list(answer.token_ids), answer.text, answer.finish_reason) for answer in output.outputs]
