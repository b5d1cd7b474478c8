"""A server of our own for the time of a measurement: `llm-decoder serve` as a program."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import llm_decoder
from llm_decoder.cli._options import ModelOptions, flag

if TYPE_CHECKING:
    import httpx

__all__ = ["OwnServer", "own_server"]

_POLL_S = 0.2
_END_S = 20.0
_LAST_WORDS_S = 2.0  # in which a server that has failed writes down why, and ends where it ends by itself
_SHOWN_LOG_CHARS = 1000


@dataclass(frozen=True)
class OwnServer:
    """Where it listens, and which process it is."""

    url: str
    pid: int

    def cpu_s(self) -> float | None:
        """Processor time it has taken; None where the system does not say."""
        try:
            words = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            return None
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def own_server(model: ModelOptions) -> Iterator[OwnServer]:
    """Started when it is entered, ready then, ended when it is left. Raises ServerError when it does not start."""
    port = _free_port()
    command = [sys.executable, "-m", "llm_decoder", "serve", "--port", str(port), *_flags(model)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLM_DECODER_API_KEY")}
    # The package that runs here: from a checkout the program finds it by itself, and its child would not.
    places = [str(Path(llm_decoder.__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # it must not outlive us
        try:
            _wait(process, port, log.fileno())
            yield OwnServer(f"http://127.0.0.1:{port}", process.pid)
        finally:
            signal.signal(signal.SIGTERM, before)
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: int) -> None:
    """Until it answers requests. Raises ServerError when it ends instead, or says that it never will."""
    import httpx

    from llm_decoder.errors import ServerError

    told = ""
    while process.poll() is None and not told:
        with contextlib.suppress(httpx.HTTPError):
            health = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
            if health.status_code == 200:
                return
            told = _failure(health)
        if not told:
            time.sleep(_POLL_S)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_LAST_WORDS_S)
    size = os.lseek(log, 0, os.SEEK_END)
    said = os.pread(log, _SHOWN_LOG_CHARS, max(0, size - _SHOWN_LOG_CHARS)).decode("utf-8", "replace")
    raise ServerError(f"[bench serve] the server did not start: {said.strip() or told}")


def _failure(health: httpx.Response) -> str:
    """What /health says of a server that will not get better; "" of one that may."""
    try:
        error = health.json()["error"]
        return str(error["message"]) if error["code"] == "failed" else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _flags(model: ModelOptions) -> list[str]:
    """What was given, also by variables, as flags."""
    given: list[str] = []
    for field in fields(model):
        value = getattr(model, field.name)
        name = flag(field.name)
        if value is None or value is False or name is None:
            continue
        given += [name] if value is True else [name, str(value)]
    return given


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
