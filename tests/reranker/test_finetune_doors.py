"""What finetuning refuses before it imports torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_decoder.errors import ConfigError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.reranker.finetune import FinetuneParams, check_model


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        check_model(tmp_path)


@pytest.mark.parametrize("config", ['{"model_type": "llama"}', "{}", "[]"])
def test_a_model_of_another_family_is_refused_with_those_that_learn(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnsupportedModelError, match=r"one of bert, .*, xlm-roberta, got model_type"):
        check_model(tmp_path)


def test_an_encoder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    check_model(tmp_path)


@pytest.mark.parametrize(
    "field", [{"loss": "best"}, {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"eval_share": 1.0}]
)
def test_a_setting_that_cannot_be_is_named(field: dict) -> None:
    with pytest.raises(ConfigError, match=rf"\[{next(iter(field))}\] need"):
        FinetuneParams(**field)


def test_each_setting_has_bounds() -> None:
    for name in ("checkpoint_steps", "max_length", "threads"):
        with pytest.raises(ConfigError, match=rf"\[{name}\] need 1 or more"):
            FinetuneParams(**{name: 0})  # type: ignore[arg-type]
