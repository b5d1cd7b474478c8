"""The server of a soak as its clients hold it: started, asked how it is, ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llm_decoder

_HERE = Path(__file__).parent
_WAIT_S = 120.0
_POLL_S = 0.02


class ServerProgram:
    """server: "fastapi" or "flask". model: keyword arguments of LLM; settings: of ServerSettings."""

    def __init__(self, server: str, model: dict[str, Any], **settings: Any) -> None:
        asked = {"server": server, "model": model, "settings": settings}
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 - closed with the server
        places = [str(Path(llm_decoder.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / "soak_server.py"), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(place for place in places if place)},
        )
        try:
            found = self._wait_for(r"listening url=(http://127\.0\.0\.1:\d+)")
            self._wait_for(r"info ready ")
        except BaseException:
            self.end()
            raise
        self.url = found

    def _wait_for(self, pattern: str) -> str:
        until_s = time.monotonic() + _WAIT_S
        while time.monotonic() < until_s and self._process.poll() is None:
            found = re.search(pattern, self.log())
            if found:
                return found[found.re.groups]
            time.sleep(_POLL_S)
        raise AssertionError(f"the server does not start: {self.log()[-2000:]}")

    def log(self) -> str:
        return Path(self._log.name).read_text(encoding="utf-8", errors="replace")

    def state(self, *, objects: bool = False) -> dict[str, Any]:
        """soak_server.State. Raises AssertionError when the server has ended, or its engine."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("objects\n" if objects else "state\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the server has ended: {self.log()[-2000:]}"
        told: dict[str, Any] = json.loads(line)
        assert "error" not in told, told["error"]
        return told

    def idle_state(self, *, objects: bool = False) -> dict[str, Any]:
        """Its state once nobody asks anything any more."""
        until_s = time.monotonic() + _WAIT_S
        while not (told := self.state())["is_idle"]:
            assert time.monotonic() < until_s, f"the server does not come to rest: {told}"
            time.sleep(_POLL_S)
        return self.state(objects=True) if objects else told

    def resident_bytes(self) -> int:
        """Of its memory, files that it maps (the weights) and all."""
        return _status_bytes(self._process.pid, "VmRSS")

    def end(self) -> int:
        """Its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_WAIT_S)
        finally:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._log.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


def _status_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
