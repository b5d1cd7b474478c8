"""What the command line talks to in tests: an LLM without weights, and a way to run the program in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from llm_decoder.answers import Part
from llm_decoder.backends import DeviceInfo
from llm_decoder.errors import InvalidRequestError
from llm_decoder.outputs import Completion, RequestMetrics, RequestOutput, StreamEvent
from llm_decoder.sampling import SamplingParams

GPU = DeviceInfo(
    "cuda",
    "NVIDIA H200, compute capability 9.0",
    threads=0,
    cores=0,
    memory_bytes=139 << 30,
    total_bytes=140 << 30,
    compute_capability="9.0",
    driver="580.65.06",
    driver_cuda="13.0",
    runtime_cuda="13.0",
    cublaslt="/site/nvidia/cu13/lib/libcublasLt.so.13",
)
NO_GPU = DeviceInfo("cuda", "NVIDIA GPU", threads=0, cores=0, memory_bytes=0, reason="no driver is loaded")
Prompt = str | list[int] | list[dict[str, str]]


class FakeLLM:
    """Answers with words that tell what it was asked, one word an event. `before_event` runs before each event."""

    name = "fake"
    vocab_size = 100
    max_model_len = 64
    n_drafted_tokens = 0

    def __init__(self, before_event: Callable[[int], None] | None = None, dropped_messages: int = 0) -> None:
        self.asked: list[tuple[Prompt, SamplingParams]] = []
        self.options: list[dict[str, Any]] = []
        self.n_cancelled = 0
        self.is_closed = False
        self.dropped_messages = dropped_messages
        self._before_event = before_event or (lambda n: None)
        self._lock = threading.Lock()

    def words(self, prompt: Prompt, params: SamplingParams) -> list[str]:
        if isinstance(prompt, str):
            told = prompt
        elif prompt and isinstance(prompt[0], dict):
            told = f"{len(prompt)} messages: {prompt[-1]['content']}"
        else:
            told = " ".join(str(token) for token in prompt)
        return ["You", " said", f" {told}", "."][: params.max_tokens]

    def parts(self, word: str) -> list[Part]:
        """What a word of an answer is in a chat."""
        return [Part("content", word)]

    def stream(self, prompt: Prompt, params: SamplingParams) -> Generator[StreamEvent, None, None]:
        self._take(prompt, params)
        words = self.words(prompt, params)
        done = False
        try:
            for number, word in enumerate(words):
                self._before_event(number)
                last = number == len(words) - 1
                output = self._output(prompt, params) if last else None
                reason = "stop" if last else None
                dropped = self.dropped_messages
                parts = None if isinstance(prompt, str) else self.parts(word)
                yield StreamEvent(0, word, [number], reason, output=output, dropped_messages=dropped, parts=parts)
            done = True
        finally:
            self.n_cancelled += not done

    def generate(self, prompts: Any, params: SamplingParams, **options: Any) -> list[RequestOutput]:
        self.options.append(options)
        one = isinstance(prompts, str)
        outputs = []
        for prompt in [prompts] if one else prompts:
            self._take(prompt, params)
            self._before_event(0)
            outputs.append(self._output(prompt, params))
        return outputs

    def chat(self, messages: Any, params: SamplingParams, **options: Any) -> RequestOutput:
        self.options.append(options)
        self._take(messages, params)
        return self._output(messages, params)

    def stats(self) -> dict[str, Any]:
        return {"backend": {"device": "fake"}, "max_model_len": self.max_model_len}

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, prompt: Prompt, params: SamplingParams) -> None:
        if not prompt or prompt == "refuse me":
            raise InvalidRequestError("[prompt] needs at least one token, got none", param="prompt")
        with self._lock:
            self.asked.append((prompt, params))

    def _output(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        words = self.words(prompt, params)
        text = "".join(words)
        answers = [
            Completion(index, text, list(range(len(words))), -1.5, finish_reason="stop") for index in range(params.n)
        ]
        metrics = RequestMetrics(
            n_prompt_tokens=3,
            n_generated_tokens=len(words) * params.n,
            n_drafted_tokens=self.n_drafted_tokens,
            n_accepted_tokens=self.n_drafted_tokens // 2,
            time_to_first_token_s=0.5,
            total_s=1.0,
            tokens_per_s=8.0,
        )
        return RequestOutput(prompt if isinstance(prompt, str) else None, [1, 2, 3], answers, metrics)


@dataclass
class Ran:
    """How a run of the program ended, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass
class Program:
    """Runs `llm-decoder` in this process, on `llm` and on `stdin`."""

    llm: FakeLLM
    run: Callable[..., Ran]
    opened: list[Any] = field(default_factory=list)

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> Ran:
        return self.run(*arguments, stdin=stdin)
