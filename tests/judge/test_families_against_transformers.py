"""Every family against HF transformers: random small checkpoints that transformers itself saved, in float32."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import make_tokenizer
from published_configs import PUBLISHED

from llm_decoder import LLM, SamplingParams
from llm_decoder.models import parse_config

pytestmark = [pytest.mark.judge, pytest.mark.filterwarnings("default")]

# float32 sums in another order, over a handful of layers; the largest logit is the yardstick.
TOLERANCE = 1e-3
N_NEW_TOKENS = 64
CHUNK = 32  # tokens a step, so that the longer prompts take several

COMMON: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 389,  # a multiple of nothing, larger than the tokenizer's 320
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.25,
}
ODD = {"hidden_size": 120, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
# These two change with the length; the longest prompt and its answer end exactly where they do.
CHANGE = 150 + N_NEW_TOKENS
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 12.0, 20.0, 30.0, 40.0],
    "original_max_position_embeddings": CHANGE,
    "rope_theta": 10000.0,
}


@dataclass(frozen=True)
class Case:
    family: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


CASES = {
    "llama": Case("Llama"),
    "llama, odd shapes": Case("Llama", ODD),
    "llama, tied": Case("Llama", {"tie_word_embeddings": True}),
    "llama, biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, a head for each": Case("Llama", {"num_key_value_heads": 6}),
    "llama, bfloat16 on disk": Case("Llama", {}, "bfloat16"),
    "llama, float16 on disk": Case("Llama", {}, "float16"),
    "llama 3 rope": Case("Llama", {"rope_parameters": LLAMA3, **ODD}),
    "llama, linear rope": Case("Llama", {"rope_parameters": LINEAR}),
    "llama, yarn": Case("Llama", {"rope_parameters": YARN}),
    "llama, yarn with scales of its own": Case(
        "Llama", {"rope_parameters": {**YARN, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False}}
    ),
    "llama, dynamic rope": Case("Llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": CHANGE}),
    "llama, longrope": Case("Llama", {"rope_parameters": LONGROPE}),
    "qwen3, longrope with a factor of its own": Case(
        "Qwen3", {"head_dim": 16, "rope_parameters": {**LONGROPE, "factor": 32.0}}
    ),
    "mistral, longrope with an attention factor of its own": Case(
        "Mistral", {"sliding_window": 40, "rope_parameters": {**LONGROPE, "attention_factor": 1.4}}
    ),
    "mistral": Case("Mistral", {"sliding_window": None, "head_dim": 24}),
    "mistral, a window shorter than the prompt": Case("Mistral", {"sliding_window": 11}),
    "mistral, odd shapes and window": Case("Mistral", {"sliding_window": 17, **ODD}),
    "qwen2": Case("Qwen2"),
    "qwen2, windows in the upper layers": Case(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    ),
    "qwen2, yarn, tied": Case("Qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen2, odd shapes": Case("Qwen2", {key: value for key, value in ODD.items() if key != "head_dim"}),
    "qwen3": Case("Qwen3", {"head_dim": 32}),
    "qwen3, odd shapes, tied": Case("Qwen3", {**ODD, "tie_word_embeddings": True}),
    "qwen3, biases and layer types": Case(
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 13,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


@dataclass(frozen=True)
class Pair:
    folder: Path
    theirs: Any  # a transformers model, float32, eval mode

    def their_logits(self, ids: list[int]) -> np.ndarray:
        import torch

        with torch.no_grad():
            return np.asarray(self.theirs(torch.tensor([ids])).logits[0].numpy())

    def their_greedy(self, ids: list[int]) -> list[int]:
        import torch

        with torch.no_grad():
            out = self.theirs.generate(
                torch.tensor([ids]), max_new_tokens=N_NEW_TOKENS, min_new_tokens=N_NEW_TOKENS, do_sample=False
            )
        return [int(token) for token in out[0, len(ids) :]]


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # two runtimes that spin on the same cores wait for each other
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    config = getattr(transformers, f"{case.family}Config")(**{**COMMON, **case.changes})
    torch.manual_seed(len(request.param))
    model = getattr(transformers, f"{case.family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0.0, 0.3)
            elif "norm" in name:
                weight.normal_(1.0, 0.1)
    model.to(getattr(torch, case.dtype)).save_pretrained(folder)
    make_tokenizer(folder)
    loaded = getattr(transformers, f"{case.family}ForCausalLM").from_pretrained(folder, dtype=torch.float32).eval()
    loaded.generation_config.eos_token_id = None
    return Pair(folder, loaded)


def prompts() -> list[list[int]]:
    rng = np.random.RandomState(7)
    return [rng.randint(2, 389, size=n).tolist() for n in (1, 5, CHUNK, 150)]


def test_logits_and_greedy_tokens_are_those_of_transformers(pair: Pair) -> None:
    with LLM(pair.folder, dtype="float32", max_tokens_per_step=CHUNK, threads=1) as llm:
        for ids in prompts():
            theirs, ours = pair.their_logits(ids), llm.logits(ids)
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()
        params = SamplingParams(max_tokens=N_NEW_TOKENS, temperature=0.0, ignore_eos=True)
        for ids, output in zip(prompts(), llm.generate(prompts(), params), strict=True):
            ours_tokens, theirs_tokens = output.outputs[0].token_ids, pair.their_greedy(ids)
            assert list(ours_tokens) == theirs_tokens
            assert len(theirs_tokens) == N_NEW_TOKENS


def test_int8_follows_the_float_model(pair: Pair) -> None:
    """Random wide weights are the hardest case for int8; a wrong layout or scale gives a correlation near zero."""
    ids = prompts()[3]
    with LLM(pair.folder, quantization="int8", max_tokens_per_step=CHUNK, threads=1) as llm:
        ours, theirs = llm.logits(ids), pair.their_logits(ids)
    correlation = np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]
    assert correlation > 0.97


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_frequencies_and_windows_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, _ = PUBLISHED[name]
    ours = parse_config(config)
    theirs = transformers.AutoConfig.for_model(**config)
    module = sys.modules[transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(theirs)].__module__]
    rope = getattr(module, type(theirs).__name__.replace("Config", "RotaryEmbedding"))(theirs)
    np.testing.assert_allclose(ours.rope_inv_freq, rope.inv_freq.numpy(), rtol=1e-6)
    assert ours.rope_attention_factor == pytest.approx(rope.attention_scaling)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * ours.n_layers
    window = getattr(theirs, "sliding_window", None) or 0
    assert ours.windows == tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
