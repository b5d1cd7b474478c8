"""What one step of the engine does, from plan to event. It knows no threads: engine.py gives it one."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as AnySequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import Backend
from llm_decoder.batch import SamplingBatch, StepBatch
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.errors import RequestFailedError
from llm_decoder.histograms import EngineHistograms
from llm_decoder.outputs import Completion, FinishReason, RequestOutput, StreamEvent, TokenLogprob
from llm_decoder.pace import Pace
from llm_decoder.scheduler import Scheduler, SchedulerLimits
from llm_decoder.search.params import SearchParams
from llm_decoder.search.ranking import by_final_score, scores_of
from llm_decoder.search.scoring import Aside, at_once
from llm_decoder.search.searches import begin_search, candidates_of, make_offers
from llm_decoder.sequence import Request, Sequence
from llm_decoder.speculation import Speculation, StepCost

__all__ = ["EngineCore"]

# logprobs [n_rows], ranks [n_rows], top_ids [n_rows, n_top], top_logprobs [n_rows, n_top], as Backend gives them.
Scores: TypeAlias = AnySequence[npt.NDArray[Any]]
# A sequence, the tokens it drew (or NOT_FINITE, NO_TOKEN_LEFT), and the rows of these scores that tell of them, from
# the number given. One token, and one for each draft before it.
Drawn: TypeAlias = tuple[Sequence, list[int], int, Scores]

# What the sampler gives in the place of a token, see decoder/sampler.h.
NOT_FINITE, NO_TOKEN_LEFT = -1, -2

# Rows of logits are as wide as the vocabulary; a step makes no more of them than fit here for those who want every row.
MAX_ROWS_BYTES = 64 << 20


class EngineCore:
    """Requests in, steps made, events out through each request's sink. For one thread, the one that built `backend`."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: TextDecoder,
        max_num_seqs: int = 64,
        start_speculation: Callable[[], Speculation | None] = lambda: None,
        aside: Aside = at_once,
    ) -> None:
        """aside: runs scorers, so that no step waits for one."""
        limits = SchedulerLimits(
            max_tokens_per_step=backend.max_tokens_per_step,
            max_num_seqs=min(max_num_seqs, backend.max_tokens_per_step),
            max_rows_per_step=max(1, MAX_ROWS_BYTES // (4 * backend.vocab_size)),
        )
        self.backend = backend
        self._step_cost = StepCost()
        self._pace = Pace(self._step_cost)
        self.scheduler = Scheduler(backend.cache, limits, self._pace)
        self.requests: dict[str, Request] = {}
        self._tokenizer = tokenizer
        self._start_speculation = start_speculation
        self._aside = aside
        self._scored: set[Request] = set()  # requests whose answers are being scored
        self._batch = StepBatch(backend.max_tokens_per_step)
        self._sampling = SamplingBatch()
        self._beam_sampling = SamplingBatch()
        self._n_finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._n_prompt_tokens = self._n_generated_tokens = self._n_computed_tokens = self._n_steps = 0
        self._n_drafts = self._n_drafted_tokens = self._n_accepted_tokens = self._n_corrupted = 0
        self._histograms = EngineHistograms()
        self._drawn_s = 0.0  # when the step's tokens were drawn
        self._busy_s = 0.0

    # -- requests in

    def add(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self._attempt(request, self._enqueue, request)

    def _enqueue(self, request: Request) -> None:
        root = self._sequence(request, 0)
        request.sequences.append(root)
        if isinstance(request.params, SearchParams):
            begin_search(request, root, request.text_decoder or self._tokenizer, self.scheduler)
        self._n_prompt_tokens += len(request.prompt_token_ids)
        self.scheduler.add(root)

    def _sequence(self, request: Request, index: int) -> Sequence:
        return Sequence(request, index, request.text_decoder or self._tokenizer, self._start_speculation())

    def cancel(self, request_id: str) -> None:
        """Its pages are let go at once; its answers end with "abort". Nothing happens to a request that is over."""
        request = self.requests.get(request_id)
        if request is not None:
            self._attempt(request, self._finish_all, request, "abort")

    def abandon(self, make_error: Callable[[], Exception]) -> None:
        """The end: every request is told so; nothing is tidied, the backend may be in any state."""
        requests, self.requests = list(self.requests.values()), {}
        for request in requests:
            request.finished = True
            _send(request, make_error())

    @property
    def n_scored(self) -> int:
        """Open requests that no step is needed for: a scorer has their answers."""
        return len(self._scored)

    # -- a step

    def step(self) -> bool:
        """Makes one step. False when there is nothing to do.

        What is raised on behalf of one request ends that request (_attempt). What the cache raises, or the decoder's
        step, ends the engine: engine and core then disagree about who holds which pages, and no answer could be trusted
        any more. The one exception is memory, see _give_way.
        """
        started_s = time.perf_counter()
        self.backend.cache.set_time(started_s)
        stuck = self.scheduler.plan(self._batch)
        if stuck is not None:
            self._fail(stuck.request, RequestFailedError(self.scheduler.describe_shortage(stuck)))
            return True
        batch = self._batch
        if not batch.sequences:
            return self._go_on_without_a_step()
        try:
            n_rows = self.backend.step(batch.tokens, batch.seq_ids, batch.counts, batch.want)
        except MemoryError as error:
            self._give_way(error)
            return True
        draws, rows, collectors, searching = self._rows()
        not_finite = self._collect(collectors, n_rows) if collectors else set()
        drawn = self._draw(draws, rows) if draws else []
        not_finite |= self._make_offers(searching)
        self._drawn_s = time.perf_counter()
        not_finite.update(sequence.request for sequence, tokens, _, _ in drawn if tokens[0] == NOT_FINITE)
        n_decodes, n_drafted = self._verify(drawn)
        for request in not_finite:
            if not request.finished:
                self._n_corrupted += 1
                self._fail(request, _numbers_are_broken(request))
        self._commit()
        if not_finite:
            # Earlier chunks of a prompt may be in the index with the same broken numbers: nobody shall find them.
            self.backend.cache.clear_prefix_index()
        self._fan_out()
        for sequence, tokens, row, scores in drawn:
            if not sequence.request.finished:
                self._attempt(sequence.request, self._advance_all, sequence, tokens, row, scores)
        for request in dict.fromkeys(sequence.request for sequence, _ in searching):
            if not request.finished:
                self._attempt(request, self._take_turn, request)
        self._finish_prompts_that_want_no_answer()
        self._n_steps += 1
        self._histograms.step_tokens.add(len(batch.tokens))
        step_s = time.perf_counter() - started_s
        self._busy_s += step_s
        n_prompt_tokens = len(batch.tokens) - n_decodes - n_drafted
        if not n_prompt_tokens:
            self._step_cost.learn(len(batch.tokens), step_s)
        elif not n_drafted:
            self._pace.learn(n_decodes, n_prompt_tokens, step_s)
        return True

    def _give_way(self, error: MemoryError) -> None:
        """The step found no memory. It asks for it, for its rows of logits, before it writes to any page, so cache and
        decoder are as they were: drafts are given up, or else who wants most rows ends, the youngest among equals, and
        the others try again."""
        if self.scheduler.drop_drafts(self._batch.sequences):
            return
        youngest_first = reversed(self._batch.sequences)
        widest = max(youngest_first, key=lambda sequence: sequence.n_scheduled if sequence.wants_rows else 1)
        self._fail(widest.request, _failure(widest.request, error))

    def _rows(self) -> tuple[list[Sequence], list[int], list[tuple[Sequence, int]], list[tuple[Sequence, int]]]:
        """Who draws a token, each one's first row of the step's logits (more follow, one a draft), (who wants every
        row, its first row), and (who is a beam, its row).

        A prompt that is complete gets the sequences of its other answers here: they draw from the same row.
        """
        draws: list[Sequence] = []
        rows: list[int] = []
        collectors: list[tuple[Sequence, int]] = []
        searching: list[tuple[Sequence, int]] = []
        n_rows = 0
        for sequence in self._batch.sequences:
            count = sequence.n_scheduled
            if sequence.n_drafted:
                draws.append(sequence)
                rows.append(n_rows)
                n_rows += count
                continue
            is_complete = sequence.n_computed + count == sequence.n_tokens
            if sequence.wants_rows:
                collectors.append((sequence, n_rows))
                n_rows += count
            elif is_complete:
                n_rows += 1
            if not is_complete or sequence.request.max_new == 0:
                continue
            if sequence.request.group is not None:
                searching.append((sequence, n_rows - 1))
                continue
            draws.append(sequence)
            rows.append(n_rows - 1)
            n_before = len(sequence.request.sequences)
            self._attempt(sequence.request, self._add_others, sequence.request)
            others = sequence.request.sequences[n_before:]
            draws.extend(others)
            rows.extend([n_rows - 1] * len(others))
        return draws, rows, collectors, searching

    def _add_others(self, request: Request) -> None:
        """Sequences for the answers that have none yet."""
        for index in range(len(request.sequences), request.n_sequences):
            request.sequences.append(self._sequence(request, index))

    # -- rows and tokens of a step

    def _collect(self, collectors: list[tuple[Sequence, int]], n_rows: int) -> set[Request]:
        """Keeps the rows of those who want every one; returns the requests whose rows are not finite."""
        not_finite: set[Request] = set()
        scored = [(sequence, row) for sequence, row in collectors if sequence.request.rows is None]
        if scored:
            self._collect_logprobs(scored, n_rows, not_finite)
        for kind, read in (("logits", self.backend.logits), ("hidden", self.backend.hidden)):
            wanting = [(sequence, row) for sequence, row in collectors if sequence.request.rows == kind]
            if not wanting:
                continue
            try:
                values = read()
            except Exception as error:  # noqa: BLE001 - it is told to those who made it necessary
                for sequence, _ in wanting:
                    self._fail(sequence.request, _failure(sequence.request, error))
                continue
            for sequence, row in wanting:
                part = values[row : row + sequence.n_scheduled]
                self._attempt(sequence.request, self._keep_rows, sequence, part, not_finite)
        return not_finite

    @staticmethod
    def _keep_rows(sequence: Sequence, part: npt.NDArray[np.float32], not_finite: set[Request]) -> None:
        """part: float32 [n_scheduled, width]"""
        request = sequence.request
        if request.collected is None:
            request.collected = np.empty((sequence.n_prompt, part.shape[1]), np.float32)
        request.collected[sequence.n_computed : sequence.n_computed + len(part)] = part
        if not np.isfinite(part).all():
            not_finite.add(request)

    def _collect_logprobs(self, scored: list[tuple[Sequence, int]], n_rows: int, not_finite: set[Request]) -> None:
        try:
            scores = self._log_probs(scored, n_rows)
        except Exception:  # noqa: BLE001 - each asks alone below: who it is that raises fails, the others do not
            scores = None
        for sequence, row in scored:
            self._attempt(sequence.request, self._keep_logprobs, sequence, row, n_rows, scores, not_finite)

    def _log_probs(self, scored: list[tuple[Sequence, int]], n_rows: int) -> Scores:
        """Of each prompt token that follows a row of these sequences; the other rows' entries mean nothing."""
        targets = np.zeros(n_rows, np.int32)
        for sequence, row in scored:
            following = sequence.tokens[sequence.n_computed + 1 : sequence.n_computed + sequence.n_scheduled + 1]
            targets[row : row + len(following)] = following
        n_top = max(sequence.request.params.prompt_logprobs or 0 for sequence, _ in scored)
        return self.backend.log_probs(targets, n_top)

    def _keep_logprobs(
        self, sequence: Sequence, row: int, n_rows: int, scores: Scores | None, not_finite: set[Request]
    ) -> None:
        if scores is None:
            scores = self._log_probs([(sequence, row)], n_rows)
        request = sequence.request
        following = sequence.tokens[sequence.n_computed + 1 : sequence.n_computed + sequence.n_scheduled + 1].tolist()
        if request.prompt_logprobs is None:
            request.prompt_logprobs = [None]
        n_own = request.params.prompt_logprobs or 0
        for i, token in enumerate(following, row):
            request.prompt_logprobs.append(_entry(i, token, n_own, scores))
        # -inf is an answer (a token with no chance at all), NaN is none.
        if np.isnan(scores[0][row : row + len(following)]).any():
            not_finite.add(request)

    def _draw(self, draws: list[Sequence], rows: list[int]) -> list[Drawn]:
        """What each draws from its row. When the draw for all of them raises, each draws alone: a token depends on its
        own row and parameters only, so it is the same, and only who it is that raises fails."""
        try:
            return self._draw_together(draws, rows, self._sampling)
        except Exception:  # noqa: BLE001 - it is raised again, and told, below
            self._sampling = SamplingBatch()  # it may have been left half made
        drawn: list[Drawn] = []
        for sequence, row in zip(draws, rows, strict=True):
            if not sequence.request.finished:
                self._attempt(sequence.request, self._draw_alone, sequence, row, drawn)
        return drawn

    def _draw_alone(self, sequence: Sequence, row: int, drawn: list[Drawn]) -> None:
        drawn += self._draw_together([sequence], [row], SamplingBatch())

    def _draw_together(self, draws: list[Sequence], rows: list[int], sampling: SamplingBatch) -> list[Drawn]:
        params = sampling.params(draws)
        all_rows = [row + i for sequence, row in zip(draws, rows, strict=True) for i in range(1 + sequence.n_drafted)]
        sampled, *scores = self.backend.sample(np.array(all_rows, np.int32), params, sampling.n_top)
        tokens = sampled.tolist()
        drawn: list[Drawn] = []
        begin = 0
        for sequence in draws:
            end = begin + 1 + sequence.n_drafted
            drawn.append((sequence, tokens[begin:end], begin, scores))
            begin = end
        return drawn

    # -- beams

    def _go_on_without_a_step(self) -> bool:
        """The turns of searches whose beams all have offers, now that those are given up that found no pages."""
        ready = [r for r in self.requests.values() if r.group is not None and r.sequences and r.group.is_ready]
        for request in ready:
            self._attempt(request, self._take_turn, request)
        return bool(ready)

    def _make_offers(self, searching: list[tuple[Sequence, int]]) -> set[Request]:
        """Each beam learns its likeliest continuations; as with draws, who it is that raises fails alone. Returns the
        requests whose rows are not finite."""
        if not searching:
            return set()
        try:
            self._offer(searching, self._beam_sampling)
        except Exception:  # noqa: BLE001 - it is raised again, and told, below
            self._beam_sampling = SamplingBatch()
            for beam in searching:
                if not beam[0].request.finished:
                    self._attempt(beam[0].request, self._offer, [beam], SamplingBatch())
        return {s.request for s, _ in searching if s.request.group is not None and s.request.group.is_broken}

    def _offer(self, searching: list[tuple[Sequence, int]], sampling: SamplingBatch) -> None:
        sequences, rows = zip(*searching, strict=True)
        for sequence, offer in zip(sequences, make_offers(self.backend, sequences, rows, sampling), strict=True):
            assert sequence.request.group is not None
            sequence.request.group.offer(sequence, offer)

    def _take_turn(self, request: Request) -> None:
        group = request.group
        assert group is not None
        if not group.is_ready:
            return
        if group.has_no_token and not group.answers():
            self._fail(request, _nothing_to_draw(request.sequences[0]))
            return
        if not request.first_token_s:
            self._note_first_token(request)
        group.take_turn()
        request.sequences = group.sequences
        n_new = len(group.live)
        request.metrics.n_generated_tokens += n_new
        self._n_generated_tokens += n_new
        if request.search_stream is not None:
            _send(request, request.search_stream.after_turn(group))
        if group.is_over:
            self._finish_search(request, group.answers()[0].reason)

    def _finish_search(self, request: Request, reason: FinishReason) -> None:
        for sequence in request.sequences:
            self.scheduler.remove(sequence)
        assert request.group is not None
        request.metrics.n_dropped_beams = request.group.n_given_up
        self._rank(request, reason)

    # -- answers that are compared

    def _rank(self, request: Request, reason: FinishReason) -> None:
        """All answers of a search are whole, and no page is held for them. A scorer reads them now, where there is one;
        not those of a search that was cancelled."""
        candidates = candidates_of(request, request.text_decoder or self._tokenizer, reason)
        scorer = request.scorer
        if scorer is None or reason == "abort":
            self._tell_best(request, candidates, reason)
            return
        request.completions = candidates
        request.answered_s = time.perf_counter()
        self._scored.add(request)
        texts = [candidate.text for candidate in candidates]

        def score() -> list[float]:
            return [] if request.finished else scorer(texts)

        def take(scores: Any) -> None:
            if not request.finished:
                self._attempt(request, self._take_scores, request, candidates, scores, reason)

        self._aside(score, take)

    def _take_scores(self, request: Request, candidates: list[Completion], scores: Any, reason: FinishReason) -> None:
        if isinstance(scores, BaseException):
            raise scores
        params = request.params
        assert isinstance(params, SearchParams)
        self._tell_best(request, by_final_score(candidates, scores, params), reason, is_scored=True)

    def _tell_best(
        self, request: Request, candidates: list[Completion], reason: FinishReason, *, is_scored: bool = False
    ) -> None:
        """candidates: of a search that is over, the best first."""
        request.completions = candidates[: request.params.n]
        self._finish_request(request, reason)
        output = request.output()
        if request.search_stream is None:
            _send(request, output)
            return
        events = request.search_stream.last(request.completions, scores_of(candidates) if is_scored else None)
        events[-1].output = output
        for event in events:
            _send(request, event)

    def _verify(self, drawn: list[Drawn]) -> tuple[int, int]:
        """Cuts off what was drawn behind a draft that is wrong: nobody would have drawn it, one token a step. Returns
        how many sequences the step has that decode, and how many drafts."""
        n_decodes = sum(sequence.n_pending == 1 for sequence in self._batch.sequences)
        n_drafted = sum(sequence.n_drafted for sequence in self._batch.sequences)
        n_rows = len(self._batch.tokens) - n_drafted
        fixed_rows = self._step_cost.fixed_rows
        for sequence, tokens, _, _ in drawn:
            if sequence.n_drafted:
                n_accepted = _n_accepted(tokens, sequence.drafted_tokens.tolist(), sequence.request.stop_ids)
                sequence.n_rejected = 1 + sequence.n_drafted - len(tokens)
                metrics = sequence.request.metrics
                metrics.n_drafted_tokens += sequence.n_drafted
                metrics.n_accepted_tokens += n_accepted
                self._n_drafts += 1
                self._n_drafted_tokens += sequence.n_drafted
                self._n_accepted_tokens += n_accepted
            else:
                n_accepted = 0
            if sequence.speculation is not None:
                sequence.speculation.learn(len(tokens), sequence.n_drafted, n_accepted, n_rows, fixed_rows)
            sequence.n_drafted = 0
        return n_decodes, n_drafted

    def _commit(self) -> None:
        """The step's tokens are in pages now, but for drafts that were wrong, and for requests that have failed: theirs
        are let go already."""
        batch = self._batch
        if not any(sequence.n_rejected or sequence.request.finished for sequence in batch.sequences):
            self.backend.cache.commit(batch.seq_ids, batch.counts, batch.tokens)
        else:
            self._commit_part()
        for sequence in batch.sequences:
            sequence.n_computed += sequence.n_scheduled - sequence.n_rejected
            sequence.n_rejected = 0
            self._n_computed_tokens += sequence.n_scheduled
            if sequence.wants_rows and sequence.n_computed == sequence.n_tokens:
                sequence.wants_rows = False

    def _commit_part(self) -> None:
        batch = self._batch
        seq_ids: list[int] = []
        tokens: list[npt.NDArray[np.int32]] = []
        begin = 0
        for sequence in batch.sequences:
            if not sequence.request.finished:
                seq_ids.append(sequence.seq_id)
                tokens.append(batch.tokens[begin : begin + sequence.n_scheduled - sequence.n_rejected])
            begin += sequence.n_scheduled
        if tokens:
            counts = np.array([len(part) for part in tokens], np.int32)
            self.backend.cache.commit(np.array(seq_ids, np.int64), counts, np.concatenate(tokens))

    @staticmethod
    def _note_first_token(request: Request) -> None:
        request.first_token_s = time.perf_counter()
        request.metrics.time_to_first_token_s = request.first_token_s - request.submitted_s

    def _fan_out(self) -> None:
        for root in self._batch.sequences:
            sequences = root.request.sequences
            if len(sequences) > 1 and root is sequences[0] and root.n_generated == 0 and not root.request.finished:
                self.scheduler.fan_out(root, sequences[1:])

    def _finish_prompts_that_want_no_answer(self) -> None:
        for sequence in self._batch.sequences:
            request = sequence.request
            if request.max_new == 0 and sequence.n_pending == 0 and not request.finished:
                self._attempt(request, self._add_others, request)
                if not request.finished:
                    self._attempt(request, self._finish_all, request, "length")

    # -- tokens for a sequence

    def _advance_all(self, sequence: Sequence, tokens: list[int], row: int, scores: Scores) -> None:
        n_before = sequence.n_generated
        for i, token in enumerate(tokens, row):
            self._advance(sequence, token, i, scores)
            if sequence.finish_reason is not None:
                break
        else:
            sequence.draft()
        n_new = sequence.n_generated - n_before
        if n_new and sequence.last_token_s:
            self._histograms.inter_token.add((self._drawn_s - sequence.last_token_s) / n_new, n_new)
        sequence.last_token_s = self._drawn_s

    def _advance(self, sequence: Sequence, token: int, row: int, scores: Scores) -> None:
        """`token` was drawn; its log probabilities are in `row` of `scores`."""
        request = sequence.request
        if token == NO_TOKEN_LEFT:
            self._fail(request, _nothing_to_draw(sequence))
            return
        if not request.first_token_s:
            self._note_first_token(request)
        sequence.append(token)
        sequence.cumulative_logprob += float(scores[0][row])
        request.metrics.n_generated_tokens += 1
        self._n_generated_tokens += 1
        if sequence.completion_logprobs is not None:
            sequence.completion_logprobs.append(_entry(row, token, request.params.logprobs or 0, scores))
        if sequence.follower is not None:
            sequence.follower.advance(token)
        if token in request.stop_ids:
            if token not in request.eos_token_ids:
                sequence.stop_reason = token
            self._finish(sequence, "stop")
            return
        is_over = False
        if request.tells_deltas or sequence.stop_matcher is not None:
            sequence.n_decoded += 1
            is_over = self._add_text(sequence, sequence.detokenizer.push((token,)))
        if is_over or (sequence.follower is not None and sequence.follower.is_complete):
            self._finish(sequence, "stop")
        elif sequence.n_generated >= request.max_new:
            self._finish(sequence, "length")
        elif request.tells_deltas and sequence.unsent_text:
            _send(request, self._event(sequence))

    def _add_text(self, sequence: Sequence, text: str) -> bool:
        """Text that has come out of tokens goes on to the answer. True when it completes a stop string."""
        matcher = sequence.stop_matcher
        stop: str | None = None
        if matcher is not None and sequence.n_generated >= sequence.request.params.min_tokens:
            text, stop = matcher.push(text)
        if text:
            sequence.text.append(text)
            sequence.unsent_text += text
        if stop is not None:
            sequence.stop_reason = stop
        return stop is not None

    def _finish_all(self, request: Request, reason: FinishReason) -> None:
        if request.completions is not None:
            self._tell_best(request, request.completions, reason)
        elif request.group is not None:
            self._finish_search(request, reason)
        else:
            for sequence in request.sequences:
                if sequence.finish_reason is None:
                    self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        self.scheduler.remove(sequence)
        # The last bytes of an answer may complete a stop string too.
        sequence.finish_reason = "stop" if self._finish_text(sequence, reason) else reason
        is_last = all(other.finish_reason is not None for other in request.sequences)
        if isinstance(request.params, SearchParams):
            if is_last:
                self._rank(request, reason)
            return
        event = self._event(sequence) if request.stream else None
        output = request.output() if is_last else None
        if event is not None:
            event.output = output
        if is_last:
            self._finish_request(request, sequence.finish_reason)
        item = event or output
        if item is not None:
            _send(request, item)

    def _finish_text(self, sequence: Sequence, reason: FinishReason) -> bool:
        """Takes the text of tokens not decoded yet and what was held back. True when a stop string ends the text."""
        if isinstance(sequence.stop_reason, str):
            return True
        request = sequence.request
        tokens = sequence.generated_tokens.tolist()
        if reason == "stop" and tokens[-1] in request.stop_ids and not request.params.include_stop_str_in_output:
            tokens.pop()
        if self._add_text(sequence, sequence.detokenizer.push(tokens[sequence.n_decoded :])):
            return True
        if self._add_text(sequence, sequence.detokenizer.flush()):
            return True
        if sequence.stop_matcher is not None:
            held = sequence.stop_matcher.flush()
            sequence.text.append(held)
            sequence.unsent_text += held
        return False

    def _finish_request(self, request: Request, reason: FinishReason) -> None:
        request.finished = True
        self.requests.pop(request.request_id, None)
        self._scored.discard(request)
        self._n_finished[reason] += 1
        metrics = request.metrics
        metrics.n_prompt_tokens = len(request.prompt_token_ids)
        now_s = time.perf_counter()
        metrics.total_s = now_s - request.submitted_s
        n_later = metrics.n_generated_tokens - request.n_side_by_side
        answered_s = request.answered_s or now_s
        if n_later > 0 and answered_s > request.first_token_s:
            metrics.tokens_per_s = n_later / (answered_s - request.first_token_s)
        self._histograms.add_request(request, now_s)

    def _event(self, sequence: Sequence) -> StreamEvent:
        request = sequence.request
        n_sent, sequence.n_sent = sequence.n_sent, sequence.n_generated
        text, sequence.unsent_text = sequence.unsent_text, ""
        logprobs = sequence.completion_logprobs
        return StreamEvent(
            index=sequence.index,
            text=text,
            token_ids=sequence.generated_tokens[n_sent:].tolist(),
            finish_reason=sequence.finish_reason,
            logprobs=None if logprobs is None else logprobs[n_sent:],
            dropped_messages=request.dropped_messages,
            stop_reason=sequence.stop_reason,
            prompt_token_ids=request.prompt_token_ids,
        )

    # -- failure

    def _attempt(self, request: Request, do: Callable[..., None], *arguments: Any) -> None:
        """Calls do(*arguments). What it raises ends `request`, its pages are let go, and nobody else notices."""
        try:
            do(*arguments)
        except Exception as error:  # noqa: BLE001 - it is told to the request that it is about
            self._fail(request, _failure(request, error))

    def _fail(self, request: Request, error: Exception) -> None:
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "error"
                self.scheduler.remove(sequence)
        self._finish_request(request, "error")
        _send(request, error)

    # -- numbers

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and what is held now. Times in seconds; tokens_per_s over the time spent in steps."""
        pages = self.backend.cache.stats()
        n_looked_up = pages["n_query_tokens"]
        return {
            "n_running": len(self.scheduler.running),
            "n_waiting": len(self.scheduler.waiting),
            "n_requests": len(self.requests),
            "n_finished": dict(self._n_finished),
            "n_steps": self._n_steps,
            "n_preemptions": self.scheduler.n_preemptions,
            "n_prompt_tokens": self._n_prompt_tokens,
            "n_generated_tokens": self._n_generated_tokens,
            "n_computed_tokens": self._n_computed_tokens,
            "n_corrupted": self._n_corrupted,
            "n_drafts": self._n_drafts,
            "n_drafted_tokens": self._n_drafted_tokens,
            "n_accepted_tokens": self._n_accepted_tokens,
            "tokens_per_s": self._n_generated_tokens / self._busy_s if self._busy_s else 0.0,
            "busy_s": self._busy_s,
            "prefix_hit_rate": pages["n_hit_tokens"] / n_looked_up if n_looked_up else 0.0,
            "histograms": self._histograms.as_dict() | self._page_ages(),
            "pages": dict(pages),
            "page_size": self.backend.page_size,
            "max_model_len": self.backend.max_model_len,
            "backend": self.backend.info(),
        }

    def _page_ages(self) -> dict[str, dict[str, Any]]:
        ages = self.backend.cache.durations()
        bounds = ages.pop("bounds")
        return {
            f"page_{name}": {"bounds": bounds, "counts": counts, "sum": sum_s} for name, (counts, sum_s) in ages.items()
        }


def _n_accepted(tokens: list[int], draft: list[int], stop_ids: frozenset[int]) -> int:
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


def _failure(request: Request, error: Exception) -> RequestFailedError:
    """What a request is told that made `error` be raised."""
    if isinstance(error, RequestFailedError):
        return error
    place = f"[request {request.request_id}]"
    if isinstance(error, MemoryError):
        failure = RequestFailedError(
            f"{place} needed more memory than there was; ask for fewer tokens, log probabilities or answers at once"
        )
    else:
        failure = RequestFailedError(
            f"{place} could not be computed: {type(error).__name__}: {error}; it ends here, others go on. Nothing that "
            "the library accepts should come to this: please report it"
        )
    failure.__cause__ = error
    return failure


def _nothing_to_draw(sequence: Sequence) -> RequestFailedError:
    params = sequence.request.params
    names = ("structured_outputs", "allowed_token_ids", "bad_token_ids", "bad_words", "min_tokens")
    return RequestFailedError(
        f"[request {sequence.request.request_id}] needs a token to draw, got none after {sequence.n_generated}: what "
        f"allowed_token_ids{' and structured_outputs' if sequence.follower else ''} allow, bad_token_ids, bad_words or "
        "min_tokens forbid here; allow another one",
        param=next((name for name in names if getattr(params, name)), None),
    )


def _numbers_are_broken(request: Request) -> RequestFailedError:
    return RequestFailedError(
        f"[request {request.request_id}] the model gave logits that are not finite; it ends here, others go on. Check "
        "the weights"
    )


def _send(request: Request, item: StreamEvent | RequestOutput | Exception) -> None:
    try:
        request.sink(item)
    except Exception:  # noqa: BLE001 - a consumer that breaks is gone; it must not end the requests of others
        request.sink = _nobody


def _nobody(item: StreamEvent | RequestOutput | Exception) -> None:
    """Listens no more."""


def _entry(row: int, token: int, n_top: int, scores: Scores) -> TokenLogprob:
    logprobs, ranks, top_ids, top_logprobs = scores
    top = zip(top_ids[row, :n_top].tolist(), top_logprobs[row, :n_top].tolist(), strict=True)
    return TokenLogprob(token, float(logprobs[row]), int(ranks[row]), tuple(top))
