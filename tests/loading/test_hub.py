"""Hub ids, against a stand-in hub on loopback.

Each call runs in a process of its own: huggingface_hub reads its settings when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models_factory import make_checkpoint
from stand_in_hub import StandInHub

from llm_decoder.hub import is_hub_id

PROGRAM = """
import json, sys
from llm_decoder.errors import LLMDecoderError
from llm_decoder.loading import load_model
calls = []
try:
    loaded = load_model(sys.argv[1], progress=lambda *call: calls.append(call))
    print(json.dumps({"path": str(loaded.path), "layers": loaded.config.n_layers, "calls": calls}))
except LLMDecoderError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""
FETCHED = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    models = {
        "owner/single": make_checkpoint(tmp_path / "single", "llama"),
        "owner/sharded": make_checkpoint(tmp_path / "sharded", "qwen2", n_shards=3),
        "owner/unknown": make_checkpoint(tmp_path / "unknown", "llama", model_type="mamba"),
        "owner/pickled": make_checkpoint(tmp_path / "pickled", "llama"),
        "owner/empty": tmp_path / "empty",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing here")
    (models["owner/pickled"] / "model.safetensors").rename(models["owner/pickled"] / "pytorch_model.bin")
    for name in ("pytorch_model.bin", "modeling_evil.py", "model.gguf", "README.md", "consolidated.safetensors"):
        (models["owner/single"] / name).write_bytes(b"never fetched")
    with StandInHub(models) as running:
        yield running


def load(tmp_path: Path, hub: StandInHub, model: str, **variables: str) -> dict[str, Any]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf_home"),
        "LLM_DECODER_CACHE_DIR": str(tmp_path / "weight_cache"),
        "NO_PROXY": "*",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, model], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_model_is_fetched_once_and_only_the_files_it_needs(tmp_path: Path, hub: StandInHub) -> None:
    first = load(tmp_path, hub, "owner/single")
    assert first["layers"] == 2, first
    assert hub.fetched() == FETCHED
    hub.requests.clear()
    assert load(tmp_path, hub, "owner/single")["path"] == first["path"]
    assert hub.fetched() == set()


def test_every_shard_that_the_index_names_is_fetched_with_progress(tmp_path: Path, hub: StandInHub) -> None:
    result = load(tmp_path, hub, "owner/sharded")
    assert result["layers"] == 2, result
    assert {name for name in hub.fetched() if name.startswith("model-")} == {
        f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)
    }
    downloads = [(done, total) for done, total, what in result["calls"] if what.startswith("downloading")]
    assert downloads
    assert all(0 <= done <= total for done, total in downloads)
    assert any(done == total > 0 for done, total in downloads)


def test_an_unknown_name_is_not_found(tmp_path: Path, hub: StandInHub) -> None:
    result = load(tmp_path, hub, "owner/absent")
    assert result["error"] == "ModelNotFoundError"
    assert "owner/absent" in result["message"]
    assert "HF_TOKEN" in result["message"]


def test_a_model_this_build_cannot_run_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, hub: StandInHub
) -> None:
    result = load(tmp_path, hub, "owner/unknown")
    assert result["error"] == "UnsupportedModelError"
    assert "mamba" in result["message"]
    assert "model.safetensors" not in hub.fetched()


def test_a_repository_without_safetensors_is_refused_and_its_pickle_stays_there(
    tmp_path: Path, hub: StandInHub
) -> None:
    result = load(tmp_path, hub, "owner/pickled")
    assert result["error"] == "ModelNotFoundError"
    assert "safetensors" in result["message"]
    assert "pytorch_model.bin" not in hub.fetched()


def test_a_repository_that_is_no_model_is_refused(tmp_path: Path, hub: StandInHub) -> None:
    result = load(tmp_path, hub, "owner/empty")
    assert result["error"] == "ModelNotFoundError"
    assert "config.json" in result["message"]


def test_a_hub_that_answers_with_errors_is_a_clear_error(tmp_path: Path, hub: StandInHub) -> None:
    hub.status = 401
    result = load(tmp_path, hub, "owner/single")
    assert result["error"] in ("ModelLoadError", "ModelNotFoundError")
    assert "owner/single" in result["message"]


def test_a_hub_that_is_not_there_is_a_clear_error(tmp_path: Path, hub: StandInHub) -> None:
    result = load(tmp_path, hub, "owner/single", HF_ENDPOINT="http://127.0.0.1:9")
    assert result["error"] == "ModelLoadError"
    assert "cannot be reached" in result["message"]


@pytest.mark.parametrize("name", ["owner/name", "name", "Owner-1/name.v2_x", "a/b"])
def test_names_of_the_hub_are_known(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["", "/x", "x/", "a/b/c", "..", "a/..", "../b", "a b", "a\\b", "http://x/y", "a/b\n", "-x/y", "x" * 200]
)
def test_paths_and_nonsense_are_no_names_of_the_hub(name: str) -> None:
    assert not is_hub_id(name)
