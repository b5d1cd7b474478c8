"""The engine thread: it alone owns the backend, the cache and the decoder; everything else comes through its inbox."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import secrets
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import Backend, check_integer
from llm_decoder.detokenizer import TextDecoder
from llm_decoder.engine_core import EngineCore
from llm_decoder.errors import DeviceLostError, EngineClosedError, InvalidRequestError, QueueFullError
from llm_decoder.grammars import Grammar
from llm_decoder.outputs import RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams, derive_seed, resolve_params
from llm_decoder.search.scorers import RequestScorer
from llm_decoder.search.scoring import ScoringThread, is_asked_by_a_job
from llm_decoder.sequence import Limits, Rows, Sink, Vocabulary, build_request
from llm_decoder.speculation import SpeculationOptions

__all__ = ["Engine", "EngineOptions", "RequestHandle"]

T = TypeVar("T")
Item = StreamEvent | RequestOutput | Exception

_LONGEST_WAIT_S = 0.2


@dataclass(frozen=True)
class EngineOptions:
    """max_num_seqs: sequences that hold pages at once. speculation: how tokens are guessed ahead. max_requests: open
    requests before QueueFullError, None = as many as memory holds. seed: unseeded requests are drawn from it; None =
    from the system's randomness. eos_token_ids: the model's own end tokens. sampling_defaults: mappings asked in turn
    for what a request leaves open (sampling.resolve_params)."""

    max_num_seqs: int = 64
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    max_requests: int | None = None
    seed: int | None = 0
    eos_token_ids: frozenset[int] = frozenset()
    sampling_defaults: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for a value of the wrong type or out of its limits."""
        check_integer("max_num_seqs", self.max_num_seqs, 1, optional=False)
        check_integer("max_requests", self.max_requests, 1)
        check_integer("seed", self.seed, -(1 << 63), (1 << 64) - 1)


@dataclass(frozen=True)
class _Command:
    run: Callable[[EngineCore], None]
    refuse: Callable[[Exception], None]


