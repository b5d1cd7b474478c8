"""A model that says what a test wants, behind the real engine, the real Flask app and the real server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from fakes import ByteTokenizer, FakeBackend

from llm_decoder.chat_template import ChatTemplate
from llm_decoder.engine import Engine, EngineOptions
from llm_decoder.llm import LLM
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings
from llm_decoder.speculation import SpeculationOptions
from llm_decoder.web.app import create_app
from llm_decoder.web.server import Server

_ANSWER = "<assistant>"


class ChatBytes(ByteTokenizer):
    """Chats as text with their roles in angle brackets, and reasoning as Qwen's models mark it."""

    chat_template = ChatTemplate("{{ '<think>' }}{{ '</think>' }}")

    def special_token_id(self, text: str) -> int | None:
        return None

    def keeping(self, tokens: Iterable[str]) -> ChatBytes:
        return self

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], continue_final_message: bool = False, **_: Any
    ) -> list[int]:
        text = "\n".join(f"<{message['role']}>{message['content']}" for message in messages)
        return self.encode(text if continue_final_message else f"{text}\n{_ANSWER}")


@dataclass
class Script:
    """What the model says. answer(prompt): to a chat as text, all roles in it. step_s: how long a byte takes.
    is_broken: it gives numbers that are none."""

    answer: Callable[[str], str] = lambda prompt: "Yes."
    step_s: float = 0.0
    is_broken: bool = False
    asked: list[str] = field(default_factory=list)  # the prompts
    _begin: Callable[[], None] = lambda: None

    def answers(self, *texts: str) -> None:
        """The next answers, in turn."""
        rest = list(texts)
        now = ""

        def answer(prompt: str) -> str:
            return now

        def begin() -> None:
            nonlocal now
            now = rest.pop(0)

        self.answer, self._begin = answer, begin

    def next_byte(self, history: bytes) -> int | None:
        prompt, _, written = history.rpartition(_ANSWER.encode())
        if not written:
            self.asked.append(prompt.decode())
            self._begin()
        answer = self.answer(prompt.decode()).encode()
        return answer[len(written)] if len(written) < len(answer) else None

    def reset(self) -> None:
        self.answer = lambda prompt: "Yes."
        self._begin = lambda: None
        self.step_s = 0.0
        self.is_broken = False
        self.asked.clear()


def open_llm(script: Script, max_model_len: int = 4096) -> LLM:
    backend = FakeBackend(n_pages=2048, max_model_len=max_model_len, max_tokens_per_step=512)

    def write(history: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        byte = script.next_byte(history[history < 256].astype(np.uint8).tobytes())
        logits[:] = np.nan if script.is_broken else -30.0
        logits[ByteTokenizer.eos_token_id if byte is None else byte] = 30.0

    backend.spoil = write
    backend.before_step = lambda: time.sleep(script.step_s)
    tokenizer = ChatBytes()
    options = EngineOptions(eos_token_ids=frozenset({256}), speculation=SpeculationOptions("none"))
    return LLM.over(Engine(lambda: backend, tokenizer, options), tokenizer, "scripted-1b")  # type: ignore[arg-type]


class Site:
    """A server of the page on a free port, over a model that follows `script`."""

    def __init__(self, open_llm: Callable[[Script], LLM] = open_llm, **settings: Any) -> None:
        self.script = Script()
        self.service = Service(lambda: open_llm(self.script), ServerSettings(port=0, **settings))
        self.url = f"http://127.0.0.1:{self._serve()}/"
        self.service.start()

    def _serve(self) -> int:
        """Starts the server; returns its port."""
        self._server = Server(create_app(self.service), self.service)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        return self._server.port

    def close(self) -> None:
        self._server.stop(0.0)
        self._thread.join(20)

    def cut(self) -> None:
        """Breaks every connection, as a network does that goes away for a moment."""
        for listener in self._server._listeners:
            for channel in list(listener.active_channels.values()):
                with contextlib.suppress(OSError):
                    channel.socket.shutdown(socket.SHUT_RDWR)

    def is_idle(self) -> bool:
        """Whether the engine has nothing to do."""
        stats = self.service.llm.stats()
        return stats["n_running"] == 0 and stats["n_waiting"] == 0


class ApiSite(Site):
    """The same by the FastAPI server."""

    def _serve(self) -> int:
        import uvicorn

        from llm_decoder.api.app import create_app
        from llm_decoder.web import page

        listener = socket.create_server(("127.0.0.1", 0))
        app = create_app(self.service, page.endpoints())
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._uvicorn.run, args=([listener],), daemon=True)
        self._thread.start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(20)
