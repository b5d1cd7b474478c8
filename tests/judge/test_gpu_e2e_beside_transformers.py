"""What make gpu-e2e does with torch and transformers, in small: they on the CPU, ours where a host stands for a GPU."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, backends

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / folder) for folder in ("tools/gpu_e2e", "benchmarks", "benchmarks/peers")]

import e2e_judges  # noqa: E402
from e2e_judges import Case  # noqa: E402
from gpu_model import THEIRS, Participants, Scale, all_rows  # noqa: E402
from gpu_model_weights import LLAMA_8B  # noqa: E402
from transformers_on_gpu import TransformersOnGpu  # noqa: E402

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

FEW: dict[str, Any] = {"prompts": (1, 5, 20, 40), "n_new": 4, "max_tokens_per_step": 32}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = [
    Case("llama", **FEW),
    Case("mistral", dtype="float16", **FEW),
    Case("qwen2", kv_cache_dtype="int8", **FEW),
    Case("qwen3", quantization="int4", kv_cache_dtype="fp8", **FEW),
]


@pytest.fixture(autouse=True)
def _host_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "load_cuda", lambda: importlib.import_module("llm_decoder._cuda_host"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_logits_and_beams_are_those_of_transformers(case: Case) -> None:
    torch = pytest.importorskip("torch")
    facts = e2e_judges.judge_case(torch, case, "cpu")
    assert facts["n_tokens"] == len(case.prompts) * case.n_new
    assert facts["n_clear"] > 0
    assert 0.0 < facts["worst_share_of_bound"] <= 1.0
    assert facts["n_beams"] == case.width


def test_a_reference_that_is_not_transformers_is_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    theirs = e2e_judges.Theirs.logits
    monkeypatch.setattr(e2e_judges.Theirs, "logits", lambda self, ids: np.roll(theirs(self, ids), 1, axis=-1))
    with pytest.raises(AssertionError, match="transformers and the NumPy reference are"):
        e2e_judges.judge_case(torch, CASES[0], "cpu")


def test_a_model_of_other_weights_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    other = make_checkpoint(tmp_path, "llama", seed=4, dtype="BF16")
    monkeypatch.setattr(e2e_judges, "LLM", lambda folder, **options: LLM(other, **options))
    with pytest.raises(AssertionError, match=r"is not the best|log probability is off"):
        e2e_judges.judge_case(torch, CASES[0], "cpu")


def test_a_peer_tells_when_each_token_was_there() -> None:
    torch = pytest.importorskip("torch")
    peer = TransformersOnGpu(torch, LLAMA_8B | SIZES, "cpu")
    for n_sequences in (1, 3):
        times = peer.token_times(np.ones((n_sequences, 6), np.int64), 5)
        assert len(times) == 5
        assert times == sorted(times)
    peer.close()


def test_rows_of_the_peer_are_those_of_a_peer_that_has_recorded_its_graphs() -> None:
    torch = pytest.importorskip("torch")
    scale = Scale(
        LLAMA_8B | SIZES, n_prompt=4, n_new={2: 8}, first_tokens=(20,), n_recorded=3, n_samples=1, device="cpu"
    )
    participants = Participants(torch, scale)
    rows = all_rows(participants)
    assert rows["bench-transformers-first-token-20"].make()["seconds"] > 0
    times = [5.0 * i for i in range(4)] + [15.0 + i for i in range(1, 5)]
    participants.get(THEIRS)._peer.token_times = lambda prompts, n_new: times[:n_new]
    assert rows["bench-transformers-decode-2"].make()["tokens_per_s"] == pytest.approx(2.0)
    participants.close()
