"""What a search may be asked: SamplingParams, and how many answers are followed, kept and ranked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams, checked_integer, checked_real, refuse_field

__all__ = [
    "MAX_QUERY_CHARS",
    "MAX_WIDTH",
    "EarlyStopping",
    "Method",
    "Normalise",
    "Scorer",
    "ScorerFunction",
    "SearchParams",
    "checked_search",
]

MAX_WIDTH = 64
MAX_QUERY_CHARS = 1 << 20

Method = Literal["beam", "sample"]
EarlyStopping = Literal["never"] | bool

# scorer(query, answers): a finite number for each answer, the higher the better.
ScorerFunction = Callable[[str, list[str]], Collection[float]]
Scorer = Literal["logprob", "reranker", "likelihood"] | ScorerFunction
Normalise = Literal["none", "sigmoid", "zscore"]

_METHODS = ("beam", "sample")
_SCORERS = ("logprob", "reranker", "likelihood")
_NORMALISE = ("none", "sigmoid", "zscore")


@dataclass(frozen=True, kw_only=True)
class SearchParams(SamplingParams):
    """How one request is searched. Every field is checked; InvalidRequestError names the bad one.

    All fields of SamplingParams mean what they mean there, but for two: the temperature of beams is 0 unless given
    (above 0 they are sampled), and n answers of the `width` that are followed come back, the best first.

    width: beams, or samples of method "sample". 1 to 64.
    method: "beam" keeps the `width` likeliest continuations at each token; "sample" draws `width` whole answers and
        ranks them (best of n).
    length_penalty: a sum of log probabilities counts as sum / n_tokens ** length_penalty. -10 to 10; 0 = the sum.
    early_stopping: False ends the search when no beam can win any more if beams get no longer, "never" also when they
        may grow to max_tokens, True as soon as `width` answers are finished (as in Hugging Face's `generate`).
    groups: beams in so many groups, which take turns at each token (Vijayakumar et al. 2018); a divisor of width.
    diversity_penalty: subtracted for each earlier group that has chosen a token at the same place. 0 to 100.
    scorer: what scores the `width` answers once they are whole. "logprob": nothing, they rank by their beam_score;
        "reranker": the LLM's cross-encoder reads the query and each answer; "likelihood": the mean log probability of
        an answer's text behind the query; or a function scorer(query, answers), which gives a finite number for each.
        It is called on a thread of its own, for one request after the other.
    alpha: 0 to 1, the scorer's weight: an answer's final score is alpha * score + (1 - alpha) * beam_score. At 0 the
        scorer is not asked.
    normalise: what is done to the scores before that: "none", "sigmoid" (1 / (1 + exp(-score))), or "zscore" (less
        their mean, over their standard deviation; 0 where all are equal).
    query: what the scorer gets as the prompt; None = the prompt's text, in a chat the last message of the user.
    """

    width: int = 4
    method: Method = "beam"
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    groups: int = 1
    diversity_penalty: float = 0.0
    scorer: Scorer = "logprob"
    alpha: float = 0.5
    normalise: Normalise = "none"
    query: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is None and self.method == "beam":
            object.__setattr__(self, "temperature", 0.0)
        checked_integer("width", self.width, 1, MAX_WIDTH)
        if self.method not in _METHODS:
            raise refuse_field("method", f"one of {', '.join(_METHODS)}", self.method)
        checked_real("length_penalty", self.length_penalty, -10.0, 10.0)
        if self.early_stopping != "never" and not isinstance(self.early_stopping, bool):
            raise refuse_field("early_stopping", 'True, False or "never"', self.early_stopping)
        checked_integer("groups", self.groups, 1, self.width)
        if self.width % self.groups:
            raise refuse_field("groups", f"a divisor of width = {self.width}", self.groups)
        checked_real("diversity_penalty", self.diversity_penalty, 0.0, 100.0)
        if self.n > self.width:
            raise refuse_field("n", f"at most width = {self.width}", self.n)
        _check_scorer(self.scorer)
        checked_real("alpha", self.alpha, 0.0, 1.0)
        if self.normalise not in _NORMALISE:
            raise refuse_field("normalise", f"one of {', '.join(_NORMALISE)}", self.normalise)
        _check_query(self.query)

    @property
    def is_scored(self) -> bool:
        """Whether a scorer has a say in the order of the answers."""
        return self.scorer != "logprob" and self.alpha > 0


def _check_scorer(scorer: object) -> None:
    if inspect.iscoroutinefunction(scorer):
        raise refuse_field("scorer", "a plain function, called on a thread of its own", scorer)
    if not callable(scorer) and not (isinstance(scorer, str) and scorer in _SCORERS):
        raise refuse_field("scorer", f"one of {', '.join(_SCORERS)}, or a function", scorer)


def _check_query(query: object) -> None:
    if query is None:
        return
    if not isinstance(query, str) or not query:
        raise refuse_field("query", "a text, or None", query)
    if len(query) > MAX_QUERY_CHARS:
        raise refuse_field("query", f"at most {MAX_QUERY_CHARS} characters", f"{len(query)} characters")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise refuse_field("query", "valid Unicode", f"a lone surrogate at character {error.start}") from None


def checked_search(params: object) -> SearchParams:
    """`params` itself, or the default. Raises InvalidRequestError when it is something else."""
    if params is None:
        return SearchParams()
    if not isinstance(params, SearchParams):
        raise InvalidRequestError(f"[params] must be SearchParams, got {type(params).__name__}", param="params")
    return params
