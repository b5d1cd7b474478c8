"""generation_config.json: the tokens that end an answer, and the sampling that the model's makers advise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_decoder.errors import InvalidRequestError, MalformedFileError
from llm_decoder.json_file import read_json_object
from llm_decoder.sampling import SamplingParams

__all__ = ["read_eos_token_ids", "read_generation_config", "sampling_defaults"]

_PLACE = "generation_config.json"
_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MAX_EOS = 1024


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The file's object, empty when there is none. Raises MalformedFileError when it is broken."""
    path = folder / "generation_config.json"
    return read_json_object(path) if path.exists() else {}


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float | int]:
    """The sampling fields it gives, by SamplingParams' names and within their limits.

    As in transformers, a file that does not say `do_sample: true` means greedy: temperature 0, whatever else it gives
    (which stays, for requests with a temperature of their own). No file, or an empty one, gives no defaults at all.
    Fields of other searches (num_beams, penalties by n-grams) and lengths are left alone.

    Raises MalformedFileError naming the field for a value out of range.
    """
    if not generation_config:
        return {}
    do_sample = generation_config.get("do_sample")
    if not isinstance(do_sample, bool | None):
        raise MalformedFileError(f"[{_PLACE}: do_sample] need true or false, got {do_sample!r:.80}")
    found = {
        name: _checked(name, generation_config[name]) for name in _FIELDS if generation_config.get(name) is not None
    }
    return found if do_sample else found | {"temperature": 0.0}


def _checked(name: str, value: Any) -> float | int:
    if name == "top_k" and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON writers that know no integers
    try:
        checked: float | int = getattr(SamplingParams(**{name: value}), name)
    except InvalidRequestError as error:
        raise MalformedFileError(f"[{_PLACE}: {name}] {str(error).removeprefix('[SamplingParams] ')}") from None
    return checked


def read_eos_token_ids(
    generation_config: Mapping[str, Any], hf_config: Mapping[str, Any], vocab_size: int, fallback: Iterable[int] = ()
) -> frozenset[int]:
    """End tokens: generation_config.json's over config.json's over `fallback` (the tokenizer's own).

    Ids from `vocab_size` on (of tokens that were added to the tokenizer alone) are left out: the model has no logit
    for them, so none of them can ever end an answer. A file that names no other says nothing, and the next is asked.
    -1 is an old way to say that no token ends an answer.

    Raises MalformedFileError for what is no id.
    """
    for place, config in ((_PLACE, generation_config), ("config.json", hf_config)):
        value = config.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if len(ids) > _MAX_EOS or not all(type(token) is int and token >= -1 for token in ids):
            raise MalformedFileError(f"[{place}: eos_token_id] need one id or a list of ids, got {str(value)[:80]}")
        known = frozenset(token for token in ids if token < vocab_size)
        if known or not ids:
            return known - {-1}
    return frozenset(token for token in fallback if token < vocab_size)
