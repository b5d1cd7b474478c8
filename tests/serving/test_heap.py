"""What a large body took goes back to the system when it has been read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_decoder.serving.limits import Admission
from llm_decoder.serving.settings import ServerSettings

# As a parsed body is: many small things, the last of which somebody keeps.
MEASURE = """
from pathlib import Path
from llm_decoder.serving.memory import give_back, share_one_heap

def anonymous_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

share_one_heap()
before = anonymous_bytes()
items = [bytes(4096) for _ in range(16384)]
kept = items.pop()
del items
give_back()
print(anonymous_bytes() - before)
"""


def test_what_lies_below_something_that_is_kept_goes_back_too() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 << 20


def test_large_bodies_are_tidied_up_after_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tidied: list[None] = []
    monkeypatch.setattr("llm_decoder.serving.limits.give_back", lambda: tidied.append(None))
    admission = Admission(ServerSettings())
    for n_bytes in (1000, 1 << 20):
        admission.hold(n_bytes)
        admission.release(n_bytes)
    assert len(tidied) == 1
