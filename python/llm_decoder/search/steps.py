"""One request that is searched by steps: answers grow by whole steps, such as the lines of a proof, and where a step
ends those go on that a scorer thinks most of (beam search with a process reward, Snell et al. 2024).

Every continuation of a kept answer is a sequence that draws its own tokens. Where its step ends it is parked until the
others are there too. Then the group takes its turn: the best go on, each with several continuations that share its
pages, and the others let go of theirs. Continuations need not hold pages at the same time: where pages run short they
wait for each other, and find the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from llm_decoder.detokenizer import Detokenizer, StopMatcher, TextDecoder
from llm_decoder.outputs import FinishReason
from llm_decoder.sampling import derive_seed
from llm_decoder.search.beam_text import text_of
from llm_decoder.search.params import SearchParams
from llm_decoder.search.ranking import final_scores, length_normalised
from llm_decoder.search.search import Answer, Rival, Search
from llm_decoder.sequence import Request, Sequence

__all__ = ["StepGroup"]


class Pages(Protocol):
    """What the group needs of the scheduler."""

    def park(self, sequence: Sequence) -> None: ...

    def go_on(self, parent: Sequence, others: list[Sequence]) -> None: ...

    def remove(self, sequence: Sequence) -> None: ...


@dataclass(eq=False, slots=True)
class _Branch:
    """An answer so far. node: of the tree, the last token before the step that is under way. text: of the answer, as
    the detokenizer has given it. separators: finds the end of the step. logprobs: of the step's tokens."""

    sequence: Sequence
    node: int
    detokenizer: Detokenizer
    separators: StopMatcher
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    is_at_end: bool = False
    rerank_score: float | None = None


