"""Which tokens to guess ahead of a sequence, and how many it may guess.

A decode computes one token a step, and most of a step is reading the weights, which a few tokens more cost little. So a
sequence drafts tokens, its step computes them behind the one it has, and the engine keeps those that it would have
drawn anyway, each from its own row of logits (Leviathan et al. 2023, Chen et al. 2023). With a generator that depends
on (seed, position) alone that is every draft up to the first that differs from the draw: answers stay what they were,
token for token, sampled ones too. What is drafted decides the speed only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import check_integer
from llm_decoder.errors import ConfigError

__all__ = ["Drafter", "PromptLookup", "Speculation", "SpeculationOptions"]

Ints = npt.NDArray[np.int32]


class Drafter(Protocol):
    """Guesses for one sequence."""

    def propose(self, tokens: Ints, max_tokens: int) -> Ints:
        """int32 [at most max_tokens]: what may follow `tokens` int32 [n_tokens], the whole sequence so far. It has
        grown since the last call. Every id must be one of the model's."""


@dataclass(frozen=True)
class SpeculationOptions:
    """method: "prompt-lookup" or "none". max_tokens: drafted a step and sequence at the most."""

    method: str = "prompt-lookup"
    max_tokens: int = 7

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown method or a number out of its limits."""
        if self.method not in ("prompt-lookup", "none"):
            raise ConfigError(f"[speculation] must be prompt-lookup or none, got {self.method!r}")
        check_integer("speculative_tokens", self.max_tokens, 1, 64, optional=False)

    def start(self) -> Speculation | None:
        """Of a new sequence."""
        return None if self.method == "none" else Speculation(PromptLookup(), self.max_tokens)


class Speculation:
    """How much one sequence may draft: as far as drafts have lately been right, and no more than its credit.

    Credit is counted in rows of a step. A draft that was wrong costs the row it took. What pays for it: a small share
    of each token's step, and what a right draft has saved. So drafts that are never right slow a sequence down by that
    share and no more, however they come, and drafts that are right mostly are made all the time.
    """

    # A step costs as much as its rows and so many rows more (reading the weights, above all). Measured: 4 to 30.
    FIXED_ROWS = 4
    # Of a step, for drafts that are wrong.
    SHARE = 1 / 32
    FIRST_CREDIT = 4.0
    FIRST_LENGTH = 3

    __slots__ = ("_credit", "_drafter", "_length", "_max_tokens")

    def __init__(self, drafter: Drafter, max_tokens: int) -> None:
        self._drafter = drafter
        self._max_tokens = max_tokens
        self._credit = self.FIRST_CREDIT
        self._length = min(self.FIRST_LENGTH, max_tokens)

    def draft(self, tokens: Ints, max_tokens: int) -> Ints | None:
        """What may follow `tokens` int32 [n_tokens], at most max_tokens; None when nothing does."""
        n_most = min(int(self._credit), self._length, max_tokens)
        return self._drafter.propose(tokens, n_most) if n_most > 0 else None

    def learn(self, n_drawn: int, n_drafted: int, n_accepted: int, n_rows: int) -> None:
        """A step gave n_drawn tokens; of n_drafted drafts n_accepted were right. n_rows: of the step, all drafts
        aside."""
        saved = self.FIXED_ROWS / n_rows
        earned = n_drawn * self.SHARE * (1.0 + saved) + n_accepted * saved
        self._credit = min(self._credit + earned - (n_drafted - n_accepted), 2.0 * self._max_tokens)
        if n_drafted:
            # One more than was right; twice as many when all were, for then nobody knows how many would have been.
            reached = 2 * n_drafted if n_accepted == n_drafted else n_accepted
            self._length = min(reached + 1, self._max_tokens)


class PromptLookup:
    """Guesses what followed the last time the newest tokens stood in the sequence, in prompt or answer (Saxena 2023).

    The longest run of newest tokens that occurs earlier counts, among equals the latest. A hash table says where each
    run last ended; a later run may take another's place there, so what is found is compared. 16 to 64 bytes a token.
    """

    LENGTHS = (4, 2)  # of the runs, longest first
    _FIRST_BITS = 10
    _SLOTS_PER_TOKEN = 4
    _FEW = 16  # tokens that are added sooner one by one than as arrays
    _MULTIPLIER = 0x9E3779B97F4A7C15
    _MASK = (1 << 64) - 1

    __slots__ = ("_ends", "_n_known", "_shift", "_view")

    def __init__(self) -> None:
        self._n_known = 0  # the runs within tokens[:n_known] are in the table
        self._make_table(self._FIRST_BITS)

    def propose(self, tokens: Ints, max_tokens: int) -> Ints:
        n_tokens = len(tokens)
        self._add_runs_before(n_tokens, tokens)
        end = self._find_and_add(tokens, n_tokens)
        followed = tokens[end : end + max_tokens] if end else tokens[:0]
        if 0 < len(followed) < max_tokens:
            return np.resize(followed, max_tokens)  # the run and what follows it overlap: it goes round
        return followed

    def _find_and_add(self, tokens: Ints, n_tokens: int) -> int:
        """Where the longest run that `tokens` end with ended before, 0 = nowhere. These runs end here from now on."""
        found = 0
        view = self._view
        newest = tokens[max(0, n_tokens - self.LENGTHS[0]) : n_tokens].tolist()
        for length in self.LENGTHS:
            if length > n_tokens:
                continue
            run = newest[len(newest) - length :]
            slot = self._slot(run)
            end = view[slot]
            view[slot] = n_tokens
            if not found and end and tokens[end - length : end].tolist() == run:
                found = end
        self._n_known = n_tokens
        return found

    def _slot(self, run: list[int]) -> int:
        key = len(run)
        for token in run:
            key = (key + token) * self._MULTIPLIER & self._MASK
        return key >> self._shift

    def _add_runs_before(self, n_tokens: int, tokens: Ints) -> None:
        """Puts the runs into the table that end before the newest token."""
        if self._SLOTS_PER_TOKEN * n_tokens > len(self._ends):
            self._make_table((self._SLOTS_PER_TOKEN * 2 * n_tokens - 1).bit_length())
            self._n_known = 0
        if n_tokens - self._n_known <= self._FEW:
            for end in range(self._n_known + 1, n_tokens):
                self._find_and_add(tokens, end)
            return
        known = tokens[: n_tokens - 1].astype(np.uint64)
        for length in self.LENGTHS:
            n_runs = len(known) - length + 1
            if n_runs <= 0:
                continue
            keys = np.full(n_runs, length, np.uint64)
            for i in range(length):
                keys = (keys + known[i : i + n_runs]) * np.uint64(self._MULTIPLIER)
            self._ends[keys >> np.uint64(self._shift)] = np.arange(length, length + n_runs, dtype=np.int32)

    def _make_table(self, bits: int) -> None:
        self._ends = np.zeros(1 << bits, np.int32)
        self._view = self._ends.data  # whose elements are found sooner, one by one
        self._shift = 64 - bits
