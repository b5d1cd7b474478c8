"""The model that ships inside the package."""

from __future__ import annotations

from llm_decoder.embedded import embedded_model
from llm_decoder.loading import load_model


def test_the_embedded_model_loads_by_no_name_at_all() -> None:
    loaded = load_model()
    assert loaded.name == "storyteller"
    assert loaded.path == embedded_model()
    assert loaded.quantization == "int8"
    assert loaded.eos_token_ids
    assert loaded.config.vocab_size >= len(loaded.tokenizer)


def test_its_chat_template_marks_the_turns() -> None:
    tokenizer = load_model().tokenizer
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Tell me a story about a dog."}])
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert "Tell me a story about a dog." in text
    assert text.rstrip().endswith("<|assistant|>")
