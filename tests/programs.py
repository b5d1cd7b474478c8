"""The servers as people start them, over the embedded model unless a flag says otherwise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["FASTAPI", "FLASK", "Program"]

ROOT = Path(__file__).parents[1]
FLASK = ["web/app.py"]
FASTAPI = ["-m", "llm_decoder", "serve"]


class Program:
    """Listens when it is made; `flags` are added to its command."""

    def __init__(self, command: list[str], log: Path, *flags: str) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", "0", *flags], cwd=ROOT, stderr=stderr, env=dict(os.environ)
            )
        self.url = self._address()

    def _address(self) -> str:
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text())
            if found:
                return found[0]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def ask(self, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            read: bytes = answer.read()
        return read

    def wait_for_log(self, words: str) -> str:
        """The first line of its log that has these words."""
        for _ in range(600):
            for line in self.log.read_text().splitlines():
                if words in line:
                    return line
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def wait_until_ready(self) -> None:
        for _ in range(600):
            try:
                self.ask("/health")
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 503:
                    raise
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the model does not load")
