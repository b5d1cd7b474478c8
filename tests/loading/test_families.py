"""How each family's config.json becomes knobs, and what is refused because this build would get it wrong."""

from __future__ import annotations

import contextlib
import decimal
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import hf_config, make_checkpoint, tensor_shapes

from llm_decoder import LLM
from llm_decoder.errors import ConfigError, MalformedFileError, ModelLoadError, UnsupportedModelError
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
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 12.0, 20.0, 30.0, 40.0],
    "original_max_position_embeddings": 128,
}


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


def test_absent_kv_heads_are_the_familys_and_null_ones_one_a_query_head() -> None:
    assert parse_config(hf_config("llama", num_key_value_heads=...)).n_kv_heads == 4
    assert parse_config(hf_config("mistral", num_attention_heads=16, num_key_value_heads=...)).n_kv_heads == 8
    for family in FAMILIES:
        assert parse_config(hf_config(family, num_key_value_heads=None)).n_kv_heads == 4


def test_mistral_window_is_null_for_full_attention_and_4096_when_absent() -> None:
    assert parse_config(hf_config("mistral", sliding_window=None)).windows == (0, 0)
    assert parse_config(hf_config("mistral", sliding_window=7)).windows == (7, 7)
    assert parse_config(hf_config("mistral", sliding_window=...)).windows == (4096, 4096)


def test_a_mistral_that_denies_its_window_is_refused() -> None:
    assert parse_config(hf_config("mistral", sliding_window=7, use_sliding_window=True)).windows == (7, 7)
    assert parse_config(hf_config("mistral", sliding_window=None, use_sliding_window=False)).windows == (0, 0)
    with pytest.raises(UnsupportedModelError, match="use_sliding_window"):
        parse_config(hf_config("mistral", sliding_window=7, use_sliding_window=False))


@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", None), ("mistral", 7)])
def test_layer_types_that_say_what_the_family_does_are_read(family: str, window: int | None) -> None:
    kinds = ["sliding_attention" if window else "full_attention"] * 2
    config = hf_config(family, sliding_window=window)
    assert parse_config(config | {"layer_types": kinds}) == parse_config(config)


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


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_frequencies_are_the_same_bits_on_every_machine(theta: float) -> None:
    inv_freq = parse_config(hf_config("llama", rope_theta=theta, head_dim=128)).rope_inv_freq
    exact = [decimal.Decimal(theta) ** (decimal.Decimal(i) / 128) for i in range(0, 128, 2)]
    assert list(inv_freq) == [float(np.float32(1) / np.float32(float(power))) for power in exact]


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


def test_dynamic_rope_is_plain_rope_up_to_the_context() -> None:
    scaled = parse_config(hf_config("llama", rope_scaling={"type": "dynamic", "factor": 4.0}))
    plain = parse_config(hf_config("llama"))
    assert scaled.rope_inv_freq == plain.rope_inv_freq
    assert scaled.max_model_len == 512


def test_longrope_takes_its_short_factors_and_ends_where_the_long_ones_begin() -> None:
    plain = np.array(parse_config(hf_config("llama")).rope_inv_freq)
    scaled = parse_config(hf_config("llama", rope_scaling=LONGROPE))
    np.testing.assert_allclose(scaled.rope_inv_freq, plain / LONGROPE["short_factor"], rtol=1e-6)
    assert scaled.max_model_len == 128
    assert scaled.rope_attention_factor == pytest.approx(math.sqrt(1 + math.log(512 / 128) / math.log(128)))


def test_longrope_gives_its_factor_or_its_attention_factor_itself() -> None:
    by_factor = parse_config(hf_config("llama", rope_scaling={**LONGROPE, "factor": 32.0}))
    assert by_factor.rope_attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(128)))
    given = parse_config(hf_config("llama", rope_scaling={**LONGROPE, "factor": 32.0, "attention_factor": 1.5}))
    assert given.rope_attention_factor == 1.5
    shrunk = parse_config(hf_config("llama", rope_scaling={**LONGROPE, "factor": 0.5}))
    assert shrunk.rope_attention_factor == 1.0


def test_longrope_without_an_original_context_has_the_whole_one() -> None:
    scaled = {key: value for key, value in LONGROPE.items() if key != "original_max_position_embeddings"}
    assert parse_config(hf_config("llama", rope_scaling=scaled)).max_model_len == 512
    outside = hf_config("llama", rope_scaling=scaled, original_max_position_embeddings=64)
    assert parse_config(outside).max_model_len == 64


@pytest.mark.parametrize(
    ("rope", "limit", "reason"),
    [({"type": "dynamic", "factor": 4.0}, 512, "dynamic rope"), (None, 128, "longrope")],
    ids=["dynamic", "longrope"],
)
def test_a_context_beyond_a_rope_that_changes_there_is_refused_with_the_reason(
    tmp_path: Path, rope: dict[str, Any] | None, limit: int, reason: str
) -> None:
    folder = make_checkpoint(tmp_path, rope_scaling=rope or LONGROPE)
    with pytest.raises(ConfigError, match=rf"1 to {limit}.* got {limit + 1}; beyond it {reason}"):
        LLM(folder, max_model_len=limit + 1)


def test_dual_chunk_attention_is_run_within_its_first_chunk() -> None:
    chunking = {"chunk_size": 256, "local_size": 32, "original_max_position_embeddings": 256}
    config = parse_config(hf_config("qwen2", dual_chunk_attention_config=chunking))
    assert config.max_model_len == 224
    assert "chunk" in config.limit_reason
    longer = parse_config(hf_config("qwen2", dual_chunk_attention_config={"chunk_size": 2048, "local_size": 64}))
    assert longer == parse_config(hf_config("qwen2"))


