"""generation_config.json: the tokens that end an answer, and the sampling that the model's makers advise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_decoder.errors import MalformedFileError
from llm_decoder.json_file import read_json_object
from llm_decoder.models.fields import Fields

__all__ = ["read_eos_token_ids", "read_generation_config", "sampling_defaults"]

_MAX_EOS = 1024


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The file's object, empty when there is none. Raises MalformedFileError when it is broken."""
    path = folder / "generation_config.json"
    return read_json_object(path) if path.exists() else {}


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float | int]:
    """The sampling fields it gives, by SamplingParams' names. `do_sample` false means greedy: temperature 0.

    Raises MalformedFileError naming the field for a value out of range.
    """
    fields = Fields(generation_config, "generation_config.json")
    found: dict[str, float | int | None] = {
        "temperature": fields.number("temperature", 0.0, 100.0, default=None),
        "top_p": fields.number("top_p", 0.0, 1.0, default=None) or None,
        "top_k": fields.integer("top_k", 0, default=None),
        "min_p": fields.number("min_p", 0.0, 1.0, default=None),
        "repetition_penalty": fields.number("repetition_penalty", 1e-3, 100.0, default=None),
    }
    if not fields.flag("do_sample", True):
        found["temperature"] = 0.0
    return {name: value for name, value in found.items() if value is not None}


def read_eos_token_ids(
    generation_config: Mapping[str, Any], hf_config: Mapping[str, Any], vocab_size: int, fallback: Iterable[int] = ()
) -> frozenset[int]:
    """End tokens: generation_config.json's over config.json's over `fallback` (the tokenizer's own)."""
    for place, config in (("generation_config.json", generation_config), ("config.json", hf_config)):
        value = config.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if len(ids) > _MAX_EOS or not all(type(token) is int and -1 <= token < vocab_size for token in ids):
            raise MalformedFileError(
                f"[{place}: eos_token_id] need one id or a list of ids in 0..{vocab_size - 1}, got {str(value)[:80]}"
            )
        return frozenset(token for token in ids if token >= 0)  # -1 is an old way to say none
    return frozenset(token for token in fallback if token < vocab_size)
