"""The model that ships inside the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_decoder import LLM
from llm_decoder.convert import convert
from llm_decoder.embedded import embedded_model
from llm_decoder.errors import ModelNotFoundError
from llm_decoder.loading import find_model, load_model


def test_the_embedded_model_loads_by_no_name_at_all() -> None:
    loaded = load_model()
    assert loaded.name == "storyteller"
    assert loaded.path == embedded_model()
    assert loaded.weights["layer_0/attn_o"].layout == "w8"
    assert loaded.eos_token_ids
    assert loaded.config.vocab_size >= len(loaded.tokenizer)


def test_it_loads_by_its_name_unless_there_is_such_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_model("storyteller").path == embedded_model()
    with pytest.raises(ModelNotFoundError, match="no such path"):
        find_model(Path("storyteller"))
    (tmp_path / "storyteller").mkdir()
    assert find_model("storyteller") == Path("storyteller")


def test_its_bfloat16_weights_give_the_bits_of_float32_and_bfloat16_pages_nearly() -> None:
    tokens = load_model().tokenizer.encode("Once upon a time there was a dog who liked to run in the park.")
    options = ({"dtype": "float32"}, {"dtype": "bfloat16", "kv_cache_dtype": "float32"}, {"dtype": "bfloat16"})
    logits = []
    for given in options:
        with LLM(**given) as llm:  # type: ignore[arg-type]
            logits.append(llm.logits(tokens))
    reference, same, near = logits
    np.testing.assert_array_equal(same, reference)
    assert np.abs(near - reference).max() < 0.02 * np.abs(reference).max()


def test_it_is_converted_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_model(convert("storyteller", "weights", float_weights=False)).config == load_model().config


def test_its_chat_template_marks_the_turns() -> None:
    tokenizer = load_model().tokenizer
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story about a dog."}])
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert "Tell me a story about a dog." in text
    assert text.rstrip().endswith("<|assistant|>")
