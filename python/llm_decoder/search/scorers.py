"""What scores the answers of one request, and what it may give."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llm_decoder.errors import RequestFailedError
from llm_decoder.search.params import ScorerFunction

__all__ = ["RequestScorer", "Reranker", "blamed_on", "checked_scores"]


class Reranker(Protocol):
    """What reads a query and a document together: a CrossEncoder, or an object of your own."""

    def score(self, query: str, documents: list[str]) -> Collection[float]:
        """A finite number for each document, the higher the better."""
        ...


@dataclass(frozen=True, slots=True)
class RequestScorer:
    """A scorer, its name, and what it gets as the prompt."""

    name: str
    query: str
    function: ScorerFunction

    def __call__(self, candidates: list[str]) -> list[float]:
        """A finite score for each. Raises RequestFailedError for whatever else the function does."""
        with blamed_on(self.name):
            given = self.function(self.query, list(candidates))
        return checked_scores(self.name, given, len(candidates))


@contextlib.contextmanager
def blamed_on(name: str) -> Iterator[None]:
    """Whatever is raised inside becomes a RequestFailedError that names this scorer."""
    try:
        yield
    except BaseException as error:
        raise RequestFailedError(
            f"[scorer {name}] raised {type(error).__name__}: {error}; the request ends here, others go on",
            param="scorer",
        ) from error


def checked_scores(name: str, given: Any, n: int) -> list[float]:
    """What the scorer of this name has given, which must be a finite score for each of n. Raises RequestFailedError."""
    scores = _as_numbers(given)
    if scores is None:
        raise _refusal(name, "a list of numbers", f"{type(given).__name__} {given!r:.80}")
    if len(scores) != n:
        raise _refusal(name, f"{n} scores, one an answer", len(scores))
    broken = next((score for score in scores if not math.isfinite(score)), None)
    if broken is not None:
        raise _refusal(name, "finite scores", f"{broken} for answer {scores.index(broken)}")
    return scores


def _refusal(name: str, need: str, got: object) -> RequestFailedError:
    return RequestFailedError(
        f"[scorer {name}] must give {need}, got {got}; the request ends here, others go on", param="scorer"
    )


def _as_numbers(given: Any) -> list[float] | None:
    """The numbers of a list, or of an array of one dimension; None for anything else."""
    if isinstance(given, (str, bytes, Mapping)) or getattr(given, "ndim", 1) != 1 or not hasattr(given, "__len__"):
        return None
    try:
        return [_as_number(score) for score in given]
    except (TypeError, ValueError, OverflowError):
        return None


def _as_number(score: Any) -> float:
    if isinstance(score, (str, bytes)):
        raise TypeError
    return float(score)