class StepGroup(Search):
    """The engine tells it of every token that is drawn (`took`), and gives it its turns."""

    def __init__(
        self, request: Request, params: SearchParams, root: Sequence, tokenizer: TextDecoder, pages: Pages
    ) -> None:
        super().__init__(request, params)
        self._tokenizer = tokenizer
        self._pages = pages
        self._separators = StopMatcher([params.separator])
        self._n_streams = request.n_sequences  # of draws that have begun, those at the prompt first
        self._branches = {root: self._at_prompt(root)}
        self._finished: list[_Branch] = []  # and kept

    def _at_prompt(self, sequence: Sequence) -> _Branch:
        prompt_ids, params = self.request.prompt_token_ids, self.params
        detokenizer = Detokenizer(self._tokenizer, prompt_ids[-16:], params.skip_special_tokens)
        return _Branch(sequence, self.tree.ROOT, detokenizer, self._separators.copy())

    @property
    def sequences(self) -> list[Sequence]:
        return list(self._branches)

    @property
    def live_nodes(self) -> list[int]:
        return list(dict.fromkeys(branch.node for branch in self._branches.values()))

    @property
    def is_ready(self) -> bool:
        return all(branch.is_at_end for branch in self._branches.values())

    @property
    def is_over(self) -> bool:
        return not self._branches

    def took(self, sequence: Sequence, logprob: float) -> None:
        """A token was drawn for this sequence, of this log probability; it may have ended the answer."""
        if sequence not in self._branches:
            self._branches[sequence] = self._at_prompt(sequence)
        branch = self._branches[sequence]
        branch.logprobs.append(logprob)
        if sequence.finish_reason is not None:
            branch.is_at_end = True
            return
        text = branch.detokenizer.push((int(sequence.tokens[-1]),))
        branch.text += text
        _, separator = branch.separators.push(text)
        if separator is not None or len(branch.logprobs) >= self.params.step_tokens:
            branch.is_at_end = True
            self._pages.park(sequence)

    def texts(self) -> list[str]:
        """What a scorer reads: the answers so far, where each step has ended."""
        return [self._text_of(branch) for branch in self._branches.values()]

    def _text_of(self, branch: _Branch) -> str:
        sequence = branch.sequence
        if sequence.finish_reason is None:
            return branch.text
        return text_of(self.request, self._tokenizer, sequence.generated_tokens.tolist(), sequence.finish_reason)

    def take_turn(self, scores: list[float] | None = None) -> None:
        """The best of the answers whose step has ended go on, or are kept where they are finished, beside those that
        were kept before. scores: of `texts`, None where no scorer is asked."""
        self._n_nodes = len(self.tree)
        branches = list(self._branches.values())
        beam_scores = [self._beam_score(branch) for branch in branches]
        finals = beam_scores if scores is None else final_scores(beam_scores, scores, self.params)
        ranked = sorted(range(len(branches)), key=lambda i: (-finals[i], -beam_scores[i]))
        firsts, copies = self._told_apart([branches[i] for i in ranked])
        n_places = self.params.width - len(self._finished)
        live: list[_Branch] = []
        for i, branch in enumerate(branches):
            self._plant(branch)
            self.tree.nodes[branch.node].score = finals[i]
            branch.rerank_score = None if scores is None else scores[i]
        for place, branch in enumerate((*firsts, *copies)):
            if place >= n_places:
                self._prune(branch.node, "outscored" if place < len(firsts) else "duplicate")
                self._pages.remove(branch.sequence)
            elif branch.sequence.finish_reason is not None:
                self.tree.finish(branch.node, branch.sequence.finish_reason)
                self._finished.append(branch)
            else:
                live.append(branch)
        self._grow(live)

    def _told_apart(self, ranked: list[_Branch]) -> tuple[list[_Branch], list[_Branch]]:
        """(the first of those that say the same, the others of them): what is drawn twice shall not take the place of
        something else, as long as there is something else."""
        said = {branch.sequence.generated_tokens.tobytes() for branch in self._finished}
        firsts: list[_Branch] = []
        copies: list[_Branch] = []
        for branch in ranked:
            tokens = branch.sequence.generated_tokens.tobytes()
            (copies if tokens in said else firsts).append(branch)
            said.add(tokens)
        return firsts, copies

    def _beam_score(self, branch: _Branch) -> float:
        sequence = branch.sequence
        return length_normalised(sequence.cumulative_logprob, sequence.n_generated, self.params)

    def _plant(self, branch: _Branch) -> None:
        """The step's tokens become nodes; each has the score that its answer would have if it ended there."""
        tokens = branch.sequence.generated_tokens[branch.sequence.n_generated - len(branch.logprobs) :].tolist()
        for token, logprob in zip(tokens, branch.logprobs, strict=True):
            above = self.tree.nodes[branch.node]
            score = length_normalised(above.cum_logprob + logprob, above.step + 1, self.params)
            branch.node = self.tree.add(branch.node, token, logprob, score, "live", "")
        branch.logprobs = []

    def _grow(self, live: list[_Branch]) -> None:
        """Each goes on as it was, its draws too, and with others beside it whose draws begin anew.

        The request knows all of them first: should a fork find no memory, it lets go of those that were made.
        """
        self._branches = {}
        families: list[tuple[Sequence, list[Sequence]]] = []
        for branch in live:
            others = [self._fork(branch) for _ in range(1, self.params.branches)]
            branch.separators, branch.is_at_end = self._separators.copy(), False
            self._branches.update({own.sequence: own for own in (branch, *others)})
            families.append((branch.sequence, [other.sequence for other in others]))
        self.request.sequences = self.sequences
        for parent, children in families:
            self._pages.go_on(parent, children)

    def _fork(self, branch: _Branch) -> _Branch:
        sequence = branch.sequence.fork()
        sequence.seed = derive_seed(self.request.seed, self._n_streams)
        self._n_streams += 1
        return replace(
            branch,
            sequence=sequence,
            detokenizer=branch.detokenizer.copy(),
            separators=self._separators.copy(),
            logprobs=[],
            is_at_end=False,
        )

    def answers(self) -> list[Answer]:
        best_first = sorted(self._finished, key=lambda branch: -self.tree.nodes[branch.node].score)
        return [self._answer(branch, "stop") for branch in best_first]

    def unfinished(self, reason: FinishReason) -> list[Answer]:
        answers: list[Answer] = []
        for branch in self._branches.values():
            self._plant(branch)
            answers.append(self._answer(branch, reason))
        return sorted(answers, key=lambda answer: -answer.score)

    def _answer(self, branch: _Branch, reason: FinishReason) -> Answer:
        """reason: why it ends, if it is not finished."""
        sequence = branch.sequence
        return Answer(
            self._beam_score(branch),
            sequence.generated_tokens.tolist(),
            sequence.completion_logprobs or (),
            sequence.cumulative_logprob,
            sequence.finish_reason or reason,
            sequence.stop_reason,
            branch.node,
            branch.rerank_score,
        )

    def _rivals(self) -> list[Rival]:
        """All that are kept."""
        kept = (*self._finished, *self._branches.values())
        return [Rival(branch.sequence.generated_tokens, branch.sequence.completion_logprobs or ()) for branch in kept]
