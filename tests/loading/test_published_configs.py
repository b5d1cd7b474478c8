"""Published config.json files are read into the right knobs, and what programs add to them changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from models_factory import hf_config
from published_configs import ADDED_BY_TOOLS, OLD_DEFAULTS, PUBLISHED

from llm_decoder.models import FAMILIES, parse_config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_becomes_its_knobs(name: str) -> None:
    config, expected = PUBLISHED[name]
    ours = parse_config(config)
    assert {
        "context": ours.max_model_len,
        "head_dim": ours.head_dim,
        "n_kv_heads": ours.n_kv_heads,
        "theta": pytest.approx(ours.rope_inv_freq[1] ** (-ours.head_dim / 2), rel=1e-3),  # short waves are never scaled
        "window": ours.windows[-1],
        "tied": ours.tie_word_embeddings,
        "qkv_bias": ours.qkv_bias,
        "o_bias": ours.o_bias,
        "qk_norm": ours.qk_norm,
    } == expected
    assert set(ours.windows) == {expected["window"]}
    assert ours.n_layers == config["num_hidden_layers"]
    assert ours.vocab_size == config["vocab_size"]
    assert ours.norm_eps == config["rms_norm_eps"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("added", [OLD_DEFAULTS, ADDED_BY_TOOLS], ids=["old defaults", "by tools"])
def test_fields_that_programs_write_into_every_file_change_nothing(family: str, added: dict[str, Any]) -> None:
    plain = hf_config(family, head_dim=...)
    assert parse_config(plain | added) == parse_config(plain)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_without_biases_of_choice_may_say_so(family: str) -> None:
    assert parse_config(hf_config(family, attention_bias=False, mlp_bias=False)) == parse_config(hf_config(family))


def test_a_qwen2_has_its_biases_whatever_attention_bias_says() -> None:
    assert parse_config(hf_config("qwen2", attention_bias=True)) == parse_config(hf_config("qwen2"))
