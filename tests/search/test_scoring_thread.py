"""The thread that scores: one job after the other, and what becomes of those that wait when it closes."""

import contextvars
import queue
import threading

import pytest

from llm_decoder.errors import EngineClosedError
from llm_decoder.search.scoring import ScoringThread, is_asked_by_a_job

LONG_S = 60


@pytest.fixture
def thread():
    thread = ScoringThread()
    yield thread
    thread.close()


def raised(error):
    raise error


def test_jobs_run_one_after_the_other_on_one_thread(thread):
    done = queue.SimpleQueue()
    for i in range(20):
        thread.submit(lambda i=i: (i, threading.current_thread()), done.put)
    results = [done.get(timeout=LONG_S) for _ in range(20)]
    assert [number for number, _ in results] == list(range(20))
    (runner,) = {runner for _, runner in results}
    assert runner is not threading.current_thread()
    assert runner.daemon


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_job_raises_is_told_and_the_thread_goes_on(thread, error):
    done = queue.SimpleQueue()
    thread.submit(lambda: raised(error), done.put)
    thread.submit(lambda: "next", done.put)
    assert done.get(timeout=LONG_S) is error
    assert done.get(timeout=LONG_S) == "next"


def test_whoever_carries_the_context_of_a_job_is_known_while_it_runs(thread):
    may_end = threading.Event()
    contexts, done = queue.SimpleQueue(), queue.SimpleQueue()

    def job():
        contexts.put(contextvars.copy_context())
        may_end.wait(LONG_S)
        return is_asked_by_a_job()

    thread.submit(job, lambda result: done.put((result, is_asked_by_a_job())))
    context = contexts.get(timeout=LONG_S)
    assert context.run(is_asked_by_a_job)
    assert not is_asked_by_a_job()
    may_end.set()
    assert done.get(timeout=LONG_S) == (True, False)
    assert not context.run(is_asked_by_a_job)


def test_closing_ends_what_waits_and_not_what_runs(thread):
    has_begun, may_end = threading.Event(), threading.Event()
    running, waiting = queue.SimpleQueue(), queue.SimpleQueue()

    def job():
        has_begun.set()
        may_end.wait(LONG_S)
        return "whole"

    thread.submit(job, running.put)
    thread.submit(lambda: "never", waiting.put)
    assert has_begun.wait(LONG_S)
    thread.close()
    assert isinstance(waiting.get(timeout=LONG_S), EngineClosedError)
    may_end.set()
    assert running.get(timeout=LONG_S) == "whole"


def test_a_thread_that_is_closed_says_so(thread):
    thread.close()
    thread.close()
    done = queue.SimpleQueue()
    thread.submit(lambda: "never", done.put)
    assert isinstance(done.get_nowait(), EngineClosedError)
