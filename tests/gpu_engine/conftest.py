"""The host machine of the kernels in the place of a GPU, for every test here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from models_factory import make_checkpoint
from tiny_gpu_decoder import gpu_module

from llm_decoder import backends


@pytest.fixture(scope="module", autouse=True)
def _host_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "load_cuda", gpu_module)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama", seed=3, dtype="BF16")
