"""The model behind the routes: loading while the port is open already, serving, draining."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from llm_decoder.engine import RequestHandle
from llm_decoder.errors import EngineClosedError, InvalidRequestError
from llm_decoder.llm import LLM
from llm_decoder.prompts import tokenize_prompt
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call, Item, RunningCall
from llm_decoder.serving.errors import HttpError, engine_died
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.guard import Guard
from llm_decoder.serving.limits import Admission
from llm_decoder.serving.logs import LOGGER
from llm_decoder.serving.reranker import ScoringCounts
from llm_decoder.serving.settings import ServerSettings

__all__ = ["Service", "State"]

State = Literal["loading", "ready", "failed", "closing"]
# What a step of the engine may take in which the last answers are ended.
_LAST_STEP_S = 5.0


class Service:
    """One model for all routes of a process. `open_llm` is called once, by `start`, on a thread of its own. `guard`:
    who may come in; `admission`: how many at once; `scoring`: pairs for the reranker."""

    def __init__(self, open_llm: Callable[[], LLM], settings: ServerSettings | None = None) -> None:
        self.settings = settings or ServerSettings()
        self.guard = Guard(self.settings)
        self.admission = Admission(self.settings)
        self.scoring = ScoringCounts()
        self._open_llm = open_llm
        self._llm: LLM | None = None
        self._failure: BaseException | None = None
        self._is_closing = False
        self._is_death_noted = False
        self._running: weakref.WeakSet[RunningCall] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._loaded = threading.Event()

    def start(self) -> None:
        """Begins to load the model; returns at once. Again: nothing."""
        with self._lock:
            if self._is_closing or hasattr(self, "_thread"):
                return
            self._thread = threading.Thread(target=self._load, name="llm_decoder-load", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        try:
            llm = self._open_llm()
        except BaseException as error:  # noqa: BLE001 - `failure` has it, and who waits
            self._failure = error
        else:
            with self._lock:
                self._llm = llm
                is_late = self._is_closing
            if is_late:
                llm.close()
        self._loaded.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until the model is there, or cannot be; whether it is there."""
        self._loaded.wait(timeout_s)
        return self.state == "ready"

    @property
    def state(self) -> State:
        if self._is_closing:
            return "closing"
        if self._failure is not None:
            return "failed"
        if self._llm is None:
            return "loading"
        return "failed" if self._llm.is_closed else "ready"

    @property
    def failure(self) -> BaseException | None:
        """Why the model could not be loaded."""
        return self._failure

    @property
    def llm(self) -> LLM:
        """Raises HttpError 503 when it is not there, or no longer."""
        state = self.state
        if state == "loading":
            raise HttpError(503, "[server] the model is being loaded; try again", code="loading", retry_after_s=2)
        if state == "failed" and self._llm is not None:
            raise engine_died()
        if state == "failed":
            raise HttpError(503, "[server] the model could not be loaded; the server's log says why", code="failed")
        if state == "closing" or self._llm is None:
            raise HttpError(503, "[server] it is shutting down; try another one", code="closing", retry_after_s=5)
        return self._llm

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.settings.served_model_name or self.llm.name

    def told_when_ready(self) -> dict[str, str]:
        """What the log has of the model once `wait` has found it: its name, and the device that "auto" may have chosen;
        less where the service is closed meanwhile."""
        stats = self.stats()
        if stats is None:
            return {}
        return {"model": self.settings.served_model_name or stats["model"], "device": stats["backend"]["device"]}

    def stats(self) -> dict[str, Any] | None:
        """What the engine counts (LLM.stats), also while it drains; None when there is none yet, or no longer."""
        try:
            return None if self._llm is None else self._llm.stats()
        except EngineClosedError:
            return None

    def run(self, call: Call, incoming: Incoming | None = None) -> RunningCall:
        """Puts a call's prompts in line. incoming: the request that asked for it, for settings.salt_by_key; None = the
        program itself. Raises what the engine refuses; then nothing of the call is left in it."""
        llm = self.llm
        prompts = list(call.prompts)
        all_params = [self._salted(params, incoming) for params in call.params]  # `incoming` and its body are not held

        def submit(index: int) -> RequestHandle:
            return llm.submit(
                prompts[index],
                all_params[index],
                stream=call.streamed is not None,
                rows=call.rows,
                priority=call.priority,
                sink=self._sink(running, index),
                **call.template_options,
            )

        most_open = max(1, self.settings.max_requests // 2) if call.in_turns else len(prompts)
        running = RunningCall(call, submit, most_open)
        try:
            running.begin()
            # Later ones are put in line where nothing may take long.
            for index in range(most_open, len(prompts)):
                prompt = prompts[index]
                if isinstance(prompt, str):
                    prompts[index] = tokenize_prompt(
                        prompt, llm.tokenizer, llm.max_model_len, call.params[index]
                    ).token_ids
        except InvalidRequestError as error:
            running.cancel()
            raise _by_name(error, call.param) from None
        except BaseException:
            running.cancel()
            raise
        with self._lock:
            self._running.add(running)
        return running

    def _sink(self, running: RunningCall, index: int) -> Callable[[Item], None]:
        def take(item: Item) -> None:
            if isinstance(item, EngineClosedError) and item.__cause__ is not None:
                self._note_death(item)
            running.put(index, item)

        return take

    def _note_death(self, error: EngineClosedError) -> None:
        """Once: every request that ran is told of it."""
        if not self._is_death_noted:
            self._is_death_noted = True
            LOGGER.critical("the engine has died, the server answers 503: %s", error, exc_info=error.__cause__)

    def _salted(self, params: SamplingParams, incoming: Incoming | None) -> SamplingParams:
        salt = params.cache_salt if incoming is None else self.guard.salted(params.cache_salt, incoming)
        return params if salt == params.cache_salt else replace(params, cache_salt=salt)

    def close(self, drain_s: float | None = None) -> None:
        """Refuses new calls, lets those that run go on for drain_s (None = the settings') seconds, ends the rest with
        "abort", and frees the model."""
        with self._lock:
            self._is_closing = True
            llm = self._llm
        if llm is None:
            return
        drain_s = self.settings.drain_s if drain_s is None else drain_s
        end = threading.Timer(drain_s, self._abort)
        end.daemon = True
        end.start()
        llm.close(drain_s + _LAST_STEP_S)
        end.cancel()

    def _abort(self) -> None:
        with self._lock:
            running = list(self._running)
        for call in running:
            call.cancel()


def _by_name(error: InvalidRequestError, param: str) -> InvalidRequestError:
    """An error of a prompt by the name that its field has in the request."""
    if error.param not in ("prompt", "prompt_token_ids") or error.param == param:
        return error
    return InvalidRequestError(str(error).replace(f"[{error.param}]", f"[{param}]", 1), param=param, code=error.code)
