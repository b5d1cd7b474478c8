"""What a search may be asked: SamplingParams, and how many answers are followed, kept and ranked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams, checked_integer, checked_real, refuse_field

__all__ = ["MAX_WIDTH", "EarlyStopping", "Method", "SearchParams", "checked_search"]

MAX_WIDTH = 64

Method = Literal["beam", "sample"]
EarlyStopping = Literal["never"] | bool

_METHODS = ("beam", "sample")


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
    """

    width: int = 4
    method: Method = "beam"
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    groups: int = 1
    diversity_penalty: float = 0.0

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


def checked_search(params: object) -> SearchParams:
    """`params` itself, or the default. Raises InvalidRequestError when it is something else."""
    if params is None:
        return SearchParams()
    if not isinstance(params, SearchParams):
        raise InvalidRequestError(f"[params] must be SearchParams, got {type(params).__name__}", param="params")
    return params
