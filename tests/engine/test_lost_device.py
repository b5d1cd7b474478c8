"""A device that is lost ends the engine, wherever it is noticed, and every request is told what has happened."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeAheadBackend, FakeBackend, make_engine
from models_factory import make_checkpoint

from llm_decoder import LLM, backends
from llm_decoder.engine import RequestHandle
from llm_decoder.errors import DeviceLostError, EngineClosedError
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams
from llm_decoder.sequence import Request

PROMPT = list(b"Once upon a time")
LOST = DeviceLostError("[synchronize] cudaErrorLaunchFailure: unspecified launch failure; the GPU is lost")
LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def lose(*_: Any) -> Any:
    raise LOST


def told(handle: RequestHandle) -> EngineClosedError:
    with pytest.raises(EngineClosedError) as caught:
        handle.result()
    return caught.value


@pytest.mark.parametrize(
    ("verb", "request_of"),
    [
        ("step", {"params": LONG}),
        ("sample", {"params": LONG}),
        ("continuations", {"params": SearchParams(width=2, max_tokens=5)}),
        ("log_probs", {"params": SamplingParams(max_tokens=1, prompt_logprobs=1)}),
        ("logits", {"params": SamplingParams(max_tokens=1), "rows": "logits"}),
    ],
)
def test_it_ends_all_requests_whichever_of_them_has_noticed(
    monkeypatch: pytest.MonkeyPatch, verb: str, request_of: dict[str, Any]
) -> None:
    backend = FakeBackend()
    engine = make_engine(backend)
    other = engine.submit(PROMPT, LONG)
    monkeypatch.setattr(backend, verb, lose)
    errors = [told(engine.submit(PROMPT, **request_of)), told(other)]
    for error in errors:
        assert str(error) == f"[engine] its thread has died: {LOST}"
        assert error.__cause__ is LOST
    assert engine.is_closed
    with pytest.raises(EngineClosedError, match="the GPU is lost"):
        engine.submit(PROMPT, LONG)
    assert backend.is_closed


@pytest.mark.parametrize("verb", ["step", "sample", "end_sample"])
def test_an_engine_that_it_has_ended_and_its_error_hold_no_request(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    backend = FakeAheadBackend() if verb == "end_sample" else FakeBackend()
    engine = make_engine(backend)
    handles = [engine.submit(PROMPT, LONG, prompt=verb, stream=True) for _ in range(2)]
    next(iter(handles[0]))
    monkeypatch.setattr(backend, verb, lose)
    errors = [told(handle) for handle in handles]
    engine.close()  # waits for its thread
    gc.collect()
    assert not [held for held in gc.get_objects() if type(held) is Request and held.prompt == verb]
    assert [error.__cause__ for error in errors] == [LOST, LOST]


@pytest.fixture
def cuda_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The host machine in the place of a GPU, whole again in the end."""
    cuda_host = pytest.importorskip("llm_decoder._cuda_host")
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: cuda_host)
    monkeypatch.setenv("LLM_DECODER_DEVICE", "cuda")
    yield cuda_host
    cuda_host.set_host_fault(0)


def test_a_gpu_that_is_lost_in_the_middle_of_an_answer_ends_it_with_what_to_do(cuda_host: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", seed=0)
    with LLM(folder, kv_cache_bytes=1 << 20, max_tokens_per_step=32) as llm:
        events = llm.stream(list(range(1, 9)), SamplingParams(max_tokens=400, ignore_eos=True))
        next(events)
        cuda_host.set_host_fault(700)
        with pytest.raises(EngineClosedError, match=r"the GPU is lost to this process.*compute-sanitizer") as caught:
            list(events)
        assert isinstance(caught.value.__cause__, DeviceLostError)
        assert llm.is_closed
        with pytest.raises(EngineClosedError, match="the GPU is lost"):
            llm.generate("Once")


def test_a_gpu_that_is_lost_while_a_model_is_loaded_says_so(cuda_host: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama", seed=0)
    cuda_host.set_host_fault(214)
    with pytest.raises(DeviceLostError, match=r"the GPU is lost to this process.*Xid"):
        LLM(folder, kv_cache_bytes=1 << 20)
