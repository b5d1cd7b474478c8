"""Who runs next: the tokens of one step under a budget, and who gives way when pages run short."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass

import numpy as np

from llm_decoder.backends import KvCache
from llm_decoder.batch import StepBatch
from llm_decoder.kv_tier import KvTier
from llm_decoder.pace import Pace
from llm_decoder.run_ahead import waits_for_tokens
from llm_decoder.sequence import Sequence

__all__ = ["Scheduler", "SchedulerLimits"]


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """max_tokens_per_step: tokens a step computes. max_num_seqs: sequences that hold pages at once. max_rows_per_step:
    rows that sequences which want every row (prompt_logprobs, score) get a step, for those rows are wide."""

    max_tokens_per_step: int = 512
    max_num_seqs: int = 64
    max_rows_per_step: int = 512


class Scheduler:
    """First come, first served, where a request's priority counts as an earlier or later coming (Request.turn_s).

    Running sequences are kept in the order of their turns, waiting ones too; who gives way is always the running one
    whose turn is last, who is let in the waiting one whose turn is first. So the first always moves on, and as turns
    never change and priorities have bounds, nobody starves. Nobody gives way to who is only waiting.
    """

    def __init__(self, cache: KvCache, limits: SchedulerLimits, pace: Pace | None = None) -> None:
        """pace: None = prompts take what a step has room for."""
        self.cache = cache
        self.limits = limits
        self._pace = pace
        self.tier = KvTier(cache, pace)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.n_preemptions = 0
        # The next waiting sequence found no room; nothing changes until somebody lets go of pages.
        self._is_full = False

    def add(self, sequence: Sequence) -> None:
        if self.waiting and _turn_s(sequence) < _turn_s(self.waiting[-1]):
            self.waiting.insert(bisect_right(self.waiting, _turn_s(sequence), key=_turn_s), sequence)
            self._is_full = self._is_full and self.waiting[0] is not sequence
        else:
            self.waiting.append(sequence)

    def _add_again(self, sequence: Sequence) -> None:
        """It goes before those whose turn is the same."""
        self.waiting.insert(bisect_left(self.waiting, _turn_s(sequence), key=_turn_s), sequence)

    def plan(self, batch: StepBatch) -> Sequence | None:
        """Fills `batch` with the next step (Sequence.n_scheduled tokens each) and reserves its pages.

        Returns None, or the sequence that cannot be computed although nobody else holds pages; the batch is empty then.
        """
        chosen = self._choose()
        while chosen:
            batch.fill(chosen)
            if self.cache.reserve(batch.seq_ids, batch.counts):
                return None
            if self.drop_drafts(chosen):
                continue  # guesses make nobody give way
            if len(self.running) == 1:
                batch.fill([])
                return self.running[0]
            gone = self._make_room()
            chosen = [sequence for sequence in chosen if sequence not in gone]
        batch.fill([])
        if self._take_from_parked():
            return self.plan(batch)
        self._give_up_beams_that_wait()
        return None

    def plan_ahead(self, batch: StepBatch, guesses_pay: bool = False) -> bool:
        """As plan, while the tokens that the last step drew are not read yet: each counts as one more.

        False, and `batch` is empty, where they are to be read first: somebody waits for them, nobody has more to
        compute, or somebody would have to give way."""
        if not any(waits_for_tokens(sequence, guesses_pay) for sequence in self.running if not sequence.is_parked):
            chosen = self._choose(is_ahead=True)
            if chosen:
                batch.fill(chosen)
                if self.cache.reserve(batch.seq_ids, batch.counts):
                    return True
        batch.fill([])
        return False

    def _take_from_parked(self) -> bool:
        """Where nobody can be computed, who is parked gives way to those that wait. Whether anybody did."""
        parked = [sequence for sequence in self.running if sequence.is_parked] if self.waiting else []
        if parked:
            self.preempt(parked[-1])
        return bool(parked)

    def _give_up_beams_that_wait(self) -> None:
        """Where nobody can be computed, the beams that hold pages wait for some of their search that find none."""
        for sequence in list(self.waiting) if self.running else ():
            beams = sequence.request.beams
            if beams is not None and any(other.request is sequence.request for other in self.running):
                beams.give_up(sequence)
                self.waiting.remove(sequence)

    def _make_room(self) -> list[Sequence]:
        """Takes the pages of whom the first in turn can best do without; returns the sequences that have none now.

        The beams of a search give way together, for they can only go on together. A search that holds all pages
        itself gives one beam up. Of other requests the parked sequences give way first.
        """
        last = self.running[-1].request
        victims = [sequence for sequence in self.running if sequence.request is last]
        if last.beams is None:
            victims = [next((victim for victim in reversed(victims) if victim.is_parked), victims[-1])]
        elif len(victims) == len(self.running):
            victims = [last.beams.give_up_worst()]
            self.remove(victims[0])
            return victims
        for victim in reversed(victims):
            self.preempt(victim)
        return victims

    def _choose(self, *, is_ahead: bool = False) -> list[Sequence]:
        budget = self.limits.max_tokens_per_step
        rows = self.limits.max_rows_per_step
        chosen: list[Sequence] = []
        prefills: list[Sequence] = []
        for sequence in self.running:
            if sequence.is_parked or (is_ahead and sequence.is_drawn):
                continue
            if sequence.n_tokens + sequence.n_unread - sequence.n_computed == 1 and not sequence.wants_rows:
                sequence.n_scheduled = 1
                chosen.append(sequence)
            else:
                prefills.append(sequence)
        n_decodes = len(chosen)
        budget -= n_decodes
        room = before = self._room_for_prompts(chosen, budget)
        for sequence in prefills:
            rows, room = self._take_chunk(sequence, rows, room, chosen)
        while self.waiting and room > 0 and self._has_place(self.waiting[0]) and not self._is_full:
            if is_ahead and waits_for_tokens(self.waiting[0]):
                return []
            newcomer = self._admit_next()
            if newcomer is not None:
                rows, room = self._take_chunk(newcomer, rows, room, chosen)
        self._take_drafts(chosen, min(rows - n_decodes, budget - (before - room)))
        return chosen

    def _has_place(self, sequence: Sequence) -> bool:
        """Whether one sequence more may hold pages. A search by beams takes the places of all that it may have; they
        come back one after the other, so that each finds the pages of those before it."""
        request = sequence.request
        own = [other for other in self.running if other.request is request]
        if request.beams is not None and own:
            return all(other.n_pending <= 1 for other in own)
        return self._n_taken() + (1 if request.beams is None else request.beams.width) <= self.limits.max_num_seqs

    def _n_taken(self) -> int:
        """Places of the sequences that hold pages, and of all beams that their searches may have."""
        requests = dict.fromkeys(sequence.request for sequence in self.running)
        n_beams = sum(request.beams.width for request in requests if request.beams is not None)
        return n_beams + sum(sequence.request.beams is None for sequence in self.running)

    def _room_for_prompts(self, decodes: list[Sequence], budget: int) -> int:
        """Tokens of prompts in this step: fewer where an answer is read as it comes."""
        if self._pace is None or not any(sequence.request.stream for sequence in decodes):
            return budget
        n_sequences = min(len(self.running) + len(self.waiting), self.limits.max_num_seqs)
        return self._pace.most_prompt_tokens(len(decodes), n_sequences, budget)

    @staticmethod
    def _take_drafts(chosen: list[Sequence], room: int) -> None:
        """What prompts have left of a step goes to the drafts of the sequences that decode, the oldest first."""
        for sequence in chosen:
            if sequence.n_drafted:
                sequence.n_drafted = max(0, min(sequence.n_drafted, room))
                sequence.n_scheduled += sequence.n_drafted
                room -= sequence.n_drafted

    @staticmethod
    def drop_drafts(sequences: list[Sequence]) -> bool:
        """Whether there were any."""
        n_drafted = 0
        for sequence in sequences:
            n_drafted += sequence.n_drafted
            sequence.n_scheduled -= sequence.n_drafted
            sequence.n_drafted = 0
        return n_drafted > 0

    def _take_chunk(self, sequence: Sequence, rows: int, budget: int, chosen: list[Sequence]) -> tuple[int, int]:
        """Gives `sequence` as much of its pending tokens as rows and budget allow; returns what is left of them."""
        count = min(sequence.n_pending, budget, rows if sequence.wants_rows else budget)
        sequence.n_scheduled = count
        if count:
            chosen.append(sequence)
        return rows - (count if sequence.wants_rows else 0), budget - count

    def _admit_next(self) -> Sequence | None:
        """The oldest waiting sequence takes hold of its cached prefix and runs; None when its other tokens find no
        pages."""
        sequence = self.waiting[0]
        # A sequence that wants every row takes no prefix from the cache: there are no rows for what is not computed.
        tokens = sequence.tokens[:1] if sequence.wants_rows else sequence.tokens
        seq_id, n_cached = self.cache.admit(tokens, sequence.request.salt, self.tier.is_worth_loading)
        if not self._fits(sequence.n_tokens, n_cached):
            self.cache.release(seq_id)
            self._is_full = True
            return None
        self.waiting.popleft()
        sequence.seq_id, sequence.n_computed = seq_id, n_cached
        self.tier.note_admission(sequence)
        self.running.insert(bisect_right(self.running, _turn_s(sequence), key=_turn_s), sequence)
        metrics = sequence.request.metrics
        if not sequence.request.admitted_s:
            sequence.request.admitted_s = time.perf_counter()
            metrics.n_cached_tokens = n_cached
            metrics.queue_s = sequence.request.admitted_s - sequence.request.submitted_s
        return sequence

    def _fits(self, n_tokens: int, n_cached: int) -> bool:
        """Whether all its tokens find pages now, beside what running prefills still need and a page for each decode."""
        if not self.running:
            return True
        n_now = [n_cached, *(other.n_computed for other in self.running)]
        n_then = [n_tokens, *(other.n_tokens + self.cache.page_size for other in self.running)]
        return self.cache.has_room(
            np.array(n_now, np.int32), np.array(n_then, np.int32), self.limits.max_tokens_per_step
        )

    def preempt(self, sequence: Sequence) -> None:
        """Takes its pages away; it waits for its next turn, or for what it is parked for, and computes its tokens again
        then, or has what the tier kept of them brought back."""
        self.running.remove(sequence)
        self.cache.release(sequence.seq_id)
        self._is_full = False
        sequence.forget_pages()
        sequence.gave_way = True
        if not sequence.is_parked:
            self._add_again(sequence)
        self.n_preemptions += 1
        sequence.request.metrics.n_preemptions += 1

    def fan_out(self, root: Sequence, others: list[Sequence]) -> None:
        """`others` go on from where `root` is, on its pages; those without a place wait for one."""
        n_places = max(0, self.limits.max_num_seqs - self._n_taken())
        at = self.running.index(root) + 1
        for sequence in others[:n_places]:
            sequence.seq_id = self.cache.fork(root.seq_id)
            sequence.n_computed = root.n_computed
            sequence.wants_rows = False
            self.running.insert(at, sequence)
            at += 1
        for sequence in reversed(others[n_places:]):
            sequence.wants_rows = False
            self._add_again(sequence)

    def fork(self, parent: Sequence) -> Sequence:
        """Another that goes on from where `parent` is, on its pages; in line, when these were taken away."""
        sequence = parent.fork()
        if parent.seq_id < 0:
            self._add_again(sequence)
        else:
            sequence.seq_id = self.cache.fork(parent.seq_id)
            sequence.n_computed = parent.n_computed
            self.running.insert(self.running.index(parent) + 1, sequence)
        return sequence

    def park(self, sequence: Sequence) -> None:
        """It waits for something else than pages, and nothing of it is computed until it goes on. It keeps its pages as
        long as others can be computed beside them."""
        sequence.is_parked = True
        if sequence.seq_id < 0:
            self.waiting.remove(sequence)

    def go_on(self, parent: Sequence, others: list[Sequence]) -> None:
        """A parked sequence goes on, and others do from where it is, on its pages as far as it has them."""
        parent.is_parked = False
        if parent.seq_id >= 0:
            self.fan_out(parent, others)
            return
        for sequence in (*reversed(others), parent):
            self._add_again(sequence)
        self._is_full = False

    def remove(self, sequence: Sequence) -> None:
        """It is over: its pages are let go, or it leaves the queue."""
        if sequence.seq_id >= 0:
            self.running.remove(sequence)
            self.cache.release(sequence.seq_id)
            self._is_full = False
            sequence.seq_id = -1
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._is_full = False

    def describe_shortage(self, sequence: Sequence) -> str:
        """Why `sequence` cannot be computed although nobody else runs."""
        stats = self.cache.stats()
        return (
            f"[KV cache] the request needs room for {sequence.n_computed + max(1, sequence.n_scheduled)} tokens, the "
            f"pool has {stats['n_pages']} pages of {self.cache.page_size}, of which {stats['n_pinned']} are pinned and "
            f"{stats['n_free']} free; unpin prefixes or raise kv_cache_bytes"
        )


def _turn_s(sequence: Sequence) -> float:
    return sequence.request.turn_s
