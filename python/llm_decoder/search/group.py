"""One request that is searched: its live beams, each a sequence of the engine, and the answers that are finished.

A beam whose last token is computed has an offer, its likeliest continuations, and waits on its pages until every live
beam has one; so beams may be computed in different steps, as they are after they had to give way. Then the group takes
its turn: beams that go on grow by a token, forks share pages, and those that do not go on let go of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_decoder.outputs import FinishReason, TokenLogprob
from llm_decoder.sampling import derive_seed
from llm_decoder.search.beam_text import BeamText
from llm_decoder.search.beams import BeamRules, Beams, Continuation, Hypothesis, Turn
from llm_decoder.search.params import SearchParams
from llm_decoder.search.tree import SearchTree
from llm_decoder.sequence import Request, Sequence

__all__ = ["Answer", "Beam", "Offer", "SearchGroup"]

NOT_FINITE = -1  # in the place of an offer's first token


@dataclass(frozen=True, slots=True)
class Offer:
    """A beam's likeliest continuations, the first by key: tokens int32 [n], below 0 where there are no more; scores,
    keys, logprobs float32 [n] (decoder/sampler.h). entries: of each, where log probabilities were asked for."""

    tokens: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    keys: npt.NDArray[np.float32]
    logprobs: npt.NDArray[np.float32]
    entries: list[TokenLogprob] | None = None


@dataclass(eq=False, slots=True)
class Beam:
    """A live beam. node: of the tree, its last token. entries: of its tokens, where these were asked for."""

    sequence: Sequence
    node: int
    text: BeamText
    offer: Offer | None = None
    entries: tuple[TokenLogprob, ...] = ()
    cumulative_logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it will be told."""

    score: float  # normalised
    tokens: list[int]
    entries: tuple[TokenLogprob, ...]
    cumulative_logprob: float
    reason: FinishReason
    stop_reason: str | int | None
    node: int


# A live beam, and one token more for it.
_Child = tuple[Beam, Continuation, BeamText]


class _Lane:
    """One of the groups that take turns: its rules, its live beams in their order, the answers of its hypotheses."""

    def __init__(self, rules: BeamRules, root: Beam) -> None:
        self.beams = Beams(rules)
        self.live = [root]
        self.answers: dict[Hypothesis, Answer] = {}


