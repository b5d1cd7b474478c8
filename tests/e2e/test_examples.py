"""Every file in examples/ runs on the embedded model and prints something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EMBEDDED_RERANKER = Path(__file__).parents[2] / "python/llm_decoder/embedded/reranker/config.json"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs_as_it_stands(path: Path, tmp_path: Path) -> None:
    if path.stem == "rerank" and not EMBEDDED_RERANKER.exists():
        pytest.skip(f"this checkout was made without the embedded reranker ({EMBEDDED_RERANKER})")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "LLM_DECODER_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) >= 2


def test_there_are_examples_for_what_people_do_first() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"generate", "stream", "chat", "batch", "logprobs", "prefix_reuse"} <= names
