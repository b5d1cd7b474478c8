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
from llm_decoder.outputs import FinishReason, RequestOutput, StreamEvent, TokenLogprob
from llm_decoder.scheduler import Scheduler, SchedulerLimits
from llm_decoder.sequence import Request, Sequence

__all__ = ["EngineCore"]

# logprobs [n_rows], ranks [n_rows], top_ids [n_rows, n_top], top_logprobs [n_rows, n_top], as Backend gives them.
Scores: TypeAlias = AnySequence[npt.NDArray[Any]]

# Rows of logits are as wide as the vocabulary; a step makes no more of them than fit here for those who want every row.
MAX_ROWS_BYTES = 64 << 20


class EngineCore:
    """Requests in, steps made, events out through each request's sink. For one thread, the one that built `backend`."""

    def __init__(self, backend: Backend, tokenizer: TextDecoder, max_num_seqs: int = 64) -> None:
        limits = SchedulerLimits(
            max_tokens_per_step=backend.max_tokens_per_step,
            max_num_seqs=min(max_num_seqs, backend.max_tokens_per_step),
            max_rows_per_step=max(1, MAX_ROWS_BYTES // (4 * backend.vocab_size)),
        )
        self.backend = backend
        self.scheduler = Scheduler(backend.cache, limits)
        self.requests: dict[str, Request] = {}
        self._tokenizer = tokenizer
        self._batch = StepBatch(backend.max_tokens_per_step)
        self._sampling = SamplingBatch()
        self._n_finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self._n_prompt_tokens = self._n_generated_tokens = self._n_computed_tokens = self._n_steps = 0
        self._busy_s = 0.0

    # -- requests in

    def add(self, request: Request) -> None:
        root = Sequence(request, 0, self._tokenizer)
        request.sequences.append(root)
        self.requests[request.request_id] = request
        self._n_prompt_tokens += len(request.prompt_token_ids)
        self.scheduler.add(root)

    def cancel(self, request_id: str) -> None:
        """Its pages are let go at once; its answers end with "abort". Nothing happens to a request that is over."""
        request = self.requests.get(request_id)
        if request is not None:
            for sequence in request.sequences:
                if sequence.finish_reason is None:
                    self._finish(sequence, "abort")

    def abandon(self, make_error: Callable[[], Exception]) -> None:
        """The end: every request is told so; nothing is tidied, the backend may be in any state."""
        requests, self.requests = list(self.requests.values()), {}
        for request in requests:
            request.finished = True
            _send(request, make_error())

    # -- a step

    def step(self) -> bool:
        """Makes one step. False when there is nothing to do."""
        started_s = time.perf_counter()
        stuck = self.scheduler.plan(self._batch)
        if stuck is not None:
            self._fail(stuck.request, RequestFailedError(self.scheduler.describe_shortage(stuck)))
            return True
        batch = self._batch
        if not batch.sequences:
            return False
        n_rows = self.backend.step(batch.tokens, batch.seq_ids, batch.counts, batch.want)
        draws, rows, collectors = self._rows()
        failed = self._collect(collectors, n_rows) if collectors else set()
        tokens: list[int] = []
        scores: Scores = ()
        if draws:
            sampled, *scores = self.backend.sample(
                np.array(rows, np.int32), self._sampling.params(draws), self._sampling.n_top
            )
            tokens = sampled.tolist()
            failed.update(sequence.request for sequence, token in zip(draws, tokens, strict=True) if token < 0)
        self._commit(failed)
        for request in failed:
            self._fail_poisoned(request)
        self._fan_out()
        for i, sequence in enumerate(draws):
            if sequence.request not in failed:
                self._advance(sequence, tokens[i], i, scores)
        self._finish_prompts_that_want_no_answer()
        self._n_steps += 1
        self._busy_s += time.perf_counter() - started_s
        return True

    def _rows(self) -> tuple[list[Sequence], list[int], list[tuple[Sequence, int]]]:
        """Who draws a token, each one's row of the step's logits, and (who wants every row, its first row).

        A prompt that is complete gets the sequences of its other answers here: they draw from the same row.
        """
        draws: list[Sequence] = []
        rows: list[int] = []
        collectors: list[tuple[Sequence, int]] = []
        n_rows = 0
        for sequence in self._batch.sequences:
            count = sequence.n_scheduled
            is_complete = sequence.n_computed + count == sequence.n_tokens
            if sequence.wants_rows:
                collectors.append((sequence, n_rows))
                n_rows += count
            elif is_complete:
                n_rows += 1
            if not is_complete or sequence.request.max_new == 0:
                continue
            draws.append(sequence)
            rows.append(n_rows - 1)
            request = sequence.request
            if request.params.n > len(request.sequences):
                others = [Sequence(request, index, self._tokenizer) for index in range(1, request.params.n)]
                request.sequences.extend(others)
                draws.extend(others)
                rows.extend([n_rows - 1] * len(others))
        return draws, rows, collectors

    def _collect(self, collectors: list[tuple[Sequence, int]], n_rows: int) -> set[Request]:
        """Keeps the rows of those who want every one; returns the requests whose rows are not finite."""
        failed: set[Request] = set()
        scored = [(sequence, row) for sequence, row in collectors if sequence.request.rows is None]
        if scored:
            failed |= self._collect_logprobs(scored, n_rows)
        for kind, read in (("logits", self.backend.logits), ("hidden", self.backend.hidden)):
            wanting = [(sequence, row) for sequence, row in collectors if sequence.request.rows == kind]
            values = read() if wanting else None
            for sequence, row in wanting:
                assert values is not None
                part = values[row : row + sequence.n_scheduled]
                sequence.request.collected.append(part.copy())
                if not np.isfinite(part).all():
                    failed.add(sequence.request)
        return failed

    def _collect_logprobs(self, scored: list[tuple[Sequence, int]], n_rows: int) -> set[Request]:
        failed: set[Request] = set()
        targets = np.zeros(n_rows, np.int32)
        for sequence, row in scored:
            following = sequence.tokens[sequence.n_computed + 1 : sequence.n_computed + sequence.n_scheduled + 1]
            targets[row : row + len(following)] = following
        n_top = max(sequence.request.params.prompt_logprobs or 0 for sequence, _ in scored)
        scores = self.backend.log_probs(targets, n_top)
        for sequence, row in scored:
            request = sequence.request
            end = min(sequence.n_scheduled, sequence.n_tokens - sequence.n_computed - 1)
            if request.prompt_logprobs is None:
                request.prompt_logprobs = [None]
            n_own = request.params.prompt_logprobs or 0
            for i in range(row, row + end):
                request.prompt_logprobs.append(_entry(i, int(targets[i]), n_own, scores))
            # -inf is an answer (a token with no chance at all), NaN is none.
            if np.isnan(scores[0][row : row + end]).any():
                failed.add(request)
        return failed

    def _commit(self, failed: set[Request]) -> None:
        """The step's tokens are in pages now, but for requests whose numbers cannot be trusted."""
        batch = self._batch
        if not failed:
            self.backend.cache.commit(batch.seq_ids, batch.counts, batch.tokens)
        else:
            good = np.array([sequence.request not in failed for sequence in batch.sequences])
            if good.any():
                tokens = batch.tokens[np.repeat(good, batch.counts)]
                self.backend.cache.commit(batch.seq_ids[good], batch.counts[good], tokens)
        for sequence in batch.sequences:
            sequence.n_computed += sequence.n_scheduled
            self._n_computed_tokens += sequence.n_scheduled
            if sequence.wants_rows and sequence.n_computed == sequence.n_tokens:
                sequence.wants_rows = False

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
            if sequence.request.max_new == 0 and sequence.n_pending == 0 and not sequence.request.finished:
                self._finish(sequence, "length")

    # -- a token for a sequence

    def _advance(self, sequence: Sequence, token: int, row: int, scores: Scores) -> None:
        """`token` was drawn as `row` of the step's draws."""
        request = sequence.request
        if not request.first_token_s:
            self._note_first_token(request)
        sequence.append(token)
        sequence.cumulative_logprob += float(scores[0][row])
        request.metrics.n_generated_tokens += 1
        self._n_generated_tokens += 1
        if sequence.completion_logprobs is not None:
            sequence.completion_logprobs.append(_entry(row, token, request.params.logprobs or 0, scores))
        if token in request.stop_ids:
            if token not in request.eos_token_ids:
                sequence.stop_reason = token
            self._finish(sequence, "stop")
            return
        is_over = False
        if request.stream or sequence.stop_matcher is not None:
            sequence.n_decoded += 1
            is_over = self._add_text(sequence, sequence.detokenizer.push((token,)))
        if is_over:
            self._finish(sequence, "stop")
        elif sequence.n_generated >= request.max_new:
            self._finish(sequence, "length")
        elif request.stream and sequence.unsent_text:
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

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        request = sequence.request
        self.scheduler.remove(sequence)
        # The last bytes of an answer may complete a stop string too.
        sequence.finish_reason = "stop" if self._finish_text(sequence, reason) else reason
        request.finished = all(other.finish_reason is not None for other in request.sequences)
        if request.finished:
            self._finish_request(request, sequence.finish_reason)
        if request.stream:
            event = self._event(sequence)
            if request.finished:
                event.output = request.output()
            _send(request, event)
        elif request.finished:
            _send(request, request.output())

    def _finish_text(self, sequence: Sequence, reason: FinishReason) -> bool:
        """Takes the text of tokens not decoded yet and what was held back. True when a stop string ends the text."""
        if isinstance(sequence.stop_reason, str):
            return True
        tokens = sequence.generated_tokens.tolist()
        if reason == "stop" and not sequence.request.params.include_stop_str_in_output:
            tokens.pop()  # the end token
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
        self.requests.pop(request.request_id, None)
        self._n_finished[reason] += 1
        metrics = request.metrics
        metrics.n_prompt_tokens = len(request.prompt_token_ids)
        now_s = time.perf_counter()
        metrics.total_s = now_s - request.submitted_s
        n_later = metrics.n_generated_tokens - len(request.sequences)
        if n_later > 0 and now_s > request.first_token_s:
            metrics.tokens_per_s = n_later / (now_s - request.first_token_s)

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
        )

    # -- failure

    def _fail(self, request: Request, error: Exception) -> None:
        for sequence in request.sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "error"
                self.scheduler.remove(sequence)
        request.finished = True
        self._finish_request(request, "error")
        _send(request, error)

    def _fail_poisoned(self, request: Request) -> None:
        self._fail(
            request,
            RequestFailedError(
                f"[request {request.request_id}] the model gave logits that are not finite, or no token was left to "
                "choose; it ends here, others go on. Check allowed_token_ids and bad_token_ids, then the weights"
            ),
        )
        # Earlier chunks of its prompt may be in the index with the same broken numbers: nobody shall find them.
        self.backend.cache.clear_prefix_index()

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
            "tokens_per_s": self._n_generated_tokens / self._busy_s if self._busy_s else 0.0,
            "busy_s": self._busy_s,
            "prefix_hit_rate": pages["n_hit_tokens"] / n_looked_up if n_looked_up else 0.0,
            "pages": dict(pages),
            "page_size": self.backend.page_size,
            "max_model_len": self.backend.max_model_len,
            "backend": self.backend.info(),
        }


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