@dataclass
class _Worker:
    """What the thread and its owner share. It knows no Engine, so that an Engine nobody holds can be collected."""

    inbox: queue.SimpleQueue[_Command | None] = field(default_factory=queue.SimpleQueue)
    # Reentrant: the garbage collector may close an Engine nobody holds in the middle of a put.
    lock: threading.RLock = field(default_factory=threading.RLock)
    thread: threading.Thread | None = None
    core: EngineCore | None = None
    scoring: ScoringThread = field(default_factory=ScoringThread)
    refusal: EngineClosedError | None = None  # why nothing more is taken
    closing: bool = False
    is_over: bool = False  # nobody reads the inbox any more
    n_waiting: int = 0  # requests in the inbox or on their way from it to the core
    n_refused: int = 0  # requests for which there was no room
    drain_until_s: float = 0.0
    process_id: int = field(default_factory=os.getpid)

    def put(self, command: _Command, admit: Callable[[], None] = lambda: None, *, is_late: bool = False) -> None:
        """Unless admit(), called under the lock, raises. is_late: also while it drains."""
        if os.getpid() != self.process_id:
            raise EngineClosedError(
                "[engine] it runs in the process that made it, got a fork of that one, which has none of its threads; "
                "make the LLM after the fork"
            )
        with self.lock:
            if self.refusal is not None and (self.is_over or not (is_late and self.closing)):
                raise _copy(self.refusal)
            admit()
            self.inbox.put(command)

    def close(self, drain_s: float = 0.0) -> None:
        """Ends the thread, once requests that run are over or `drain_s` seconds are, and waits for it."""
        if os.getpid() != self.process_id:
            return  # the thread, and the lock's holder, stayed behind
        with self.lock:
            if self.refusal is None:
                self.refusal = EngineClosedError("[engine] it was closed; make a new LLM")
            self.drain_until_s = time.monotonic() + drain_s
            self.closing = True
            self.inbox.put(None)
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def main(self, create_core: Callable[[], EngineCore], ready: Future[Limits]) -> None:
        """Has no core among its locals: what ends the thread is kept, and its traceback leads to this frame."""
        try:
            self.core = create_core()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits for `ready`
            ready.set_exception(error)
            return
        ready.set_result(_limits_of(self.core))
        end = EngineClosedError("[engine] it was closed while the request ran")
        try:
            self._loop(self.core)
        except BaseException as cause:  # noqa: BLE001 - it is told to every request
            end = _death(cause)
        self._end(self.core, end)

    def _loop(self, core: EngineCore) -> None:
        is_idle = True
        while True:
            while is_idle or not self.inbox.empty():
                command = self._next_command()
                if command is not None:
                    command.run(core)
                is_idle = False
            if self.closing and (not core.requests or time.monotonic() >= self.drain_until_s):
                return
            is_idle = not core.step()
            if is_idle and len(core.requests) > core.n_scored:
                raise RuntimeError(f"{len(core.requests)} requests are open and none can run")

    def _next_command(self) -> _Command | None:
        """Waits for one; while it drains, no longer than it may."""
        wait_s = min(max(0.0, self.drain_until_s - time.monotonic()), 60.0) if self.closing else None
        try:
            return self.inbox.get(timeout=wait_s)
        except queue.Empty:
            return None

    def aside(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Runs job() on the scoring thread, then done(what it returned, or raised) on the engine's own."""

        def tell(result: Any) -> None:
            with contextlib.suppress(EngineClosedError):  # every request has been told then
                self.put(_Command(lambda core: done(result), lambda error: None), is_late=True)

        self.scoring.submit(job, tell)

    def _end(self, core: EngineCore, end: EngineClosedError) -> None:
        with self.lock:
            if self.refusal is None:
                self.refusal = end
            self.is_over = True
        core.abandon(lambda: _copy(end))
        self.scoring.close()
        with contextlib.suppress(queue.Empty):
            while True:
                command = self.inbox.get_nowait()
                if command is not None:
                    command.refuse(_copy(end))
        core.backend.close()
        # Engine and error outlive the thread, in a server that has failed as well: neither holds what users have asked.
        self.core = None
        _clear_frames(end.__cause__)


def _limits_of(core: EngineCore) -> Limits:
    backend = core.backend
    return Limits(
        vocab_size=backend.vocab_size,
        max_model_len=backend.max_model_len,
        max_kv_tokens=backend.cache.max_tokens(backend.max_tokens_per_step),
        max_num_seqs=core.scheduler.limits.max_num_seqs,
    )


def _clear_frames(error: BaseException | None) -> None:
    """Its traceback, and those of what came before it, still tell places, and hold no locals."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__ or error.__cause__


def _death(cause: BaseException) -> EngineClosedError:
    """What every request is told of what has ended the thread; of a device that is lost, a new LLM would be too."""
    told = str(cause) if isinstance(cause, DeviceLostError) else f"{cause!r}; make a new LLM"
    end = EngineClosedError(f"[engine] its thread has died: {told}")
    end.__cause__ = cause
    return end


def _copy(error: EngineClosedError) -> EngineClosedError:
    """The same error for another thread to raise: a traceback belongs to one."""
    copy = EngineClosedError(str(error))
    copy.__cause__ = error.__cause__
    return copy


class RequestHandle:
    """A request under way: iterate it for its events, or ask for its result. For one consumer."""

    def __init__(self, worker: _Worker, request_id: str, items: queue.SimpleQueue[Item]) -> None:
        self.request_id = request_id
        self._worker = worker
        self._items = items

    def __iter__(self) -> Iterator[StreamEvent]:
        """The events of a streaming request; raises what the request failed with."""
        while True:
            item = self._next_item()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, StreamEvent):
                yield item
                if item.output is None:
                    continue
            return

    def result(self) -> RequestOutput:
        """Waits until the request is over; raises what it failed with."""
        while True:
            item = self._next_item()
            if isinstance(item, Exception):
                raise item
            output = item.output if isinstance(item, StreamEvent) else item
            if output is not None:
                return output

    def rows(self) -> npt.NDArray[np.float32]:
        """The rows of a request made for them: float32 [n_tokens, vocab_size or hidden_size]."""
        rows = self.result().rows
        assert rows is not None
        return rows

    def _next_item(self) -> Item:
        # A Ctrl-C that comes on the way into a wait is raised only after it (CPython looks for signals between
        # instructions), so no wait is long.
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=_LONGEST_WAIT_S)

    def cancel(self) -> None:
        """The request ends with "abort" before the next step; nothing happens when it is over."""
        request_id = self.request_id
        with contextlib.suppress(EngineClosedError):
            self._worker.put(_Command(lambda core: core.cancel(request_id), lambda error: None), is_late=True)


class Engine:
    """Takes requests from any thread and computes them together on its own.

    `create_backend` is called on the engine thread; what it raises is raised here. An Engine that nobody holds any
    more, or that is left open at the interpreter's exit, closes itself.
    """

    def __init__(
        self,
        create_backend: Callable[[], Backend],
        tokenizer: Vocabulary,
        options: EngineOptions | None = None,
    ) -> None:
        self.options = options = options or EngineOptions()
        self.tokenizer = tokenizer
        self._worker = worker = _Worker()
        self._ids = itertools.count()
        ready: Future[Limits] = Future()
        worker.thread = threading.Thread(
            target=worker.main,
            args=(
                lambda: EngineCore(
                    create_backend(), tokenizer, options.max_num_seqs, options.speculation.start, worker.aside
                ),
                ready,
            ),
            name="llm_decoder-engine",
            daemon=True,
        )
        worker.thread.start()
        # A daemon thread, joined by this finalizer before the interpreter goes down: one that is not a daemon would be
        # waited for before anybody could tell it to stop.
        self._finalizer = weakref.finalize(self, worker.close)
        self.limits = ready.result()

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        stream: bool = False,
        rows: Rows | None = None,
        dropped_messages: int = 0,
        priority: int = 0,
        grammar: Grammar | None = None,
        text_decoder: TextDecoder | None = None,
        scorer: RequestScorer | None = None,
        sink: Sink | None = None,
        is_inner: bool = False,
    ) -> RequestHandle:
        """Checks a request and puts it in line. With a `sink`, events go there (called on the engine thread, must not
        block) and not to the handle. rows: collect these for every prompt token instead of generating. priority: from
        -100 to 100; it waits as if it had come so many seconds later. grammar: what `params.structured_outputs` is,
        compiled; every answer follows it. text_decoder: makes the text of the answers, None = the tokenizer does.
        scorer: of a search, reads its answers on the scoring thread. is_inner: a request that runs asks it, so that it
        is taken where others find the queue full, and while the engine drains.

        Raises InvalidRequestError, ContextLengthExceededError, NotEnoughMemoryError, QueueFullError, EngineClosedError.
        """
        if scorer is not None and is_asked_by_a_job():
            raise InvalidRequestError(
                "[scorer] a scorer needs a search without one, got one that would wait for it; leave scorer out there",
                param="scorer",
            )
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        number = next(self._ids)
        request = build_request(
            prompt_token_ids,
            resolve_params(params, *self.options.sampling_defaults),
            self.limits,
            self.tokenizer,
            request_id=str(number),
            seed=self._seed(params, number),
            sink=sink or items.put,
            prompt=prompt,
            eos_token_ids=self.options.eos_token_ids,
            stream=stream,
            rows=rows,
            dropped_messages=dropped_messages,
            priority=priority,
            grammar=grammar,
            text_decoder=text_decoder,
            scorer=scorer,
        )
        worker = self._worker

        def take(core: EngineCore) -> None:
            with worker.lock:  # nobody may see the request in neither place
                worker.n_waiting -= 1
                core.add(request)

        worker.put(_Command(take, request.sink), lambda: self._take_room(is_inner), is_late=is_inner)
        return RequestHandle(self._worker, request.request_id, items)

    def _seed(self, params: SamplingParams, number: int) -> int:
        if params.seed is not None:
            return params.seed
        if self.options.seed is None:
            return secrets.randbits(64)
        return derive_seed(self.options.seed % (1 << 64), number + 1)

    def _take_room(self, is_inner: bool) -> None:
        worker, limit = self._worker, self.options.max_requests
        n_open = worker.n_waiting + (len(worker.core.requests) if worker.core is not None else 0)
        if limit is not None and n_open >= limit and not is_inner:
            worker.n_refused += 1
            raise QueueFullError(f"[engine] {n_open} requests wait or run, as many as it takes; try again later")
        worker.n_waiting += 1

    def call(self, fn: Callable[[Backend], T]) -> T:
        """Runs fn(backend) on the engine thread between two steps; returns, or raises, what it does."""
        return self._on_thread(lambda core: fn(core.backend))

    def stats(self) -> dict[str, Any]:
        """Counts and rates, see EngineCore.stats; also while it drains. n_refused: requests that found the queue full.
        n_submitted: those that the engine has not seen yet."""
        stats = self._on_thread(lambda core: core.stats(), is_late=True)
        return stats | {"n_refused": self._worker.n_refused, "n_submitted": self._worker.n_waiting}

    def pages(self, first: int = 0, n: int = 1024) -> dict[str, Any]:
        """What is known of the KV cache's pages, see EngineCore.pages."""
        return self._on_thread(lambda core: core.pages(first, n))

    def _on_thread(self, fn: Callable[[EngineCore], T], *, is_late: bool = False) -> T:
        future: Future[T] = Future()

        def run(core: EngineCore) -> None:
            try:
                future.set_result(fn(core))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                future.set_exception(error)

        self._worker.put(_Command(run, future.set_exception), is_late=is_late)
        return future.result()

    @property
    def is_closed(self) -> bool:
        return self._worker.refusal is not None

    def close(self, drain_s: float = 0.0) -> None:
        """Refuses new requests, lets running ones go on for up to `drain_s` seconds, ends the rest with
        EngineClosedError and joins the thread. Again: nothing."""
        self._worker.close(drain_s)
        self._finalizer.detach()
