"""Which continuations of a group of beams go on, which are finished, and when nothing better can come.

The rules are those of Hugging Face's `generate(num_beams=...)`, and sums are made in float32 as it makes them. Nothing
here knows tokens from text or beams from pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llm_decoder.search.params import EarlyStopping

__all__ = ["BeamRules", "Beams", "Continuation", "Hypothesis", "Turn"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BeamRules:
    """width: beams that go on, and hypotheses that are kept. max_new: tokens that an answer may have. n_ends: tokens
    that end one."""

    width: int
    max_new: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    n_ends: int = 1

    @property
    def n_candidates(self) -> int:
        """Continuations to look at: enough for `width` that go on when every end is among them."""
        return max(2, 1 + self.n_ends) * self.width

    def normalised(self, score: np.float32, n_tokens: int) -> np.float32:
        """The score of an answer of so many tokens, by which answers of any length compare."""
        return np.float32(score / np.float32(n_tokens**self.length_penalty))


@dataclass(frozen=True, slots=True)
class Continuation:
    """Live beam number `beam` and one more token. score: the beam's sum with it. logprob: the token's own, raw."""

    beam: int
    token: int
    score: np.float32
    logprob: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished answer. beam: which was live when its last token came. score: normalised."""

    continuation: Continuation
    n_tokens: int
    score: np.float32
    reason: str


@dataclass(slots=True)
class Turn:
    """What became of the beams: who goes on, the best first; who finished and is kept; hypotheses that were kept and
    are not any more; ends that were too unlikely to be kept."""

    survivors: list[Continuation] = field(default_factory=list)
    finished: list[Hypothesis] = field(default_factory=list)
    displaced: list[Hypothesis] = field(default_factory=list)
    missed: list[tuple[Continuation, str]] = field(default_factory=list)


class Beams:
    """One group. Its live beams are known by their number, 0 to n_live - 1, the best first."""

    def __init__(self, rules: BeamRules) -> None:
        self.rules = rules
        self.width = rules.width  # beams that go on; fewer once some were given up
        self.scores: Floats = np.zeros(1, np.float32)  # of the live beams
        self.hypotheses: list[Hypothesis] = []  # the best first
        self.n_generated = 0
        self.is_over = False

    def advance(
        self,
        tokens: Ints,
        scores: Floats,
        keys: Floats,
        logprobs: Floats,
        ends: Callable[[Continuation], str | None],
    ) -> Turn:
        """One token more. tokens, scores (what a beam's score grows by), keys (by which continuations are chosen) and
        logprobs: [n_live, n], n of each beam, tokens below 0 are none. ends: why an answer ends with this token, or
        None.
        """
        rules = self.rules
        total = self.scores[:, None] + scores
        order = self._order(tokens, self.scores[:, None] + keys)
        self.n_generated += 1
        is_last = self.n_generated >= rules.max_new
        turn = Turn()
        for rank, at in enumerate(order):
            beam, i = divmod(at, tokens.shape[1])
            continuation = Continuation(beam, int(tokens[beam, i]), total[beam, i], float(logprobs[beam, i]))
            reason = ends(continuation) or ("length" if is_last else None)
            if reason is None:
                turn.survivors.append(continuation)
                if len(turn.survivors) == self.width:
                    break
            elif rank < rules.width:
                normalised = rules.normalised(continuation.score, self.n_generated)
                turn.finished.append(Hypothesis(continuation, self.n_generated, normalised, reason))
            else:
                turn.missed.append((continuation, reason))
        turn.survivors.sort(key=lambda survivor: -survivor.score)  # noise may have chosen them in another order
        self._keep(turn)
        self.scores = np.array([survivor.score for survivor in turn.survivors], np.float32)
        self.is_over = is_last or not turn.survivors or self._is_decided()
        return turn

    def _order(self, tokens: Ints, keys: Floats) -> list[int]:
        """The best n_candidates of all continuations, flat; the lower beam, then the lower place, among equals."""
        flat = np.where(tokens >= 0, keys, -np.inf).ravel()
        order = np.argsort(-flat, kind="stable")[: self.rules.n_candidates]
        return [int(at) for at in order if flat[at] > -np.inf]

    def _keep(self, turn: Turn) -> None:
        """The best `width` hypotheses stay; among equals those that were there before."""
        if not turn.finished:
            return
        ranked = sorted(self.hypotheses + turn.finished, key=lambda hypothesis: -hypothesis.score)
        self.hypotheses, dropped = ranked[: self.rules.width], ranked[self.rules.width :]
        turn.displaced = [hypothesis for hypothesis in dropped if hypothesis not in turn.finished]
        turn.missed += [(h.continuation, h.reason) for h in dropped if h in turn.finished]
        turn.finished = [hypothesis for hypothesis in turn.finished if hypothesis not in dropped]

    def _is_decided(self) -> bool:
        """Whether no live beam can become one of the hypotheses, as far as early_stopping looks."""
        rules = self.rules
        if len(self.hypotheses) < rules.width:
            return False
        if rules.early_stopping is True:
            return True
        longest = rules.max_new if rules.early_stopping == "never" and rules.length_penalty > 0 else self.n_generated
        return bool(rules.normalised(self.scores[0], longest) <= self.hypotheses[-1].score)

    def drop(self, beam: int) -> None:
        """Goes on without this live beam, and with one beam less from here on."""
        self.scores = np.delete(self.scores, beam)
        self.width = max(1, self.width - 1)

    def best_possible(self, beam: int) -> float:
        """What an answer that goes on from this live beam can score at most, if sums of scores never grow."""
        rules = self.rules
        longest = rules.max_new if rules.length_penalty > 0 else self.n_generated + 1
        return float(rules.normalised(self.scores[beam], longest))
