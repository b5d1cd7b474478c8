"""End tokens and sampling defaults that come with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models_factory import make_checkpoint, write_json

from llm_decoder.errors import MalformedFileError
from llm_decoder.generation_config import read_eos_token_ids, read_generation_config, sampling_defaults
from llm_decoder.loading import load_model


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


def test_do_sample_false_means_greedy() -> None:
    assert sampling_defaults({"do_sample": False, "temperature": 0.6})["temperature"] == 0.0


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
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 5], "temperature": 0.5})
    loaded = load_model(folder)
    assert loaded.eos_token_ids == {1, 5}
    assert loaded.generation_defaults == {"temperature": 0.5}


@pytest.mark.parametrize("value", [331, -2, "1", [1, 2, 400], [None], 1.5, True, list(range(2000)), {"a": 1}])
def test_an_end_token_that_is_no_token_is_refused(value: Any) -> None:
    with pytest.raises(MalformedFileError, match="eos_token_id"):
        read_eos_token_ids({"eos_token_id": value}, {}, 331)


@pytest.mark.parametrize(
    "config", [{"temperature": -1}, {"top_p": 2}, {"top_k": "x"}, {"repetition_penalty": 0}, {"do_sample": 1}]
)
def test_a_default_out_of_range_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(MalformedFileError, match=next(iter(config))):
        sampling_defaults(config)


def test_a_broken_file_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 1})[:-1])
    with pytest.raises(MalformedFileError, match=r"generation_config\.json"):
        load_model(folder)
