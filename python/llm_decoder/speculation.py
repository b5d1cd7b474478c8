"""Which tokens to guess ahead of a sequence, and how many it may guess.

A decode computes one token a step, and most of a step is reading the weights, which a few tokens more cost little. So a
sequence drafts tokens, its step computes them behind the one it has, and the engine keeps those that it would have
drawn anyway, each from its own row of logits (Leviathan et al. 2023, Chen et al. 2023). With a generator that depends
on (seed, position) alone that is every draft up to the first that differs from the draw: answers stay what they were,
token for token, sampled ones too. What is drafted decides the speed only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import PromptLookup, check_integer
from llm_decoder.errors import ConfigError

__all__ = ["Drafter", "Gain", "Speculation", "SpeculationOptions", "StepCost"]

Ints = npt.NDArray[np.int32]


class Drafter(Protocol):
    """Guesses for one sequence."""

    def propose(self, tokens: Ints, max_tokens: int, min_chance: float) -> Ints:
        """int32 [at most max_tokens]: what may follow `tokens` int32 [n_tokens], the whole sequence so far. It has
        grown since the last call. Every id must be one of the model's. A guess that is right with less than min_chance,
        those before it included, costs more than it saves."""


@dataclass(frozen=True)
class SpeculationOptions:
    """method: "prompt-lookup" or "none". max_tokens: drafted a step and sequence at the most."""

    method: str = "prompt-lookup"
    max_tokens: int = 15

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown method or a number out of its limits."""
        if self.method not in ("prompt-lookup", "none"):
            raise ConfigError(f"[speculation] must be prompt-lookup or none, got {self.method!r}")
        check_integer("speculative_tokens", self.max_tokens, 1, 64, optional=False)

    def start(self) -> Speculation | None:
        """Of a new sequence."""
        return None if self.method == "none" else Speculation(PromptLookup(), self.max_tokens)


class StepCost:
    """What a step costs whatever its rows (reading the weights, above all), counted in rows: fitted to the steps' own
    times, older ones fading. It decides how much is drafted, and never what is answered."""

    FIRST_ROWS = 4.0  # until steps of different sizes were seen
    LIMITS = (1.0, 64.0)
    _FADE = 1 / 64
    _DOUBT = 0.25  # rows², what FIRST_ROWS weighs beside the variance of the rows seen

    __slots__ = ("_both", "_mean_rows", "_mean_s", "_row_s", "_variance", "fixed_rows")

    def __init__(self) -> None:
        self.fixed_rows = self.FIRST_ROWS
        self._mean_rows = self._mean_s = self._row_s = self._variance = self._both = 0.0

    def seconds(self, n_rows: int) -> float:
        """That a step of so many rows takes; 0 while none was seen."""
        return max(0.0, self._mean_s + self._row_s * (n_rows - self._mean_rows)) if n_rows else 0.0

    def learn(self, n_rows: int, seconds: float) -> None:
        """A step of decodes and their drafts took so long."""
        if not self._mean_s:
            self._mean_rows, self._mean_s = float(n_rows), seconds
            return
        rows = n_rows - self._mean_rows
        most_s = 2.0 * self._mean_s * max(1.0, n_rows / self._mean_rows)  # more is an interruption
        over_s = min(seconds, most_s) - self._mean_s
        self._mean_rows += self._FADE * rows
        self._mean_s += self._FADE * over_s
        self._variance = (1.0 - self._FADE) * (self._variance + self._FADE * rows * rows)
        self._both = (1.0 - self._FADE) * (self._both + self._FADE * rows * over_s)
        guess = self._mean_s / (self._mean_rows + self.FIRST_ROWS)
        self._row_s = row_s = (self._both + self._DOUBT * guess) / (self._variance + self._DOUBT)
        least, most = self.LIMITS
        fixed_s = self._mean_s - row_s * self._mean_rows
        self.fixed_rows = most if row_s * most <= fixed_s else max(least, fixed_s / row_s)


class Gain:
    """What guesses have gained lately: of the sequences of a step, how many a token more. It decides whether the engine
    waits for tokens to guess behind them, and never what is answered."""

    FIRST = 0.25  # until steps were seen
    LEAST = 0.1  # a device that waits for Python between two steps loses as much of one
    _FADE = 1 / 8

    __slots__ = ("_share",)

    def __init__(self) -> None:
        self._share = self.FIRST

    @property
    def is_worth_waiting(self) -> bool:
        return self._share > self.LEAST

    def learn(self, n_accepted: int, n_sequences: int) -> None:
        """A step gave n_accepted tokens that were guessed, to all of its sequences that drew."""
        self._share += self._FADE * (min(1.0, n_accepted / n_sequences) - self._share)


class Speculation:
    """How much one sequence may draft: what is likely enough to be right, and no more than its credit.

    Credit is counted in rows of a step. A draft that was wrong costs the row it took. What pays for it: a small share
    of each token's step, and what a right draft has saved. So drafts that are never right slow a sequence down by that
    share and no more, however they come, and drafts that are right mostly are made all the time.
    """

    # Of a step, for drafts that are wrong.
    SHARE = 1 / 64
    FIRST_CREDIT = 4.0
    # A draft must save so many times what it costs, by its drafter's estimate: estimates err.
    MARGIN = 2.0
    MOST_CHANCE = 0.9
    # Tokens that go by without a look after looks in vain, where a step costs next to nothing beside its rows.
    MOST_PAUSE = 16.0

    __slots__ = ("_credit", "_drafter", "_last_pause", "_max_tokens", "_saved", "pause")

    def __init__(self, drafter: Drafter, max_tokens: int) -> None:
        self._drafter = drafter
        self._max_tokens = max_tokens
        self._credit = self.FIRST_CREDIT
        self._saved = StepCost.FIRST_ROWS
        self._last_pause = 0
        self.pause = 0  # steps to go without a draft, counted by the sequence

    def draft(self, tokens: Ints, max_tokens: int, forced: Sequence[int] = ()) -> Ints | None:
        """What may follow `tokens` int32 [n_tokens], at most max_tokens; None when nothing does. forced: what must."""
        n_most = min(int(self._credit), self._max_tokens, max_tokens)
        if n_most <= 0:
            return None
        if forced:
            return np.array(forced[:n_most], np.int32)
        # A token costs its row and its part of the step; one that was drafted and is right, its row alone.
        draft = self._drafter.propose(tokens, n_most, min(self.MOST_CHANCE, self.MARGIN / (1.0 + self._saved)))
        if len(draft):
            self._last_pause = 0
            return draft
        self.pause = self._last_pause = min(2 * self._last_pause + 1, int(self.MOST_PAUSE / (1.0 + self._saved)))
        return None

    def learn(self, n_drawn: int, n_drafted: int, n_accepted: int, n_rows: int, fixed_rows: float) -> None:
        """A step gave n_drawn tokens; of n_drafted drafts n_accepted were right. n_rows: of the step, all drafts
        aside; fixed_rows: how many more it costs (StepCost)."""
        self._saved = saved = fixed_rows / n_rows
        earned = n_drawn * self.SHARE * (1.0 + saved) + n_accepted * saved
        self._credit = min(self._credit + earned - (n_drafted - n_accepted), 4.0 * self._max_tokens)
