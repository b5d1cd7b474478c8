"""Puts tests/ on the path, so that helpers such as models_factory.py import by name, and keeps tests out of the user's
folders."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Started in the background of a shell, pytest would ignore Ctrl-C, and so would the programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_weight_cache_and_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packed weights of tests go to a folder of the run, and models to the CPU, also where a GPU is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DECODER_CACHE_DIR", str(tmp_path_factory.mktemp("weight_cache")))
        patch.setenv("LLM_DECODER_DEVICE", "cpu")
        yield
