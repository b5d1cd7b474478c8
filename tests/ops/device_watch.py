"""What one test does to a GPU costs no other its time: a kernel that never ends is ended with its test's name told, and
after an error that a process does not recover from no further test is begun in it."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Generator
from typing import Any

import pytest

from llm_decoder.backends import load_cuda

LIMIT = "LLM_DECODER_TEST_LIMIT_S"  # seconds that a test may take; without it as long as it likes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """No signal reaches a call that waits for a device, so the process ends, its stacks on standard error."""
    if LIMIT in os.environ:
        faulthandler.dump_traceback_later(float(os.environ[LIMIT]), exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        if LIMIT in os.environ:
            faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and item.get_closest_marker("device"):
        try:
            load_cuda().synchronize(0, 0)
        except RuntimeError as error:
            item.session.shouldfail = f"the device answers no more after {item.nodeid}: {error}"
    return report
