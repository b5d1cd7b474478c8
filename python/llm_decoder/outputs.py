"""What a request gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llm_decoder.answers import AnswerMessage, Part
    from llm_decoder.search.tree import SearchTree, TreeNode

__all__ = [
    "CandidateScores",
    "Completion",
    "FinishReason",
    "RequestMetrics",
    "RequestOutput",
    "SearchStep",
    "StreamEvent",
    "TokenLogprob",
]

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of one token, of the raw logits. rank: 1 = the most likely. top: (token id, log
    probability) of the most likely tokens, best first."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Completion:
    """One answer. token_ids holds the end token too; text does not (see SamplingParams.include_stop_str_in_output).

    finish_reason: "stop" (an end token, or a stop string), "length" (max_tokens, or the end of the context), "abort"
    (cancelled). stop_reason: the stop string or stop token id that ended it, None for the model's own end tokens.
    message: in a chat, the answer taken apart into content, reasoning and calls of tools.
    Of a search: beam_score is what answers were compared by, the sum of log probabilities over a power of the length;
    tree_leaf the node of the output's `tree` where this one ends; beam_rank its place by beam_score, 0 = the best.
    Where a scorer was asked (SearchParams.scorer): rerank_score is what it gave, final_score what answers are ordered
    by.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    message: AnswerMessage | None = None
    beam_score: float | None = None
    tree_leaf: int | None = None
    beam_rank: int | None = None
    rerank_score: float | None = None
    final_score: float | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Counts in tokens, times in seconds. n_generated_tokens is over all answers of the request.

    n_drafted_tokens were guessed ahead and computed; n_accepted_tokens of them were what the model drew.
    n_dropped_beams were given up by a search for want of pages.
    time_to_first_token_s and total_s count from submission; queue_s is the part spent waiting for a place.
    tokens_per_s: generated tokens a second after the first one; 0 when there was no second.
    """

    n_prompt_tokens: int = 0
    n_cached_tokens: int = 0
    n_generated_tokens: int = 0
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    n_preemptions: int = 0
    n_dropped_beams: int = 0
    queue_s: float = 0.0
    time_to_first_token_s: float = 0.0
    total_s: float = 0.0
    tokens_per_s: float = 0.0


@dataclass(slots=True)
class RequestOutput:
    """Everything a request gave back. prompt is None when the request came as token ids.

    prompt_logprobs: an entry a prompt token, the first None. dropped_messages: how many of the oldest messages of a
    chat were left out because the chat had outgrown the context. rows: of a request made for them instead of answers,
    float32 [n_tokens, vocab_size or hidden_size]; None when it was cancelled before all were there. tree: of a search,
    what it has looked at.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    dropped_messages: int = 0
    request_id: str = ""
    rows: npt.NDArray[np.float32] | None = None
    tree: SearchTree | None = None


@dataclass(frozen=True, slots=True)
class SearchStep:
    """What one turn of a search did. nodes: of its tree, new ones. pruned: ids of nodes, new ones or not, that were let
    go. live: ids of the beams that go on, the best first within each group. n_finished: answers so far."""

    step: int
    nodes: tuple[TreeNode, ...]
    pruned: tuple[int, ...]
    live: tuple[int, ...]
    n_finished: int


@dataclass(frozen=True, slots=True)
class CandidateScores:
    """The scores of one of the answers that a search has followed, see Completion. index: its place by final_score; an
    answer is given of the first n only."""

    index: int
    tree_leaf: int | None
    beam_rank: int
    beam_score: float
    rerank_score: float
    final_score: float


@dataclass(slots=True)
class StreamEvent:
    """What one answer gained since its last event. text is complete UTF-8; the texts of an index, joined, are the
    text of its Completion. parts: in a chat, what the answer gained as content, reasoning or calls of tools; marks
    between these are in no part. The last event of an answer has finish_reason and stop_reason; the last of the request
    has `output` as well. search: of a search, what its last turn did; text is then what every answer begins with that
    may still be the best. rerank: the scores of all answers of a search, the best first, once a scorer has given them;
    the events after it have the answers. prompt_token_ids: the request's own list, not to be changed."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    output: RequestOutput | None = None
    dropped_messages: int = 0
    stop_reason: str | int | None = None
    prompt_token_ids: Sequence[int] = ()
    parts: Sequence[Part] | None = None
    search: SearchStep | None = None
    rerank: tuple[CandidateScores, ...] | None = None
