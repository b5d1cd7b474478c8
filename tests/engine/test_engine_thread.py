"""The thread that owns everything: nothing that happens to it leaves anybody waiting."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fakes import FakeBackend, alone, make_engine

from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.errors import (
    ConfigError,
    EngineClosedError,
    InvalidRequestError,
    QueueFullError,
    RequestFailedError,
)
from llm_decoder.sampling import SamplingParams
from llm_decoder.sequence import Request, Sequence

PROMPT = list(b"hello")
LONG = SamplingParams(max_tokens=None, ignore_eos=True)
TIMEOUT_S = 30


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def engine(backend):
    engine = make_engine(backend)
    yield engine
    engine.close()


def hold(backend):
    """Makes the engine wait before its next step until the returned event is set."""
    go = threading.Event()

    def wait():
        assert go.wait(TIMEOUT_S)

    backend.before_step = wait
    return go


def test_the_backend_is_built_stepped_and_closed_on_one_thread_of_its_own():
    threads = []

    class Recording(FakeBackend):
        def __init__(self):
            super().__init__()
            threads.append(threading.current_thread())
            self.before_step = lambda: threads.append(threading.current_thread())

        def close(self):
            super().close()
            threads.append(threading.current_thread())

    from fakes import ByteTokenizer

    engine = Engine(Recording, ByteTokenizer())
    engine.submit(PROMPT, SamplingParams(max_tokens=3)).result()
    engine.close()
    assert len(threads) > 4
    assert set(threads) == {threads[0]}
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive()


def test_what_the_backend_raises_when_it_is_built_comes_out_of_the_constructor():
    from fakes import ByteTokenizer

    def fail():
        raise MemoryError("no room for the pool")

    with pytest.raises(MemoryError, match="no room for the pool"):
        Engine(fail, ByteTokenizer())


def test_requests_from_many_threads_are_computed_together(engine, backend):
    go = hold(backend)
    results = {}

    def ask(i):
        handle = engine.submit(list(f"prompt {i}".encode()), SamplingParams(max_tokens=20, seed=i))
        submitted.release()
        results[i] = handle.result()

    submitted = threading.Semaphore(0)
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert submitted.acquire(timeout=TIMEOUT_S)
    go.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert max(len(step) for step in backend.steps) > 4
    for i in range(8):
        assert results[i].outputs[0].token_ids == alone(f"prompt {i}", max_tokens=20, seed=i).outputs[0].token_ids


def test_a_step_that_raises_ends_every_request_with_the_cause_and_refuses_new_ones(engine, backend):
    go = hold(backend)
    handles = [engine.submit(PROMPT, LONG) for _ in range(3)]

    def die():
        raise RuntimeError("the machine is on fire")

    go.set()
    backend.before_step = die
    for handle in handles:
        with pytest.raises(EngineClosedError, match="on fire") as caught:
            handle.result()
        assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EngineClosedError, match="on fire"):
        engine.submit(PROMPT, LONG)
    with pytest.raises(EngineClosedError, match="on fire"):
        engine.stats()
    handles[0].cancel()
    assert engine.is_closed


def test_close_ends_running_and_waiting_requests_and_joins_the_thread(engine, backend):
    go = hold(backend)
    running = engine.submit(PROMPT, LONG, stream=True)
    waiting = engine.submit(PROMPT, LONG)
    threading.Timer(0.05, go.set).start()
    engine.close()
    for handle in (running, waiting):
        with pytest.raises(EngineClosedError, match="closed"):
            handle.result()
    assert backend.is_closed
    assert engine._worker.thread not in threading.enumerate()
    engine.close()
    with pytest.raises(EngineClosedError, match="make a new LLM"):
        engine.submit(PROMPT, LONG)


def test_close_with_a_drain_lets_running_requests_end_and_refuses_new_ones(engine, backend):
    go = hold(backend)
    handle = engine.submit(PROMPT, SamplingParams(max_tokens=30, ignore_eos=True))
    closing = threading.Thread(target=engine.close, args=(TIMEOUT_S,))
    closing.start()
    while not engine.is_closed:
        time.sleep(0.001)
    with pytest.raises(EngineClosedError):
        engine.submit(PROMPT, LONG)
    go.set()
    assert len(handle.result().outputs[0].token_ids) == 30
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()


def test_cancel_ends_the_request_with_abort_and_frees_its_pages(engine, backend):
    backend.before_step = lambda: time.sleep(0.001)
    handle = engine.submit(PROMPT, LONG, stream=True)
    events = iter(handle)
    next(events)
    handle.cancel()
    *_, last = events
    assert last.finish_reason == "abort"
    assert last.output.outputs[0].token_ids
    assert engine.call(lambda backend: backend.cache.stats()["n_held"]) == 0
    handle.cancel()


def test_call_runs_on_the_engine_thread_and_gives_back_what_happens(engine):
    assert engine.call(lambda backend: threading.current_thread().name) == "llm_decoder-engine"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda backend: 1 // 0)
    assert engine.submit(PROMPT, SamplingParams(max_tokens=1)).result().outputs[0].token_ids


def test_a_bad_request_is_refused_where_it_is_made_and_hurts_nobody(engine):
    with pytest.raises(InvalidRequestError):
        engine.submit([999], LONG)
    assert engine.submit(PROMPT, SamplingParams(max_tokens=1)).result()


def test_a_failed_request_raises_for_its_own_consumer(engine, backend):
    backend.spoil = lambda history, logits: logits.fill(float("nan")) if history[0] == 7 else None
    bad, good = engine.submit([7, 8], LONG, stream=True), engine.submit(PROMPT, SamplingParams(max_tokens=4))
    with pytest.raises(RequestFailedError):
        list(bad)
    assert good.result().outputs


def test_a_request_whose_draw_raises_ends_alone_and_the_engine_goes_on(engine, backend):
    sample = backend.sample

    def raise_for_seed_7(rows, params, n_top):
        if 7 in params["seed"]:
            raise ValueError("got a value that the core does not take")
        return sample(rows, params, n_top)

    backend.sample = raise_for_seed_7
    handles = [engine.submit(PROMPT, SamplingParams(max_tokens=30, seed=seed, ignore_eos=True)) for seed in (6, 7, 8)]
    with pytest.raises(RequestFailedError, match="got a value that the core does not take") as caught:
        handles[1].result()
    assert isinstance(caught.value.__cause__, ValueError)
    for handle, seed in ((handles[0], 6), (handles[2], 8)):
        expected = alone("hello", max_tokens=30, seed=seed, ignore_eos=True)
        assert handle.result().outputs[0].token_ids == expected.outputs[0].token_ids
    assert not engine.is_closed


def test_a_default_that_the_core_would_not_take_is_refused_with_each_request_and_the_engine_goes_on(backend):
    engine = make_engine(backend, sampling_defaults=({"top_p": 1e-50},))
    with pytest.raises(InvalidRequestError, match="top_p"):
        engine.submit(PROMPT, SamplingParams(max_tokens=2))
    assert engine.submit(PROMPT, SamplingParams(max_tokens=2, top_p=0.5)).result().outputs
    engine.close()


def test_rows_come_as_one_array(engine):
    rows = engine.submit(PROMPT, SamplingParams(max_tokens=0), rows="logits").rows()
    assert rows.shape == (5, 258)


def test_a_full_engine_says_so_and_takes_requests_again_later(backend):
    engine = make_engine(backend, max_requests=2)
    go = hold(backend)
    handles = [engine.submit(PROMPT, SamplingParams(max_tokens=2)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="try again later"):
        engine.submit(PROMPT, LONG)
    go.set()
    for handle in handles:
        handle.result()
    engine.stats()
    assert engine.submit(PROMPT, SamplingParams(max_tokens=2)).result()
    engine.close()


def test_unseeded_requests_are_reproducible_from_the_seed_of_the_engine():
    def texts(**options):
        engine = make_engine(FakeBackend(), **options)
        handles = [engine.submit(PROMPT, SamplingParams(max_tokens=20)) for _ in range(3)]
        found = [tuple(handle.result().outputs[0].token_ids) for handle in handles]
        engine.close()
        return found

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    assert len(set(texts(seed=1))) == 3
    assert texts(seed=None) != texts(seed=None)


def test_stats_count_what_has_happened(engine):
    engine.submit(PROMPT, SamplingParams(max_tokens=6, ignore_eos=True)).result()
    stats = engine.stats()
    assert stats["n_finished"] == {"stop": 0, "length": 1, "abort": 0, "error": 0}
    assert (stats["n_prompt_tokens"], stats["n_generated_tokens"], stats["n_computed_tokens"]) == (5, 6, 10)
    assert stats["n_running"] == stats["n_waiting"] == stats["n_requests"] == 0
    assert stats["tokens_per_s"] > 0
    assert stats["pages"]["n_pages"] == 64


def test_an_engine_that_nobody_holds_closes_itself(backend):
    make_engine(backend).submit(PROMPT, LONG)
    gc.collect()
    deadline = time.monotonic() + TIMEOUT_S
    while not backend.is_closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert backend.is_closed


def run_python(body, **options):
    """A Python of its own, with what these tests import."""
    paths = [str(Path(__file__).parents[1]), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(body)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_an_engine_left_open_does_not_keep_the_interpreter_alive():
    child = run_python(
        """
        from fakes import make_engine
        from llm_decoder.sampling import SamplingParams
        engine = make_engine()
        handle = engine.submit([1, 2, 3], SamplingParams(max_tokens=None, ignore_eos=True), stream=True)
        next(iter(handle))
        print("leaving")
        """
    )
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out, err) == (0, "leaving\n", "")


@pytest.mark.parametrize("wakes_the_caller", [True, False])
def test_ctrl_c_in_generate_cancels_its_requests_and_leaves_the_engine_usable(wakes_the_caller):
    """It wakes nobody where it comes on the way into the wait, or, as here, another thread gets it."""
    mask = "pass" if wakes_the_caller else "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])"
    child = run_python(
        f"""
        import signal, time
        from fakes import ByteTokenizer, FakeBackend, make_engine
        from llm_decoder.llm import LLM
        from llm_decoder.sampling import SamplingParams
        backend = FakeBackend(max_model_len=250)
        said = []
        def slow_step():
            if not said:  # the caller is inside generate now
                said.append(print("running", flush=True))
            time.sleep(0.2)
        backend.before_step = slow_step
        llm = LLM.over(make_engine(backend), ByteTokenizer(), "fake")
        {mask}
        try:
            llm.generate(["one", "two"], SamplingParams(max_tokens=None, ignore_eos=True))
        except KeyboardInterrupt:
            backend.before_step = lambda: None
            print(llm.generate("three", SamplingParams(max_tokens=2))[0].outputs[0].finish_reason)
            print(llm.stats()["n_finished"]["abort"], llm.stats()["pages"]["n_held"])
        """
    )
    assert child.stdout.readline() == "running\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=TIMEOUT_S)
    assert (child.returncode, out, err) == (0, "length\n2 0\n", "")


def test_requests_that_are_over_leave_nothing_in_memory(backend):
    def n_alive():
        gc.collect()
        return sum(type(thing) in (Request, Sequence) for thing in gc.get_objects())

    n_before = n_alive()  # of engines that other tests have ended
    engine = make_engine(backend)
    for i in range(300):
        handle = engine.submit(PROMPT, SamplingParams(max_tokens=3, n=1 + i % 3), stream=i % 2 == 0)
        if i % 5 == 0:
            handle.cancel()
        handle.result()
    engine.stats()
    del handle
    assert n_alive() - n_before <= 16, "no more than the last batch and the last request are kept"
    engine.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_num_seqs", value) for value in (0, -1, "8", None)),
        *(("max_requests", value) for value in (0, "8")),
        *(("seed", value) for value in (1.5, "a", True, 1 << 64)),
    ],
)
def test_an_option_of_the_engine_out_of_its_limits_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^\[{name}\] must be an integer"):
        EngineOptions(**{name: value})


def test_a_fork_of_the_process_is_told_that_the_engine_stayed_behind(engine):
    def ask():
        signal.alarm(TIMEOUT_S)
        try:
            engine.stats()
        except EngineClosedError as error:
            engine.close()
            os._exit(0 if "make the LLM after the fork" in str(error) else 1)
        os._exit(2)

    child = os.fork()
    if child == 0:
        ask()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.stats()["n_running"] == 0
