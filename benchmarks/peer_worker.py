"""The suite's end of a worker: a process that holds one engine, stopped whenever it is not asked anything.

Stopped with SIGSTOP, not merely idle: threads that spin while they wait would take the cores of the one being measured.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from machine import anonymous_bytes, process_cpu_s


class WorkerFailedError(Exception):
    """An engine could not load or answer; the message is its own."""


class PeerWorker:
    """A running driver. The first line that it prints says that it is ready; then a line answers a line."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path, limit_s: float = 900.0) -> None:
        self._limit_s = limit_s
        self._log = log.open("w")
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env=_environment(env),
            process_group=0,  # its children are stopped with it, and the system ends the group when this process dies
        )
        self._pending = b""
        try:
            self.ready: dict[str, Any] = self._read()["ready"]
        except WorkerFailedError:
            self.close()
            raise
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer to one request; it is stopped before and after. Raises WorkerFailedError."""
        self._signal(signal.SIGCONT)
        try:
            stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]
            stdin.write(json.dumps(request).encode() + b"\n")
            answer = self._read()
        except BrokenPipeError:
            raise WorkerFailedError(self._last_words()) from None
        finally:
            self.stop()
        if "failed" in answer:
            raise WorkerFailedError(answer["failed"])
        return answer

    def cpu_s(self) -> float:
        return process_cpu_s(self.pid)

    def stop(self) -> None:
        """Returns when it stands still, or has ended."""
        self._signal(signal.SIGSTOP)
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """End it and what it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe:
                pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended; the next read tells
            os.killpg(self.pid, number)

    def _read(self) -> dict[str, Any]:
        stdout: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        end = time.monotonic() + self._limit_s
        while b"\n" not in self._pending:
            readable, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                self._signal(signal.SIGKILL)
                raise WorkerFailedError(f"no answer within {self._limit_s:.0f} s")
            part = os.read(stdout.fileno(), 1 << 16)
            if not part:
                raise WorkerFailedError(self._last_words())
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        self._log.flush()
        lines = Path(self._log.name).read_text(errors="replace").strip().splitlines()
        return f"ended: {lines[-1][:300] if lines else 'without a word'}"


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """A worker's: ours and its own. Python keeps compiled files, which an installed package has, also where the suite
    itself is told not to: compiling ours anew takes longer than all else of a start."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | dict(env)


def time_start(command: Sequence[str], env: Mapping[str, str], request: Mapping[str, Any] | None) -> tuple[float, int]:
    """(seconds from process start to the first answer, or without a request to its end; most anonymous bytes seen)."""
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(env),
        process_group=0,
    )
    assert process.stdin
    assert process.stdout
    start = time.perf_counter()
    if request:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    n_lines, n_bytes, seen = (2 if request else None), 0, b""
    while n_lines is None or seen.count(b"\n") < n_lines:
        readable, _, _ = select.select([process.stdout], [], [], 0.02)
        n_bytes = max(n_bytes, anonymous_bytes(process.pid))
        if readable:
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                break
            seen += part
    seconds = time.perf_counter() - start
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    process.stdin.close()
    process.stdout.close()
    if (request and (seen.count(b"\n") < 2 or b'"failed"' in seen)) or (not request and status > 0):
        raise WorkerFailedError(f"did not start: {seen[-300:].decode(errors='replace')}")
    return seconds, n_bytes
