"""End tokens and sampling defaults that come with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models_factory import make_checkpoint, write_json

from llm_decoder.errors import ConfigError, MalformedFileError
from llm_decoder.generation_config import read_eos_token_ids, read_generation_config, sampling_defaults
from llm_decoder.llm import LLM
from llm_decoder.loading import load_model
from llm_decoder.sampling import SamplingParams, resolve_params


def test_sampling_fields_are_taken_by_their_names() -> None:
    given = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "do_sample": True,
        "transformers_version": "5",
        "bos_token_id": 1,
    }
    assert sampling_defaults(given) == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


@pytest.mark.parametrize("config", [{"do_sample": False}, {"do_sample": None}, {"eos_token_id": 1}, {"max_length": 20}])
def test_a_file_that_does_not_ask_for_sampling_means_greedy(config: dict[str, Any]) -> None:
    assert sampling_defaults(config) == {"temperature": 0.0}
    assert sampling_defaults(config | {"temperature": 0.6, "top_p": 0.9}) == {"temperature": 0.0, "top_p": 0.9}


def test_a_request_goes_over_the_settings_over_the_file() -> None:
    file = sampling_defaults({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20})
    params = resolve_params(SamplingParams(temperature=0.1), {"temperature": 0.3, "top_p": 0.5}, file)
    assert (params.temperature, params.top_p, params.top_k) == (0.1, 0.5, 20)


@pytest.mark.parametrize("value", [0, -1, -1.0])
def test_a_top_k_of_zero_or_minus_one_means_off(value: float) -> None:
    assert sampling_defaults({"do_sample": True, "top_k": value}) == {"top_k": 0}


def test_a_top_k_written_as_a_whole_float_is_read() -> None:
    assert sampling_defaults({"do_sample": True, "top_k": 50.0}) == {"top_k": 50}


def test_no_file_means_no_defaults(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    assert sampling_defaults({}) == {}


def test_the_list_of_end_tokens_goes_over_config_json_over_the_tokenizer() -> None:
    assert read_eos_token_ids({"eos_token_id": [3, 4]}, {"eos_token_id": 1}, 10, [7]) == {3, 4}
    assert read_eos_token_ids({}, {"eos_token_id": 1}, 10, [7]) == {1}
    assert read_eos_token_ids({}, {"eos_token_id": None}, 10, [7]) == {7}
    assert read_eos_token_ids({}, {"eos_token_id": -1}, 10, [7]) == frozenset()


def test_a_loaded_model_carries_them(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    config = {"eos_token_id": [1, 5], "do_sample": True, "temperature": 0.5}
    write_json(folder / "generation_config.json", config)
    loaded = load_model(folder)
    assert loaded.eos_token_ids == {1, 5}
    assert loaded.generation_defaults == {"temperature": 0.5}


def test_end_tokens_that_the_model_has_no_logit_for_are_left_out() -> None:
    assert read_eos_token_ids({"eos_token_id": [2, 10, 400]}, {}, 10) == {2}
    assert read_eos_token_ids({}, {"eos_token_id": 10}, 10) == frozenset()


def test_a_file_that_names_only_such_end_tokens_leaves_the_next_to_be_asked() -> None:
    assert read_eos_token_ids({"eos_token_id": 10}, {"eos_token_id": [11, 3]}, 10, [7]) == {3}
    assert read_eos_token_ids({"eos_token_id": 10}, {"eos_token_id": [11]}, 10, [7, 12]) == {7}


def test_minus_one_and_an_empty_list_say_that_no_token_ends_an_answer() -> None:
    for none in (-1, [-1], []):
        assert read_eos_token_ids({"eos_token_id": none}, {"eos_token_id": 3}, 10, [7]) == frozenset()


@pytest.mark.parametrize("value", [-2, "1", [1, 2, -400], [None], 1.5, True, list(range(2000)), {"a": 1}])
def test_an_end_token_that_is_no_token_is_refused(value: Any) -> None:
    with pytest.raises(MalformedFileError, match="eos_token_id"):
        read_eos_token_ids({"eos_token_id": value}, {}, 331)


@pytest.mark.parametrize(
    "config",
    [
        *({"temperature": -1}, {"temperature": "hot"}, {"top_k": "x"}, {"top_k": -2}, {"top_k": 1.5}, {"do_sample": 1}),
        *({"top_p": 2}, {"top_p": 0}, {"top_p": True}, {"min_p": 1.5}, {"repetition_penalty": 0}),
        # 0 in the core's float32, where it would end the first request
        *({"top_p": 1e-50}, {"repetition_penalty": 1e-50}),
    ],
)
def test_a_default_out_of_range_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(MalformedFileError, match=next(iter(config))):
        sampling_defaults(config)


def test_a_broken_file_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1})[:-1])
    with pytest.raises(MalformedFileError, match=r"generation_config\.json"):
        load_model(folder)


def test_an_llm_can_leave_the_file_s_sampling_aside(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    write_json(checkpoint / "generation_config.json", {"do_sample": True, "temperature": 0.25, "eos_token_id": 5})
    asked = {"quantization": "none", "cache_dir": tmp_path / "cache", "threads": 1}
    with LLM(checkpoint, **asked) as llm:
        assert llm.sampling_defaults["temperature"] == 0.25
    with LLM(checkpoint, **asked, generation_config="none", sampling_defaults={"top_p": 0.5}) as llm:
        assert (llm.sampling_defaults["temperature"], llm.sampling_defaults["top_p"]) == (1.0, 0.5)
    with pytest.raises(ConfigError, match="generation_config"):
        LLM(checkpoint, generation_config="maybe")
