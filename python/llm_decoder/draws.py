"""A draw's life: who draws from which rows of a step's logits, and what comes of it, at once or one step later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import AheadBackend, Backend
from llm_decoder.batch import SamplingBatch, StepBatch
from llm_decoder.sequence import Sequence

__all__ = ["NOT_FINITE", "NO_TOKEN_LEFT", "Drawn", "Draws", "MadeStep", "Scores", "n_accepted"]

# logprobs [n_rows], ranks [n_rows], top_ids [n_rows, n_top], top_logprobs [n_rows, n_top], as Backend gives them.
Scores: TypeAlias = AnySequence[npt.NDArray[Any]]
# A sequence, the tokens it drew (or NOT_FINITE, NO_TOKEN_LEFT), and the rows of these scores that tell of them, from
# the number given. One token, and one for each draft before it.
Drawn: TypeAlias = tuple[Sequence, list[int], int, Scores]

# What the sampler gives in the place of a token, see decoder/sampler.h.
NOT_FINITE, NO_TOKEN_LEFT = -1, -2


@dataclass(slots=True)
class MadeStep:
    """A step that was launched: its size, and who reads which of its rows of logits.

    draws: who draws a token; rows: each one's first row, more follow, one a draft. collectors: who wants every row, and
    its first. searching: who is a beam, and its row. roots: whose prompt is complete, and the sequences of its other
    answers, which draw from the same row. is_behind: a step before it may still run that drew nothing.
    """

    started_s: float
    n_tokens: int = 0
    n_decodes: int = 0
    n_drafted: int = 0
    is_behind: bool = False
    draws: list[Sequence] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    collectors: list[tuple[Sequence, int]] = field(default_factory=list)
    searching: list[tuple[Sequence, int]] = field(default_factory=list)
    roots: list[tuple[Sequence, list[Sequence]]] = field(default_factory=list)


class Draws:
    """The draws of one engine. take: at once. begin, and end one step later, where the backend runs ahead:

    step k    begin k
              step k + 1    begin k + 1    end k
                                           step k + 2    begin k + 2    end k + 1

    Between the two a sequence has a token that is not read (Sequence.n_unread).
    """

    def __init__(self, backend: Backend, attempt: Callable[..., None]) -> None:
        """attempt(request, do, *arguments): calls do(*arguments); what it raises ends the request."""
        self._backend = backend
        self._attempt = attempt
        self._sampling = SamplingBatch()
        self._begun: deque[list[Sequence]] = deque()

    def take(self, sequences: list[Sequence], rows: list[int]) -> list[Drawn]:
        """What each draws from its row. When the draw for all of them raises, each draws alone: a token depends on its
        own row and parameters only, so it is the same, and only who it is that raises fails."""
        try:
            return self._take_together(sequences, rows, self._sampling)
        except Exception:  # noqa: BLE001 - it is raised again, and told, below
            self._sampling = SamplingBatch()  # it may have been left half made
        drawn: list[Drawn] = []
        for sequence, row in zip(sequences, rows, strict=True):
            if sequence.finish_reason is None:
                self._attempt(sequence.request, self._take_alone, sequence, row, drawn)
        return drawn

    def _take_alone(self, sequence: Sequence, row: int, drawn: list[Drawn]) -> None:
        drawn += self._take_together([sequence], [row], SamplingBatch())

    def _take_together(self, sequences: list[Sequence], rows: list[int], sampling: SamplingBatch) -> list[Drawn]:
        params = sampling.params(sequences)
        counts = [1 + sequence.n_drafted for sequence in sequences]
        all_rows = [row + i for row, count in zip(rows, counts, strict=True) for i in range(count)]
        sampled, *scores = self._backend.sample(np.array(all_rows, np.int32), params, sampling.n_top)
        tokens = sampled.tolist()
        drawn: list[Drawn] = []
        begin = 0
        for sequence, count in zip(sequences, counts, strict=True):
            end = begin + count
            drawn.append((sequence, tokens[begin:end], begin, scores))
            begin = end
        return drawn

    def begin(self, sequences: list[Sequence], rows: list[int]) -> bool:
        """Queues the draw; none of them has drafts. False when that raised: they must take theirs, once nothing is left
        to end."""
        try:
            params = self._sampling.params(sequences)
            cast(AheadBackend, self._backend).begin_sample(np.array(rows, np.int32), params, self._sampling.n_top)
        except Exception:  # noqa: BLE001 - it is raised again by take, and told
            self._sampling = SamplingBatch()
            return False
        for sequence in self._begun[-1] if self._begun else ():
            sequence.n_unread = 0
        for number, sequence in enumerate(sequences):
            sequence.n_unread, sequence.draw_number = 1, number
        self._begun.append(sequences)
        return True

    def end(self, batch: StepBatch) -> list[Drawn]:
        """Waits for the oldest draw. Its tokens go into `batch`, which counts on them; what is returned is of those
        that are not over. What is raised ends the requests of all, for the logits are gone."""
        sequences = self._begun.popleft()
        if not self._begun:
            for sequence in sequences:
                sequence.n_unread = 0
        try:
            sampled, *scores = cast(AheadBackend, self._backend).end_sample()
        except Exception as error:  # noqa: BLE001 - it is told to those who drew
            for request in dict.fromkeys(sequence.request for sequence in sequences):
                if not request.finished:
                    self._attempt(request, _raise, error)
            return []
        batch.put_tokens(sampled)
        drawn: list[Drawn] = []
        for row, (sequence, token) in enumerate(zip(sequences, sampled.tolist(), strict=True)):
            if sequence.finish_reason is None:
                drawn.append((sequence, [token], row, scores))
            if token < 0:
                sequence.n_rejected = 1  # the step that counted on it computed something else
        return drawn


def n_accepted(tokens: list[int], draft: list[int], stop_ids: frozenset[int]) -> int:
    """How many of `draft` are what was drawn. Leaves of `tokens`, one a draft and one more, what steps of one token
    would have drawn: up to the first that is not its draft, or that ends the answer."""
    for i, token in enumerate(tokens):
        if token == NOT_FINITE and i:
            del tokens[i:]  # the next step finds the same, as its first row
            return i
        if i == len(draft) or token != draft[i]:
            del tokens[i + 1 :]
            return i
        if token in stop_ids:
            del tokens[i + 1 :]
            return i + 1
    return 0


def _raise(error: Exception) -> None:
    raise error
