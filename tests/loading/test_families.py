"""How each family's config.json becomes knobs, and what is refused because this build would get it wrong."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
from models_factory import hf_config, tensor_shapes

from llm_decoder.errors import MalformedFileError, ModelLoadError, UnsupportedModelError
from llm_decoder.model_config import weight_shapes
from llm_decoder.models import FAMILIES, parse_config, tensor_names

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_weight_of_a_family_has_the_name_and_shape_of_its_checkpoint(family: str) -> None:
    config = hf_config(family)
    ours = parse_config(config)
    names = tensor_names(ours)
    assert {names[name]: shape for name, shape in weight_shapes(ours).items()} == tensor_shapes(config)


def test_llama_attention_bias_adds_biases_to_all_four_projections() -> None:
    config = hf_config("llama", attention_bias=True)
    ours = parse_config(config)
    assert ours.qkv_bias
    assert ours.o_bias
    names = tensor_names(ours)
    assert {names[name]: shape for name, shape in weight_shapes(ours).items()} == tensor_shapes(config)


def test_core_fields_are_plain_numbers_and_lists() -> None:
    core = parse_config(hf_config("qwen3")).to_core()
    assert core["qk_norm"] is True
    assert core["windows"] == [0, 0]
    assert isinstance(core["rope_inv_freq"], list)
    assert "model_type" not in core
    assert "tie_word_embeddings" not in core


def test_head_dim_defaults_to_an_equal_share_of_the_hidden_size() -> None:
    assert parse_config(hf_config("llama")).head_dim == 16
    assert parse_config(hf_config("llama", head_dim=None)).head_dim == 16
    assert parse_config(hf_config("qwen3", head_dim=...)).head_dim == 128
    assert parse_config(hf_config("llama")).attention_scale == pytest.approx(0.25)


def test_absent_kv_heads_mean_one_a_query_head() -> None:
    assert parse_config(hf_config("llama", num_key_value_heads=...)).n_kv_heads == 4


def test_mistral_window_is_null_for_full_attention_and_4096_when_absent() -> None:
    assert parse_config(hf_config("mistral", sliding_window=None)).windows == (0, 0)
    assert parse_config(hf_config("mistral", sliding_window=7)).windows == (7, 7)
    assert parse_config(hf_config("mistral", sliding_window=...)).windows == (4096, 4096)


def test_qwen_layers_slide_from_max_window_layers_on() -> None:
    config = hf_config("qwen2", use_sliding_window=True, sliding_window=9, max_window_layers=1, num_hidden_layers=3)
    assert parse_config(config).windows == (0, 9, 9)
    assert parse_config(config | {"use_sliding_window": False}).windows == (0, 0, 0)


def test_qwen_layer_types_go_over_max_window_layers() -> None:
    types = ["sliding_attention", "full_attention"]
    config = hf_config("qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=0, layer_types=types)
    assert parse_config(config).windows == (5, 0)


def test_default_rope_is_powers_of_theta() -> None:
    inv_freq = np.array(parse_config(hf_config("llama", rope_theta=50000.0)).rope_inv_freq)
    np.testing.assert_allclose(inv_freq, 50000.0 ** (-np.arange(0, 16, 2) / 16), rtol=1e-6)


def test_linear_rope_divides_every_frequency() -> None:
    plain = np.array(parse_config(hf_config("llama")).rope_inv_freq)
    scaled = np.array(parse_config(hf_config("llama", rope_scaling={"type": "linear", "factor": 4.0})).rope_inv_freq)
    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-6)


def test_llama3_rope_keeps_short_waves_and_stretches_long_ones() -> None:
    plain = np.array(parse_config(hf_config("llama")).rope_inv_freq)
    scaled = np.array(parse_config(hf_config("llama", rope_scaling=LLAMA3_ROPE)).rope_inv_freq)
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 64 / 4, wavelength > 64 / 1
    assert short.any()
    assert long.any()
    assert (~short & ~long).any()
    np.testing.assert_allclose(scaled[short], plain[short], rtol=1e-6)
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert ((scaled[between] < plain[between]) & (scaled[between] > plain[between] / 8)).all()


def test_yarn_rope_extends_the_context_and_scales_attention() -> None:
    config = parse_config(hf_config("qwen2", rope_scaling=YARN_ROPE, max_position_embeddings=128))
    assert config.max_model_len == 512
    assert config.rope_attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    old = parse_config(hf_config("llama", rope_theta=50000.0, rope_scaling={**YARN_ROPE, "type": "yarn"}))
    nested = {**YARN_ROPE, "rope_theta": 50000.0}
    new = parse_config(hf_config("llama", rope_theta=..., rope_parameters=nested))
    by_layer = parse_config(hf_config("llama", rope_theta=..., rope_parameters={"full_attention": nested}))
    assert old == new == by_layer


def test_torch_dtype_and_dtype_are_both_read_as_without_effect() -> None:
    assert parse_config(hf_config("llama", torch_dtype="bfloat16")) == parse_config(hf_config("llama", dtype="float16"))


def test_integers_written_as_whole_floats_are_read() -> None:
    assert parse_config(hf_config("llama", max_position_embeddings=1024.0)).max_model_len == 1024


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown family": ({"model_type": "mamba"}, "model_type"),
    "no family": ({"model_type": ...}, "model_type"),
    "another architecture of the family": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    "biases in the mlp": ({"mlp_bias": True}, "mlp_bias"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "a softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "experts": ({"num_experts": 8}, "num_experts"),
    "a multiplier": ({"residual_multiplier": 0.5}, "residual_multiplier"),
    "a window that this family does not have": ({"sliding_window": 128}, "sliding_window"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "a quantised checkpoint": ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    "dynamic rope": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    "longrope": ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "longrope"),
    "multimodal rope": ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "mrope"),
    "an unknown rope": ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
    "an unknown field of the rope": ({"rope_scaling": {"type": "linear", "factor": 2.0, "wobble": 1}}, "wobble"),
    "two ropes by layer type": (
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            }
        },
        "rope_parameters",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_config_that_asks_for_what_this_build_does_not_run_is_refused_by_name(case: str) -> None:
    overrides, named = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModelError, match=named):
        parse_config(hf_config("llama", **overrides))


def test_a_quantised_checkpoint_is_refused_with_its_method_and_a_remedy() -> None:
    with pytest.raises(UnsupportedModelError, match=r"gptq.*float checkpoint"):
        parse_config(hf_config("qwen2", quantization_config={"quant_method": "gptq", "bits": 4}))


def test_unknown_fields_that_are_null_are_taken_as_absent() -> None:
    assert parse_config(hf_config("llama", sliding_window=None, final_logit_softcapping=None)).windows == (0, 0)


def test_auto_map_and_trust_flags_are_never_followed_for_a_known_family(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda name, *_: imported.append(name))
    code = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    config = hf_config(
        "llama", auto_map=code, trust_remote_code=True, _attn_implementation_internal="evil/kernel", _name_or_path="x"
    )
    assert parse_config(config) == parse_config(hf_config("llama"))
    assert imported == []


def test_auto_map_of_an_unknown_family_is_refused_and_said_never_to_run() -> None:
    with pytest.raises(UnsupportedModelError, match="never run"):
        parse_config({"model_type": "evil", "auto_map": {"AutoModel": "modeling_evil.Evil"}})


def _rope(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": {**YARN_ROPE, **fields}}


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no hidden size": ({"hidden_size": ...}, "hidden_size"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "a negative count of layers": ({"num_hidden_layers": -2}, "num_hidden_layers"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "no heads, which divides by zero": ({"num_attention_heads": 0}, "num_attention_heads"),
    "no kv heads": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "heads that kv heads do not divide": ({"num_key_value_heads": 3}, "multiple"),
    "more kv heads than heads": ({"num_key_value_heads": 8}, "multiple"),
    "an odd head_dim": ({"head_dim": 15}, "head_dim"),
    "a head_dim of zero": ({"head_dim": 0}, "head_dim"),
    "a vocabulary of 2^63": ({"vocab_size": 2**63}, "vocab_size"),
    "a number of 5000 digits": ({"vocab_size": 10**5000}, "vocab_size"),
    "a hidden size beyond any model": ({"hidden_size": 2**30}, "hidden_size"),
    "a text for a number": ({"hidden_size": "64"}, "hidden_size"),
    "a truth value for a number": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "a list for a number": ({"intermediate_size": [96]}, "intermediate_size"),
    "a fraction for a count": ({"vocab_size": 330.5}, "vocab_size"),
    "a number for a flag": ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    "a number for the family": ({"model_type": 7}, "model_type"),
    "NaN for epsilon": ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
    "infinity for theta": ({"rope_theta": math.inf}, "rope_theta"),
    "a theta of zero": ({"rope_theta": 0.0}, "rope_theta"),
    "a negative epsilon": ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    "a text for the rope": ({"rope_scaling": "yarn"}, "rope_scaling"),
    "a rope without its factor": ({"rope_scaling": {"type": "linear"}}, "factor"),
    "a rope factor of zero": (_rope(factor=0.0), "factor"),
    "a NaN rope factor": (_rope(factor=math.nan), "factor"),
    "an original context of zero": (_rope(original_max_position_embeddings=0), "original_max_position_embeddings"),
    "frequencies in the wrong order": (
        {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "low_freq_factor",
    ),
    "a theta of one under yarn": ({**_rope(), "rope_theta": 1.0}, "rope_theta"),
    "a text for a layer type's rope": ({"rope_parameters": {"full_attention": "x"}}, "rope_parameters"),
    "architectures that are no texts": ({"architectures": [1]}, "architectures"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_config_whose_numbers_cannot_be_is_refused_by_name(case: str) -> None:
    overrides, named = MALFORMED[case]
    with pytest.raises(ModelLoadError, match=named):
        parse_config(hf_config("llama", **overrides))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("value", [0, -1, 2**62, "x", [], {}, True, 1.5, math.nan])
def test_no_wrong_value_in_any_field_raises_anything_but_a_load_error(family: str, value: Any) -> None:
    config = hf_config(family, rope_scaling=YARN_ROPE)
    for name in [*config, "layer_types", "sliding_window", "max_window_layers", "rope_parameters", "head_dim"]:
        with contextlib.suppress(ModelLoadError):  # anything else fails the test
            parse_config(config | {name: value})
    for name in YARN_ROPE:
        with contextlib.suppress(ModelLoadError):
            parse_config(config | {"rope_scaling": {**YARN_ROPE, name: value}})


def test_layer_types_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(MalformedFileError, match="layer_types"):
        parse_config(hf_config("qwen3", layer_types=["full_attention"]))


def test_linear_attention_layers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        parse_config(hf_config("qwen3", layer_types=["linear_attention", "full_attention"]))
