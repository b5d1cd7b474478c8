"""A search that a server runs, from the events of its /stream_chat_beam, as this library tells its own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Self

from llm_decoder.answers import Part, message_of
from llm_decoder.cli._remote_answers import is_chat, logprobs_of
from llm_decoder.outputs import (
    CandidateScores,
    Completion,
    RequestMetrics,
    RequestOutput,
    SearchStep,
    StreamEvent,
    TokenLogprob,
)
from llm_decoder.search.frontier import LiveBeam
from llm_decoder.search.run_file import SearchRun, read_node

if TYPE_CHECKING:
    from collections.abc import Generator

    from llm_decoder.prompts import Prompt
    from llm_decoder.search.params import SearchParams

__all__ = ["GatheredSearch", "RemoteSearch"]

_SCORES = ("beam_score", "beam_rank", "tree_leaf", "rerank_score", "final_score")


class RemoteSearch(Iterator[StreamEvent]):
    """The events, as those of LLM.stream_search. live: the beams that go on after the last one, with the ends of their
    texts. texts: of the tree's nodes, which only the server can tell. `close` ends the search there."""

    def __init__(self, gathered: GatheredSearch, events: Generator[StreamEvent, None, None]) -> None:
        self._gathered = gathered
        self._events = events

    @property
    def live(self) -> Sequence[LiveBeam]:
        return self._gathered.live

    @property
    def texts(self) -> dict[int, str]:
        return self._gathered.run.texts

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def close(self) -> None:
        self._events.close()


class GatheredSearch:
    """What the events have told so far. A step's event waits for what was let go in it, which comes behind it."""

    def __init__(self, prompt: Prompt, params: SearchParams) -> None:
        self._prompt = prompt
        self._params = params
        self._is_chat = is_chat(prompt)
        self._started_s = time.monotonic()
        self._first_s: float | None = None
        self._step: SearchStep | None = None
        self._beams: list[LiveBeam] = []
        self.live: list[LiveBeam] = []
        self.run = SearchRun({})
        self.request_id = ""

    def add(self, name: str, data: dict[str, Any]) -> Iterator[StreamEvent]:
        """Raises KeyError, TypeError, ValueError or AttributeError for what is no event of a search."""
        self._first_s = self._first_s or time.monotonic()
        if name == "beam.prune":
            self._prune(data["node"], data["reason"])
        elif name == "beam.step":
            yield from self._told()
            self._begin(data)
        elif name == "rerank":
            yield from self._told()
            yield StreamEvent(0, "", [], rerank=tuple(_candidate(one) for one in data["choices"]))
        else:
            yield self._gain(data)

    def _told(self) -> Iterable[StreamEvent]:
        step = self._taken()
        return [] if step is None else [StreamEvent(0, "", [], search=step)]

    def _taken(self) -> SearchStep | None:
        """The step that has waited; its beams are the live ones now."""
        step, self._step = self._step, None
        if step is not None:
            self.live = self._beams
        return step

    def _begin(self, data: dict[str, Any]) -> None:
        nodes = []
        for value in data["nodes"]:
            node, text = read_node(value)
            self.run.add(node, text)
            nodes.append(replace(node))
        self._beams = [LiveBeam(beam["leaf"], float(beam["score"]), str(beam["tail"])) for beam in data["live"]]
        live = tuple(beam.leaf for beam in self._beams)
        self._step = SearchStep(data["step"], tuple(nodes), (), (), live, data["finished"])

    def _prune(self, node: int, reason: str) -> None:
        if self._step is None or not 0 < node < len(self.run.tree):
            raise ValueError("need a node of the tree behind a step")
        self.run.tree.prune(node, str(reason))
        self._step = replace(self._step, pruned=(*self._step.pruned, node), reasons=(*self._step.reasons, str(reason)))

    def _gain(self, data: dict[str, Any]) -> StreamEvent:
        text = data["text"]
        parts = _parts(data) if self._is_chat else None
        event = StreamEvent(
            0,
            text,
            data["token_ids"],
            data.get("finish_reason"),
            self._logprobs(data),
            stop_reason=data.get("stop_reason"),
            parts=parts,
            search=self._taken(),
        )
        if event.finish_reason is not None:
            event.output = self._output(data)
            event.dropped_messages = event.output.dropped_messages
        return event

    def _logprobs(self, data: dict[str, Any]) -> list[TokenLogprob] | None:
        n_top = self._params.logprobs
        return None if n_top is None else logprobs_of({"content": data["logprobs"]}, n_top)

    def _output(self, data: dict[str, Any]) -> RequestOutput:
        total_s = time.monotonic() - self._started_s
        usage, tree = data["usage"], data["tree"]
        n_generated = usage["completion_tokens_details"]["beam_tokens"]
        metrics = RequestMetrics(
            n_prompt_tokens=usage["prompt_tokens"],
            n_cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
            n_generated_tokens=n_generated,
            n_dropped_beams=0 if tree is None else tree["n_dropped_beams"],
            time_to_first_token_s=(self._first_s or 0.0) - self._started_s,
            total_s=total_s,
            tokens_per_s=n_generated / total_s if total_s > 0 else 0.0,
        )
        return RequestOutput(
            None if not isinstance(self._prompt, str) else self._prompt,
            data["prompt_token_ids"],
            [self._completion(candidate) for candidate in data["candidates"]],
            metrics,
            dropped_messages=data.get("dropped_messages", 0),
            request_id=self.request_id,
            tree=None if tree is None else self.run.tree,
        )

    def _completion(self, candidate: dict[str, Any]) -> Completion:
        return Completion(
            candidate["index"],
            candidate["text"],
            candidate["token_ids"],
            candidate["cumulative_logprob"],
            self._logprobs(candidate),
            candidate["finish_reason"],
            candidate.get("stop_reason"),
            message_of(_parts(candidate)) if self._is_chat else None,
            **{name: candidate[name] for name in _SCORES},
        )


def _parts(data: dict[str, Any]) -> list[Part]:
    reasoning = data.get("reasoning_content")
    return ([Part("reasoning", reasoning)] if reasoning else []) + (
        [Part("content", data["text"])] if data["text"] else []
    )


def _candidate(data: dict[str, Any]) -> CandidateScores:
    return CandidateScores(**{item.name: data[item.name] for item in fields(CandidateScores)})
