"""What one step of the engine does, from plan to event. It knows no threads: engine.py gives it one."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import Backend
from llm_decoder.batch import SamplingBatch, StepBatch
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.draws import NO_TOKEN_LEFT, NOT_FINITE, Drawn, Draws, MadeStep, Scores, n_accepted
from llm_decoder.errors import DeviceLostError, RequestFailedError
from llm_decoder.histograms import EngineHistograms
from llm_decoder.outputs import Completion, FinishReason, RequestOutput, StreamEvent, TokenLogprob
from llm_decoder.pace import Pace
from llm_decoder.run_ahead import waits_for_tokens
from llm_decoder.scheduler import Scheduler, SchedulerLimits
from llm_decoder.search.group import SearchGroup
from llm_decoder.search.params import SearchParams
from llm_decoder.search.ranking import by_final_score, scores_of
from llm_decoder.search.scoring import Aside, at_once
from llm_decoder.search.search import Search
from llm_decoder.search.searches import begin_search, candidates_of, make_offers
from llm_decoder.search.steps import StepGroup
from llm_decoder.sequence import Request, Sequence
from llm_decoder.speculation import Gain, Speculation, StepCost

__all__ = ["EngineCore"]

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
        self._gain = Gain()
        self._pace = Pace(self._step_cost)
        self.scheduler = Scheduler(backend.cache, limits, self._pace)
        self.requests: dict[str, Request] = {}
        self._tokenizer = tokenizer
        self._start_speculation = start_speculation
        self._aside = aside
        self._scored: set[Request] = set()  # requests whose answers are being scored
        self._batch = StepBatch(backend.max_tokens_per_step)
        self._draws = Draws(backend, self._attempt)
        self._unread: MadeStep | None = None  # what it draws is begun, and read when the next one is launched
        self._is_behind = False  # the last step drew nothing, so that nobody waits for its end
        self._beam_sampling = SamplingBatch()
        self._n_finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._n_prompt_tokens = self._n_generated_tokens = self._n_computed_tokens = self._n_steps = 0
        self._n_drafts = self._n_drafted_tokens = self._n_accepted_tokens = self._n_corrupted = 0
        self._n_pruned = self._n_scored = 0
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
        compares = isinstance(request.params, SearchParams) and request.params.method != "sample"
        speculation = None if compares else self._start_speculation()
        return Sequence(request, index, request.text_decoder or self._tokenizer, speculation)

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
        """Makes one step and reads what it has drawn. Where the backend runs ahead, and everybody lets it
        (run_ahead.py), that is read after the next one is launched. False when there is nothing to do.

        What is raised on behalf of one request ends that request (_attempt). What the cache raises, or the decoder's
        step, ends the engine: engine and core then disagree about who holds which pages, and no answer could be trusted
        any more. The one exception is memory, see _give_way.
        """
        started_s = time.perf_counter()
        self.backend.cache.set_time(started_s)
        batch, before = self._batch, self._unread
        if before is not None:
            self.scheduler.plan_ahead(batch, self._gain.is_worth_waiting)
        else:
            stuck = self.scheduler.plan(batch)
            if stuck is not None:
                self._fail(stuck.request, RequestFailedError(self.scheduler.describe_shortage(stuck)))
                return True
            if not batch.sequences:
                return self._go_on_without_a_step()
        n_rows = 0
        if batch.sequences:
            try:
                n_rows = self.backend.step(batch.tokens, batch.seq_ids, batch.counts, batch.want)
            except MemoryError as error:
                if before is None:
                    self._give_way(error)
                    return True
                batch.fill([])  # it is planned again, with nothing unread
        made = self._made_step(started_s)
        if before is None and self._reads_at_once():
            self._read(made, n_rows)
        else:
            self._read_one_behind(before, made)
        if made.n_tokens:
            self._n_steps += 1
            self._histograms.step_tokens.add(made.n_tokens)
        self._busy_s += time.perf_counter() - started_s
        return True

    def _reads_at_once(self) -> bool:
        return not self.backend.runs_ahead or any(waits_for_tokens(sequence) for sequence in self._batch.sequences)

    def _read(self, made: MadeStep, n_rows: int) -> None:
        not_finite = self._collect(made.collectors, n_rows) if made.collectors else set()
        drawn = self._draws.take(made.draws, made.rows) if made.draws else []
        not_finite |= self._make_offers(made.searching)
        self._drawn_s = time.perf_counter()
        self._settle(made, drawn, made, not_finite)
        self._learn(made, time.perf_counter() - made.started_s)
        self._is_behind = False

    def _read_one_behind(self, before: MadeStep | None, made: MadeStep) -> None:
        """What `made` draws is begun; what the step before it has drawn is read."""
        is_begun = bool(made.draws) and self._draws.begin(made.draws, made.rows)
        self._unread = made if is_begun else None
        drawn: list[Drawn] = []
        if before is not None:
            drawn = self._draws.end(self._batch)
            last_drawn_s, self._drawn_s = self._drawn_s, time.perf_counter()
            self._learn(before, self._drawn_s - max(before.started_s, last_drawn_s))
        self._settle(before or made, drawn, made, set())
        if made.draws and not is_begun:
            self._batch.fill([])
            drawn = self._draws.take(made.draws, made.rows)
            self._drawn_s = time.perf_counter()
            self._settle(made, drawn, MadeStep(made.started_s), set())
        if made.n_tokens:
            self._is_behind = not made.draws

    def _settle(self, drew: MadeStep, drawn: list[Drawn], made: MadeStep, not_finite: set[Request]) -> None:
        """drawn: what the step `drew` has drawn. made: that step, or the one behind it; its tokens are in pages now."""
        not_finite.update(sequence.request for sequence, tokens, _, _ in drawn if tokens[0] == NOT_FINITE)
        self._verify(drawn, drew)
        for request in not_finite:
            if not request.finished:
                self._n_corrupted += 1
                self._fail(request, _numbers_are_broken(request))
        self._commit()
        if not_finite:
            # Earlier chunks of a prompt may be in the index with the same broken numbers: nobody shall find them.
            self.backend.cache.clear_prefix_index()
        for root, others in made.roots:
            if not root.request.finished:
                self.scheduler.fan_out(root, others)
        for sequence, tokens, row, scores in drawn:
            if sequence.finish_reason is None:
                self._attempt(sequence.request, self._advance_all, sequence, tokens, row, scores)
        advanced = [sequence.request for sequence, _ in drew.searching] + [entry[0].request for entry in drawn]
        for request in dict.fromkeys(advanced):
            if not request.finished:
                self._attempt(request, self._take_turn, request)
        self._finish_prompts_that_want_no_answer()

    def _learn(self, made: MadeStep, seconds: float) -> None:
        """The step took so long."""
        n_prompt_tokens = made.n_tokens - made.n_decodes - made.n_drafted
        if made.is_behind:
            return
        if not n_prompt_tokens:
            self._step_cost.learn(made.n_tokens, seconds)
        elif not made.n_drafted:
            self._pace.learn(made.n_decodes, n_prompt_tokens, seconds)

    def _give_way(self, error: MemoryError) -> None:
        """The step found no memory. It asks for it, for its rows of logits, before it writes to any page, so cache and
        decoder are as they were: drafts are given up, or else who wants most rows ends, the youngest among equals, and
        the others try again."""
        if self.scheduler.drop_drafts(self._batch.sequences):
            return
        youngest_first = reversed(self._batch.sequences)
        widest = max(youngest_first, key=lambda sequence: sequence.n_scheduled if sequence.wants_rows else 1)
        self._fail(widest.request, _failure(widest.request, error))

    def _made_step(self, started_s: float) -> MadeStep:
        """A prompt that is complete gets the sequences of its other answers here: they draw from the same row."""
        made = MadeStep(started_s, len(self._batch.tokens), is_behind=self._is_behind)
        draws, rows = made.draws, made.rows
        n_rows = 0
        for sequence in self._batch.sequences:
            count = sequence.n_scheduled
            n_pending = sequence.n_pending
            made.n_decodes += n_pending == 1
            if sequence.n_drafted:
                made.n_drafted += sequence.n_drafted
                draws.append(sequence)
                rows.append(n_rows)
                n_rows += count
                continue
            is_complete = count == n_pending
            if sequence.wants_rows:
                made.collectors.append((sequence, n_rows))
                n_rows += count
            elif is_complete:
                n_rows += 1
            if not is_complete or sequence.request.max_new == 0:
                continue
            if sequence.request.beams is not None:
                made.searching.append((sequence, n_rows - 1))
                continue
            draws.append(sequence)
            rows.append(n_rows - 1)
            if sequence.n_generated:
                continue
            n_before = len(sequence.request.sequences)
            self._attempt(sequence.request, self._add_others, sequence.request)
            others = sequence.request.sequences[n_before:]
            if others:
                made.roots.append((sequence, others))
                draws.extend(others)
                rows.extend([n_rows - 1] * len(others))
        return made

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

    # -- beams

    def _go_on_without_a_step(self) -> bool:
        """The turns of searches whose beams all have offers, now that those are given up that found no pages."""
        ready = [r for r in self.requests.values() if r.beams is not None and r.sequences and r.beams.is_ready]
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
        return {s.request for s, _ in searching if s.request.beams is not None and s.request.beams.is_broken}

    def _offer(self, searching: list[tuple[Sequence, int]], sampling: SamplingBatch) -> None:
        sequences, rows = zip(*searching, strict=True)
        for sequence, offer in zip(sequences, make_offers(self.backend, sequences, rows, sampling), strict=True):
            assert sequence.request.beams is not None
            sequence.request.beams.offer(sequence, offer)

    def _take_turn(self, request: Request) -> None:
        if request.group is None or not request.group.is_ready:
            return
        if request.beams is not None:
            self._take_turn_of_beams(request, request.beams)
        elif request.steps is not None and request.scorer is None:
            self._take_turn_of_steps(request, request.steps, None)
        elif request.steps is not None:
            self._ask_scorer(request, request.steps.texts(), self._take_turn_of_steps, request, request.steps)

    def _take_turn_of_beams(self, request: Request, beams: SearchGroup) -> None:
        if beams.has_no_token and not beams.answers():
            self._fail(request, _nothing_to_draw(request.sequences[0]))
            return
        if not request.first_token_s:
            self._note_first_token(request)
        beams.take_turn()
        n_new = beams.n_new_tokens
        request.metrics.n_generated_tokens += n_new
        self._n_generated_tokens += n_new
        self._after_turn(request, beams)

    def _take_turn_of_steps(self, request: Request, steps: StepGroup, scores: list[float] | None) -> None:
        steps.take_turn(scores)
        self._after_turn(request, steps)

    def _after_turn(self, request: Request, group: Search) -> None:
        request.sequences = group.sequences
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
        if request.scorer is None or reason == "abort":
            self._tell_best(request, candidates, reason)
            return
        request.completions = candidates
        request.answered_s = time.perf_counter()
        known = [candidate.rerank_score for candidate in candidates if candidate.rerank_score is not None]
        if len(known) == len(candidates):  # it has read them where their last step ended
            self._tell_scored(request, candidates, reason, known)
        else:
            texts = [candidate.text for candidate in candidates]
            self._ask_scorer(request, texts, self._tell_scored, request, candidates, reason)

    def _ask_scorer(self, request: Request, texts: list[str], do: Callable[..., None], *arguments: Any) -> None:
        """Calls do(*arguments, scores), later, with those of the request's scorer."""
        scorer = request.scorer
        assert scorer is not None
        self._scored.add(request)
        asked_s = time.perf_counter()

        def score() -> list[float]:
            return [] if request.finished else scorer(texts)

        def take(scores: Any) -> None:
            self._scored.discard(request)
            if isinstance(scores, BaseException):
                raise scores
            self._histograms.scoring.add(time.perf_counter() - asked_s)
            self._n_scored += len(texts)
            do(*arguments, scores)

        def done(scores: Any) -> None:
            if not request.finished:
                self._attempt(request, take, scores)

        self._aside(score, done)

    def _tell_scored(
        self, request: Request, candidates: list[Completion], reason: FinishReason, scores: list[float]
    ) -> None:
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

    def _verify(self, drawn: list[Drawn], drew: MadeStep) -> None:
        """Cuts off what was drawn behind a draft that is wrong: nobody would have drawn it, one token a step."""
        n_rows = drew.n_tokens - drew.n_drafted
        fixed_rows = self._step_cost.fixed_rows
        n_before = self._n_accepted_tokens
        for sequence, tokens, _, _ in drawn:
            n_drafted, n_right = len(tokens) - 1, 0
            if n_drafted:
                n_right = n_accepted(tokens, sequence.drafted_tokens.tolist(), sequence.request.stop_ids)
                sequence.n_rejected = 1 + n_drafted - len(tokens)
                metrics = sequence.request.metrics
                metrics.n_drafted_tokens += n_drafted
                metrics.n_accepted_tokens += n_right
                self._n_drafts += 1
                self._n_drafted_tokens += n_drafted
                self._n_accepted_tokens += n_right
            if sequence.speculation is not None:
                sequence.speculation.learn(len(tokens), n_drafted, n_right, n_rows, fixed_rows)
            sequence.n_drafted = 0
        if drawn:
            self._gain.learn(self._n_accepted_tokens - n_before, len(drawn))

    def _commit(self) -> None:
        """The step's tokens are in pages now, but for drafts that were wrong, and for sequences that are over: theirs
        are let go already."""
        batch = self._batch
        if any(sequence.n_rejected or sequence.seq_id < 0 for sequence in batch.sequences):
            self._commit_part()
        elif batch.sequences:
            self.backend.cache.commit(batch.seq_ids, batch.counts, batch.tokens)
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
            if sequence.seq_id >= 0:
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

    def _finish_prompts_that_want_no_answer(self) -> None:
        for sequence in self._batch.sequences:
            request = sequence.request
            if request.max_new == 0 and sequence.n_pending == 0 and not request.finished:
                if request.group is None:
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
        steps = sequence.request.steps
        if steps is not None and not sequence.request.finished:
            steps.took(sequence, float(scores[0][row]))
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
            if is_last and request.group is None:
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
        request.scorer = None  # it may hold the LLM, which nobody else may hold any more
        self._n_finished[reason] += 1
        if request.group is not None:
            self._n_pruned += request.group.n_pruned
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
            "n_swapped": self.scheduler.tier.n_swapped,
            "n_recomputed": self.scheduler.tier.n_recomputed,
            "n_prompt_tokens": self._n_prompt_tokens,
            "n_generated_tokens": self._n_generated_tokens,
            "n_computed_tokens": self._n_computed_tokens,
            "n_corrupted": self._n_corrupted,
            "n_searches": sum(request.group is not None for request in self.requests.values()),
            "n_pruned": self._n_pruned,
            "n_scored": self._n_scored,
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

    def pages(self, first: int, n: int) -> dict[str, Any]:
        """Of the pages that are not free, n from number `first` on: lists, as KvCache.pages has them, and `owners`, the
        ids of the requests that hold each. n_listed: how many there are in all. No token, and nothing of a text."""
        cache = self.backend.cache
        found = cache.pages()
        part = {name: values[first : first + n].tolist() for name, values in found.items()}
        owners: dict[tuple[int, int], list[str]] = {key: [] for key in zip(part["group"], part["page"], strict=True)}
        for request in self.requests.values():
            for key in self._held_by(request, set(part["group"])):
                if key in owners:
                    owners[key].append(request.request_id)
        return part | {"owners": list(owners.values()), "n_listed": len(found["page"])}

    def _held_by(self, request: Request, groups: AbstractSet[int]) -> set[tuple[int, int]]:
        tables = [
            (group, self.backend.cache.page_table(sequence.seq_id, group))
            for sequence in request.sequences
            if sequence.seq_id >= 0
            for group in groups
        ]
        return {(group, page) for group, table in tables for page in table.tolist()}

    def _page_ages(self) -> dict[str, dict[str, Any]]:
        ages = self.backend.cache.durations()
        bounds = ages.pop("bounds")
        return {
            f"page_{name}": {"bounds": bounds, "counts": counts, "sum": sum_s} for name, (counts, sum_s) in ages.items()
        }


def _failure(request: Request, error: Exception) -> RequestFailedError:
    """What a request is told that made `error` be raised. A device that is lost ends all requests: it is raised."""
    if isinstance(error, DeviceLostError):
        raise error
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
