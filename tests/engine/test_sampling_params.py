import math

import numpy as np
import pytest
from fakes import Desk

from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import (
    BUILT_IN_DEFAULTS,
    REAL_LIMITS,
    SamplingParams,
    derive_seed,
    resolve_params,
    sampling_field_names,
)

BAD_VALUES = [
    ("max_tokens", -1),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", "16"),
    ("max_tokens", 1 << 31),
    ("min_tokens", -1),
    ("min_tokens", None),
    ("min_tokens", 17),
    ("temperature", -0.1),
    ("temperature", 100.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "1"),
    ("temperature", True),
    ("temperature", 10**400),
    ("top_k", -2),
    ("top_k", 2.0),
    ("top_p", 0.0),
    ("top_p", 1e-50),
    ("top_p", 1.01),
    ("min_p", -0.01),
    ("min_p", 1.01),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 1e-50),
    ("repetition_penalty", 1e-42),
    ("repetition_penalty", math.nan),
    ("repetition_penalty", 101),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", [1, 2]),
    ("logit_bias", {"x": 1.0}),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {i: 0.0 for i in range(4097)}),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [-1]),
    ("allowed_token_ids", [1.5]),
    ("allowed_token_ids", "123"),
    ("bad_token_ids", [True]),
    ("bad_token_ids", {1: 2}),
    ("bad_words", [""]),
    ("bad_words", [1]),
    ("bad_words", ["x"] * 257),
    ("seed", 1 << 64),
    ("seed", -(1 << 63) - 1),
    ("seed", 1.0),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["a" * 1025]),
    ("stop", [f"{i}" for i in range(65)]),
    ("stop", 5),
    ("stop_token_ids", [2**31]),
    ("include_stop_str_in_output", 1),
    ("ignore_eos", None),
    ("n", 0),
    ("n", 129),
    ("n", 10**9),
    ("logprobs", 21),
    ("logprobs", -1),
    ("prompt_logprobs", 10**9),
    ("skip_special_tokens", "yes"),
    ("cache_salt", "x" * 257),
    ("cache_salt", b"x"),
    ("structured_outputs", {}),
    ("structured_outputs", "[0-9]+"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_out_of_its_limits_is_refused_with_its_name(name, value):
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert len(str(caught.value)) < 300


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(InvalidRequestError, match="'temprature'") as caught:
        SamplingParams.from_dict({"temprature": 1.0})
    assert caught.value.param == "temprature"


def test_every_field_has_a_limit_tested_here():
    assert {name for name, _ in BAD_VALUES} == sampling_field_names()


def test_fields_take_numpy_numbers_and_json_keys_and_come_out_plain():
    params = SamplingParams(
        max_tokens=np.int64(3), logit_bias={"7": -100}, stop="x", stop_token_ids=[2, 2, 1], top_k=-1
    )
    assert params.max_tokens == 3
    assert params.logit_bias == {7: -100.0}
    assert params.stop == ("x",)
    assert params.stop_token_ids == (2, 1)
    assert params.top_k == 0


def test_a_negative_seed_is_taken_modulo_two_to_the_64():
    assert SamplingParams(seed=-1).seed == (1 << 64) - 1


def test_a_request_comes_before_the_runtime_config_and_that_before_the_generation_config():
    params = SamplingParams(temperature=0.1)
    runtime = {"temperature": 0.2, "top_p": 0.3, "unrelated": object()}
    generation = {"temperature": 0.4, "top_p": 0.5, "top_k": 6, "min_p": None}
    resolved = resolve_params(params, runtime, generation)
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == (0.1, 0.3, 6)
    assert resolved.min_p == BUILT_IN_DEFAULTS["min_p"]


@pytest.mark.parametrize("top_p", [7.0, 1e-50])
def test_a_default_out_of_its_limits_is_refused(top_p):
    with pytest.raises(InvalidRequestError, match="top_p"):
        resolve_params(SamplingParams(), {"top_p": top_p})


@pytest.mark.parametrize("name", [name for name in REAL_LIMITS if name != "logit_bias"])
def test_the_core_takes_every_number_that_is_within_its_limits_here(name):
    low, high = REAL_LIMITS[name]
    for value in (low, np.nextafter(low, high), np.nextafter(high, low), high):
        desk = Desk()
        answer = desk.ask("x", max_tokens=3, seed=1, **({"temperature": 1.0} | {name: float(value)}))
        assert len(answer.outputs[0].token_ids) == 3 or answer.outputs[0].finish_reason == "stop"


def test_derived_seeds_differ_and_the_first_is_the_seed_itself():
    seeds = [derive_seed(5, index) for index in range(1000)] + [derive_seed(6, index) for index in range(1000)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 1 << 64 for seed in seeds)
