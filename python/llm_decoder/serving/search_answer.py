"""What the answer to a search has beside texts: scores of its choices, its tree, its steps as named events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from llm_decoder.detokenizer import TextDecoder
from llm_decoder.outputs import CandidateScores, Completion, RequestOutput, StreamEvent
from llm_decoder.search.frontier import Frontier, LiveBeam
from llm_decoder.search.params import SearchParams
from llm_decoder.search.run_file import node_texts
from llm_decoder.search.tree import TreeNode
from llm_decoder.serving.sse import Chunk

if TYPE_CHECKING:
    from llm_decoder.sampling import SamplingParams
    from llm_decoder.serving.schemas_base import SamplingFields

__all__ = ["SearchAnswer", "scores_of"]

TreeDetail = Literal["none", "summary", "full"]

_MAX_TAIL_CHARS = 200
_SCORES = ("cumulative_logprob", "beam_score", "rerank_score", "final_score", "beam_rank", "tree_leaf")


class SearchAnswer:
    """For one request, of one prompt or several. Used by one thread at a time.

    tree: how much of it is told; a stream's named events have its nodes, its end the counts. has_steps, has_nodes:
    whether a stream has named events, and theirs have nodes.
    decoder: makes the texts of nodes, None = they have none.
    """

    def __init__(
        self, *, tree: TreeDetail, has_steps: bool, has_nodes: bool, decoder: TextDecoder | None, n_prompts: int
    ) -> None:
        self._tree = tree
        self._n_prompts = n_prompts
        self._has_steps = has_steps
        self._has_nodes = has_nodes
        self._decoder = decoder
        self._held: dict[int, list[StreamEvent]] = {}
        self._frontiers: dict[int, Frontier] = {}

    @classmethod
    def of(
        cls,
        request: SamplingFields,
        params: SamplingParams,
        decoder: TextDecoder | None,
        *,
        n_prompts: int = 1,
        has_steps: bool = False,
    ) -> SearchAnswer | None:
        """None where it is no search. has_steps: whether a stream has them without return_tree too."""
        if not isinstance(params, SearchParams):
            return None
        detail = request.return_tree or "none"
        return cls(
            tree=detail,
            has_steps=has_steps or detail != "none",
            has_nodes=has_steps or detail == "full",
            decoder=decoder,
            n_prompts=n_prompts,
        )

    # -- of answers

    @property
    def is_slow(self) -> bool:
        """Whether an answer takes long to make: the texts of every node."""
        return self._tree == "full"

    def tree(self, output: RequestOutput, *, is_streamed: bool = False) -> dict[str, Any]:
        """{"tree": ...}, where it was asked for. Best of n has none."""
        if self._tree == "none":
            return {}
        if output.tree is None:
            return {"tree": None}
        nodes = output.tree.nodes[1:]
        told: dict[str, Any] = {
            "n_nodes": len(nodes),
            "n_steps": max((node.step for node in nodes), default=0),
            "n_finished": sum(node.state == "finished" for node in nodes),
            "n_pruned": sum(node.state == "pruned" for node in nodes),
            "n_dropped_beams": output.metrics.n_dropped_beams,
            "leaves": [scores_of(completion) for completion in output.outputs],
        }
        if self._tree == "full" and not is_streamed:
            texts = {} if self._decoder is None else node_texts(output.tree, self._decoder, output.prompt_token_ids)
            told["nodes"] = [_node(node, texts.get(node.id, "")) for node in nodes]
        return {"tree": told}

    # -- of a stream

    def told(self, prompt_index: int, event: StreamEvent) -> list[tuple[StreamEvent, dict[str, Any]]]:
        """The events whose text is to be sent now, and what their choices have beside it: the ends of answers wait for
        the last of them, which has all scores."""
        if event.finish_reason is None:
            return [(event, {})] if event.text or event.token_ids else []
        held = self._held.setdefault(prompt_index, [])
        held.append(event)
        if event.output is None:
            return []
        scores = {completion.index: scores_of(completion) for completion in event.output.outputs}
        return [(one, scores[one.index]) for one in held]

    def named_events(self, prompt_index: int, event: StreamEvent) -> list[Chunk]:
        """beam.step, beam.prune and rerank; none where they were not asked for. Of several prompts each says which."""
        if not self._has_steps:
            return []
        which = {"prompt_index": prompt_index} if self._n_prompts > 1 else {}
        return [Chunk(data | which, name) for name, data in self._steps(prompt_index, event)]

    def _steps(self, prompt_index: int, event: StreamEvent) -> Iterator[tuple[str, dict[str, Any]]]:
        frontier = self._frontiers.setdefault(prompt_index, Frontier(self._decoder))
        texts = frontier.take(event)
        if event.search is not None:
            step = event.search
            live = [_beam(beam) for beam in frontier.live]
            told: dict[str, Any] = {"step": step.step, "live": live, "finished": step.n_finished}
            if self._has_nodes:
                told["nodes"] = [_node(node, texts[node.id]) for node in step.nodes]
            yield "beam.step", told
            for node, reason in zip(step.pruned, step.reasons, strict=True):
                yield "beam.prune", {"node": node, "reason": reason}
        if event.rerank is not None:
            yield "rerank", {"choices": [_candidate(candidate) for candidate in event.rerank]}


def scores_of(completion: Completion) -> dict[str, Any]:
    """What a choice has of a search."""
    return {name: getattr(completion, name) for name in _SCORES}


def _node(node: TreeNode, text: str) -> dict[str, Any]:
    return {item.name: getattr(node, item.name) for item in fields(TreeNode)} | {"text": text}


def _beam(beam: LiveBeam) -> dict[str, Any]:
    """Of a long text the end."""
    return {"leaf": beam.leaf, "score": beam.score, "tail": beam.tail[-_MAX_TAIL_CHARS:]}


def _candidate(candidate: CandidateScores) -> dict[str, Any]:
    return {item.name: getattr(candidate, item.name) for item in fields(CandidateScores)}