def test_yarn_without_betas_of_its_own_takes_those_of_the_paper() -> None:
    plain = parse_config(hf_config("llama", rope_scaling=YARN_ROPE))
    spelled = parse_config(hf_config("llama", rope_scaling={**YARN_ROPE, "beta_fast": 32, "beta_slow": 1}))
    zeros = parse_config(hf_config("llama", rope_scaling={**YARN_ROPE, "beta_fast": 0, "beta_slow": 0}))
    assert plain == spelled == zeros


def test_when_both_spellings_of_rope_are_given_the_old_one_goes_first() -> None:
    both = hf_config("llama", rope_scaling=LLAMA3_ROPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert parse_config(both) == parse_config(hf_config("llama", rope_scaling=LLAMA3_ROPE))


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    old = parse_config(hf_config("llama", rope_theta=50000.0, rope_scaling={**YARN_ROPE, "type": "yarn"}))
    nested = {**YARN_ROPE, "rope_theta": 50000.0}
    new = parse_config(hf_config("llama", rope_theta=..., rope_parameters=nested))
    by_layer = parse_config(hf_config("llama", rope_theta=..., rope_parameters={"full_attention": nested}))
    assert old == new == by_layer


def test_torch_dtype_and_dtype_are_both_read_as_without_effect() -> None:
    assert parse_config(hf_config("llama", torch_dtype="bfloat16")) == parse_config(hf_config("llama", dtype="float16"))


def test_integers_written_as_whole_floats_are_read_and_the_other_way_round() -> None:
    assert parse_config(hf_config("llama", max_position_embeddings=1024.0)).max_model_len == 1024
    assert parse_config(hf_config("llama", partial_rotary_factor=1)) == parse_config(hf_config("llama"))


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown family": ({"model_type": "mamba"}, "model_type"),
    "no family": ({"model_type": ...}, "model_type"),
    "another architecture of the family": ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    "biases in the mlp of a family that has none": (
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "mlp_bias": True},
        "mlp_bias",
    ),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act"),
    "a softcap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "experts": ({"num_experts": 8}, "num_experts"),
    "a multiplier": ({"residual_multiplier": 0.5}, "residual_multiplier"),
    "a window that this family does not have": ({"sliding_window": 128}, "sliding_window"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "a quantised checkpoint": ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    "a stack of layers of another kind": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "attention that sees the future": ({"is_causal": False}, "is_causal"),
    "rope on neighbouring pairs": ({"rope_interleaved": True}, "rope_interleaved"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "a multiplier of the logits": ({"output_multiplier_scale": 0.5}, "output_multiplier_scale"),
    "a checkpoint quantised by MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
    "an unknown flag that is off": ({"use_rope": False}, "use_rope"),
    "an unknown number that is zero": ({"logit_bias_scale": 0}, "logit_bias_scale"),
    "another activation by another name": ({"activation": "geglu"}, "activation"),
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


@pytest.mark.parametrize("nothing", [None, {}, [], ""])
def test_unknown_fields_that_are_null_or_empty_are_taken_as_absent(nothing: Any) -> None:
    config = hf_config("llama", final_logit_softcapping=nothing, ds_config=nothing, pruned_heads=nothing)
    assert parse_config(config) == parse_config(hf_config("llama"))


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
    "too few short factors": ({"rope_scaling": {**LONGROPE, "short_factor": [1.0]}}, "short_factor"),
    "a text among short factors": ({"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 7 + ["x"]}}, "short_factor"),
    "a long factor of zero": ({"rope_scaling": {**LONGROPE, "long_factor": [0] * 8}}, "long_factor"),
    "no long factors": ({"rope_scaling": {**LONGROPE, "long_factor": None}}, "long_factor"),
    "a longrope from one token": (
        {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 1}},
        "cannot be computed",
    ),
    "dynamic rope without its factor": ({"rope_scaling": {"type": "dynamic"}}, "factor"),
    "a theta of one under yarn": ({**_rope(), "rope_theta": 1.0}, "rope_theta"),
    "a text for a layer type's rope": ({"rope_parameters": {"full_attention": "x"}}, "rope_parameters"),
    "a rope by layer type and beside it": (
        {"rope_parameters": {"full_attention": YARN_ROPE, "factor": 2.0}},
        "rope_parameters",
    ),
    "architectures that are no texts": ({"architectures": [1]}, "architectures"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_config_whose_numbers_cannot_be_is_refused_by_name(case: str) -> None:
    overrides, named = MALFORMED[case]
    with pytest.raises(ModelLoadError, match=named):
        parse_config(hf_config("llama", **overrides))


OPTIONAL_FIELDS = (
    *("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "rope_parameters", "head_dim"),
    *("original_max_position_embeddings", "dual_chunk_attention_config", "partial_rotary_factor"),
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("value", [0, -1, 2**62, "x", [], {}, True, 1.5, math.nan])
def test_no_wrong_value_in_any_field_raises_anything_but_a_load_error(family: str, value: Any) -> None:
    config = hf_config(family, rope_scaling=YARN_ROPE)
    for name in [*config, *OPTIONAL_FIELDS]:
        with contextlib.suppress(ModelLoadError):  # anything else fails the test
            parse_config(config | {name: value})
    for rope in (YARN_ROPE, LONGROPE):
        for name in rope:
            with contextlib.suppress(ModelLoadError):
                parse_config(config | {"rope_scaling": {**rope, name: value}})


def test_layer_types_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(MalformedFileError, match="layer_types"):
        parse_config(hf_config("qwen3", layer_types=["full_attention"]))


def test_linear_attention_layers_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        parse_config(hf_config("qwen3", layer_types=["linear_attention", "full_attention"]))