class SearchGroup:
    """For the engine's thread. `release` and `fork` are the scheduler's: fork(parent) gives a sequence that shares the
    parent's pages."""

    def __init__(
        self,
        request: Request,
        params: SearchParams,
        root: Sequence,
        text: BeamText,
        *,
        fork: Callable[[Sequence], Sequence],
        release: Callable[[Sequence], None],
    ) -> None:
        self.request = request
        self.params = params
        self.tree = SearchTree()
        self.n_given_up = 0  # beams, for want of pages
        self.pruned: list[int] = []  # nodes, since the last turn was told
        self._n_nodes = 0  # of the tree, before the last turn
        # Log probabilities are never above 0, so that a sum never grows; what is added to them may make it.
        self._may_rise = (
            bool((request.bias_values > 0).any())
            or min(params.presence_penalty or 0.0, params.frequency_penalty or 0.0) < 0
        )
        self._fork = fork
        self._release = release
        rules = BeamRules(
            width=params.width // params.groups,
            max_new=request.max_new,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            n_ends=len(request.stop_ids),
        )
        # Each lane has its own beam at the prompt; all are one sequence.
        self._lanes = [_Lane(rules, Beam(root, self.tree.ROOT, text)) for _ in range(params.groups)]

    @property
    def width(self) -> int:
        """Beams that it may have from here on."""
        return sum(lane.beams.width for lane in self._lanes)

    @property
    def n_offered(self) -> int:
        """Continuations that a beam's offer must have."""
        rules = self._lanes[0].beams.rules
        n_penalised = self.params.width if self.params.groups > 1 else 0
        return rules.n_candidates + n_penalised

    @property
    def live(self) -> list[Beam]:
        """Every live beam, the worst of the last lane last."""
        return [beam for lane in self._lanes for beam in lane.live]

    @property
    def sequences(self) -> list[Sequence]:
        return list(dict.fromkeys(beam.sequence for beam in self.live))

    @property
    def is_over(self) -> bool:
        return not any(lane.live for lane in self._lanes)

    @property
    def is_ready(self) -> bool:
        """Whether every live beam has an offer."""
        return all(beam.offer is not None for beam in self.live)

    @property
    def has_no_token(self) -> bool:
        """Whether no beam has a continuation."""
        return not any((beam.offer.tokens >= 0).any() for beam in self.live if beam.offer is not None)

    @property
    def is_broken(self) -> bool:
        """Whether the logits of a beam were not finite."""
        return any(beam.offer.tokens[0] == NOT_FINITE for beam in self.live if beam.offer is not None)

    def offer(self, sequence: Sequence, offer: Offer) -> None:
        for beam in self.live:
            if beam.sequence is sequence:
                beam.offer = offer

    def take_turn(self) -> None:
        """Every lane takes one token more. Raises what following a grammar raises."""
        self._n_nodes = len(self.tree)
        chosen: dict[int, int] = {}  # by earlier lanes: token -> how many times
        grown: list[tuple[_Lane, list[_Child]]] = []
        for lane in self._lanes:
            if lane.live:
                grown.append((lane, self._turn_of(lane, chosen)))
        self._grow(grown)

    def _turn_of(self, lane: _Lane, chosen: dict[int, int]) -> list[_Child]:
        live = lane.live
        offers = [beam.offer for beam in live]
        assert all(offer is not None for offer in offers)
        tokens, scores, keys, logprobs = (
            np.stack([getattr(offer, name) for offer in offers]) for name in ("tokens", "scores", "keys", "logprobs")
        )
        if chosen and self.params.diversity_penalty:
            penalty = np.float32(self.params.diversity_penalty)
            for token, count in chosen.items():
                hits = (tokens == token) * (penalty * np.float32(count))
                scores, keys = scores - hits, keys - hits
        texts: dict[tuple[int, int], BeamText] = {}

        def ends(continuation: Continuation) -> str | None:
            text = live[continuation.beam].text.grown(continuation.token)
            texts[continuation.beam, continuation.token] = text
            return text.finish_reason

        turn = lane.beams.advance(tokens, scores, keys, logprobs, ends)
        self._note(lane, turn, texts)
        for survivor in turn.survivors:
            chosen[survivor.token] = chosen.get(survivor.token, 0) + 1
        if lane.beams.is_over:
            return []
        return [(live[s.beam], s, texts[s.beam, s.token]) for s in turn.survivors]

    def _note(self, lane: _Lane, turn: Turn, texts: dict[tuple[int, int], BeamText]) -> None:
        """Keeps the answers of hypotheses that are kept, and tells the tree."""
        for hypothesis in turn.finished:
            c = hypothesis.continuation
            beam = lane.live[c.beam]
            text = texts[c.beam, c.token]
            node = self.tree.add(beam.node, c.token, c.logprob, float(c.score), "finished", hypothesis.reason)
            lane.answers[hypothesis] = Answer(
                float(hypothesis.score),
                [*beam.sequence.generated_tokens.tolist(), c.token],
                _with_entry(beam, c.token),
                beam.cumulative_logprob + c.logprob,
                "length" if text.finish_reason is None else "stop",
                text.stop_reason,
                node,
            )
        for hypothesis in turn.displaced:
            self._prune(lane.answers.pop(hypothesis).node, "displaced")
        for continuation, _ in turn.missed:
            node = lane.live[continuation.beam].node
            self.tree.add(node, continuation.token, continuation.logprob, float(continuation.score), "pruned", "end")

    def _grow(self, grown: list[tuple[_Lane, list[_Child]]]) -> None:
        """The first child of a sequence goes on with it, the others fork it before that; who has none lets go.

        The request knows each fork at once: should the next one find no memory, it lets go of all that were made.
        """
        before = self.sequences
        self._prune_childless([parent.node for _, children in grown for parent, _, _ in children])
        used: set[Sequence] = set()
        sequences: list[Sequence] = []
        for _, children in grown:
            for parent, _, _ in children:
                sequence = parent.sequence
                if sequence in used:
                    sequence = self._fork(sequence)
                    self.request.sequences.append(sequence)
                sequences.append(sequence)
                used.add(parent.sequence)
        for sequence in before:
            if sequence not in used:
                self._release(sequence)
        free = iter(sequences)
        slot = 0
        for lane, children in grown:
            lane.live = []
            for parent, continuation, text in children:
                lane.live.append(self._child(next(free), slot, parent, continuation, text))
                slot += 1

    def _prune_childless(self, parents: list[int]) -> None:
        """Live beams that go on nowhere, and ended nowhere in this turn."""
        has_child = {*parents, *(self.tree.nodes[node].parent for node in self.new_nodes)}
        for beam in self.live:
            if beam.node not in has_child and beam.node != self.tree.ROOT:
                self._prune(beam.node, "outscored")

    def _prune(self, node: int, reason: str) -> None:
        self.tree.prune(node, reason)
        self.pruned.append(node)

    def _child(self, sequence: Sequence, slot: int, parent: Beam, continuation: Continuation, text: BeamText) -> Beam:
        """slot: of this turn; its noise comes from there, as children of one parent must not share it."""
        token, logprob, score = continuation.token, continuation.logprob, float(continuation.score)
        sequence.append(token)
        sequence.follower = text.follower
        sequence.seed = derive_seed(self.request.seed, slot)
        node = self.tree.add(parent.node, token, logprob, score, "live", "")
        return Beam(sequence, node, text, None, _with_entry(parent, token), parent.cumulative_logprob + logprob)

    @property
    def new_nodes(self) -> range:
        """Of the tree, since the last turn began."""
        return range(self._n_nodes, len(self.tree))

    def n_decided(self, n_known: int) -> int:
        """How many tokens all answers have in common that may still be the best, of which n_known are known to be.
        Where a scorer decides, any may."""
        answers = self.answers()
        any_may = self._may_rise or self.request.scorer is not None
        best = answers if self.request.scorer is not None else answers[:1]
        rivals = [np.array(answer.tokens, np.int32) for answer in best]
        for lane in self._lanes:
            for number, beam in enumerate(lane.live):
                if not answers or any_may or lane.beams.best_possible(number) > answers[0].score:
                    rivals.append(beam.sequence.generated_tokens)
        n_least = min(len(tokens) for tokens in rivals)
        first = rivals[0][n_known:n_least]
        differs = np.zeros(len(first), bool)
        for tokens in rivals[1:]:
            differs |= tokens[n_known:n_least] != first
        return n_known + int(differs.argmax() if differs.any() else len(first))

    def decided_tokens(self, n: int) -> list[int]:
        """The first n tokens, once so many are decided."""
        answers = self.answers()
        tokens = answers[0].tokens if answers else self.live[0].sequence.generated_tokens.tolist()
        return tokens[:n]

    def decided_entries(self, n: int) -> list[TokenLogprob]:
        """The same of their log probabilities."""
        answers = self.answers()
        return list((answers[0] if answers else self.live[0]).entries[:n])

    def give_up_worst(self) -> Sequence:
        """Goes on without the worst beam of the widest lane; returns its sequence, for nobody else has it."""
        lane = max(self._lanes, key=lambda lane: len(lane.live))
        sequence = lane.live[-1].sequence
        self.give_up(sequence)
        return sequence

    def give_up(self, sequence: Sequence) -> None:
        """Goes on without the beams of this sequence, whose pages are wanted elsewhere."""
        for lane in self._lanes:
            for number in range(len(lane.live) - 1, -1, -1):
                if lane.live[number].sequence is sequence:
                    beam = lane.live.pop(number)
                    lane.beams.drop(number)
                    self.n_given_up += 1
                    self._prune(beam.node, "no pages")

    def answers(self) -> list[Answer]:
        """The finished answers, the best first."""
        everyone = [answer for lane in self._lanes for answer in lane.answers.values()]
        return sorted(everyone, key=lambda answer: -answer.score)

    def unfinished(self, reason: FinishReason) -> list[Answer]:
        """The live beams as answers that end where they are."""
        answers: list[Answer] = []
        for lane in filter(lambda lane: lane.live, self._lanes):
            n_tokens = max(1, lane.beams.n_generated)
            for beam, score in zip(lane.live, lane.beams.scores, strict=True):
                tokens = beam.sequence.generated_tokens.tolist()
                normalised = float(lane.beams.rules.normalised(score, n_tokens))
                answers.append(
                    Answer(normalised, tokens, beam.entries, beam.cumulative_logprob, reason, None, beam.node)
                )
        return sorted(answers, key=lambda answer: -answer.score)


def _with_entry(beam: Beam, token: int) -> tuple[TokenLogprob, ...]:
    offer = beam.offer
    if offer is None or offer.entries is None:
        return beam.entries
    return (*beam.entries, next(entry for entry in offer.entries if entry.token_id == token))
