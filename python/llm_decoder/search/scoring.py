"""The thread on which answers are scored: a scorer may be slow, and neither the engine nor a server waits for it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from llm_decoder.errors import EngineClosedError

__all__ = ["Aside", "ScoringThread", "at_once", "is_asked_by_a_job"]

T = TypeVar("T")
Done = Callable[[Any], None]
# aside(job, done) runs job() elsewhere, and done(what it returned, or raised) back here, later.
Aside = Callable[[Callable[[], Any], Done], None]


class _Run:
    """A job while it runs."""

    is_over = False


# The job that asks. asyncio carries it along, into the tasks of a loop and to its threads.
_asking: ContextVar[_Run | None] = ContextVar("llm_decoder_scoring_job", default=None)


def is_asked_by_a_job() -> bool:
    """Whether a job of any ScoringThread asks, and is not over: should it wait for another job, that one may never
    begin. It is not known of a thread that a job has started by itself, without its context."""
    run = _asking.get()
    return run is not None and not run.is_over


def at_once(job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
    """The Aside of those who have no other thread."""
    done(_result_of(job))


class ScoringThread:
    """Runs jobs one after the other, in the order they came. The thread starts with the first job.

    It is a daemon, and nobody waits for it: a job that never returns keeps those behind it waiting, but neither `close`
    nor the interpreter's exit.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Done] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, job: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Runs job() on the thread, then done(what it returned, or raised), which must not raise. After `close`, which
        also ends what waits by then, done gets an EngineClosedError at once."""
        with self._lock:
            if not self._is_closed:
                self._jobs.put((job, done))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._main, name="llm_decoder-scoring", daemon=True)
                    self._thread.start()
                return
        done(_closed())

    def close(self) -> None:
        """Takes no more jobs, and tells those that wait; the thread ends with the one that runs. Again: nothing."""
        with self._lock:
            self._is_closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._jobs.get_nowait()
                if item is not None:
                    item[1](_closed())
        self._jobs.put(None)

    def _main(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Waits with nothing in hand: what a job refers to may go as soon as it is over."""
        item = self._jobs.get()
        if item is not None:
            job, done = item
            run = _Run()
            _asking.set(run)
            result = _result_of(job)
            run.is_over = True
            _asking.set(None)
            done(result)
        return item is not None


def _result_of(job: Callable[[], T]) -> T | BaseException:
    try:
        return job()
    except BaseException as error:  # noqa: BLE001 - also a KeyboardInterrupt of the job: the thread serves others
        return error


def _closed() -> EngineClosedError:
    return EngineClosedError("[engine] it was closed before the answers were scored; make a new LLM")
