"""Tests of the build in LLM_DECODER_BUILD_DIR, else build/. Where it has no extension they are skipped; where
LLM_DECODER_CUDA=on says that it must, they fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from llm_decoder.backends import load_cuda
from llm_decoder.errors import BackendError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def cuda() -> ModuleType:
    try:
        return load_cuda()
    except BackendError as error:
        miss(str(error))


@pytest.fixture(scope="session")
def cuda_build() -> Path:
    build = Path(os.environ.get("LLM_DECODER_BUILD_DIR", ROOT / "build"))
    if not (build / "kernel_objects.txt").exists():
        miss(f"no GPU kernels were compiled in {build}")
    return build


def miss(reason: str) -> NoReturn:
    if os.environ.get("LLM_DECODER_CUDA") == "on":
        pytest.fail(reason)
    pytest.skip(reason)
