"""The CUDA extension on any machine: it is imported without a driver and says what keeps it from a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from types import ModuleType

import pytest

from llm_decoder.backends import load_cuda
from llm_decoder.errors import BackendError


@pytest.fixture
def cuda() -> ModuleType:
    try:
        return load_cuda()
    except BackendError as error:
        pytest.skip(str(error))


def test_it_says_how_many_gpus_there_are_or_what_keeps_it_from_one(cuda: ModuleType) -> None:
    try:
        found = f"{cuda.n_devices()} devices"
    except RuntimeError as error:
        found = str(error)
    assert re.match(r"[1-9]\d* devices|\[n_devices\] cudaError\w+: \w", found)


def test_it_says_what_it_was_compiled_for(cuda: ModuleType) -> None:
    assert all(re.fullmatch(r"(sm|compute)_\d+a?", target) for target in cuda.TARGETS.split())


def test_it_needs_neither_the_driver_nor_the_runtime_of_others(cuda: ModuleType) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf on this machine")
    done = subprocess.run([readelf, "-d", str(cuda.__file__)], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", done.stdout)
    assert needed
    assert not [library for library in needed if "cuda" in library]
