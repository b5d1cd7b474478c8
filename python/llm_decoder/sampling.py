"""What a request may ask of the sampler: names, limits, defaults. The sampling itself is in the core."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llm_decoder.errors import InvalidRequestError
from llm_decoder.structured import StructuredOutputs, as_structured_outputs

__all__ = [
    "MAX_LOGPROBS",
    "MAX_N",
    "SamplingParams",
    "checked_integer",
    "checked_params",
    "checked_real",
    "derive_seed",
    "refuse_field",
    "resolve_params",
    "sampling_field_names",
]

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 256
MAX_LOGIT_BIAS = 4096
MAX_TOKEN_IDS = 1 << 20
MAX_INT = (1 << 31) - 1

# The core computes in float32. Nothing within these limits rounds to a value that it refuses, nor makes an infinite
# logit of a finite one, as a top_p of 1e-50 (0 in float32) or a repetition_penalty of 1e-40 would.
REAL_LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "logit_bias": (-100.0, 100.0),
}

# The last link of the chain request > runtime config > generation_config.json > these.
BUILT_IN_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def refuse_field(name: str, need: str, got: object) -> InvalidRequestError:
    shown = repr(got)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return InvalidRequestError(f"[SamplingParams] {name} must be {need}, got {shown}", param=name)


def checked_integer(name: str, value: Any, low: int, high: int) -> int:
    need = f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise refuse_field(name, need, value)
    try:
        number = operator.index(value)
    except TypeError:
        raise refuse_field(name, need, value) from None
    if not low <= number <= high:
        raise refuse_field(name, need, value)
    return number


def checked_real(name: str, value: Any, low: float, high: float) -> float:
    need = f"a number from {low:g} to {high:g}"
    if isinstance(value, (bool, str, bytes)):
        raise refuse_field(name, need, value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise refuse_field(name, need, value) from None
    if not low <= number <= high:  # NaN is not either
        raise refuse_field(name, need, value)
    return number


def _real(name: str, value: Any) -> float:
    return checked_real(name, value, *REAL_LIMITS[name])


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refuse_field(name, "true or false", value)
    return value


def _items(name: str, value: Any, need: str, limit: int) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise refuse_field(name, need, value)
    items = list(value)
    if len(items) > limit:
        raise refuse_field(name, f"at most {limit} entries", f"{len(items)} entries")
    return items


def _strings(name: str, value: Any, limit: int) -> tuple[str, ...]:
    need = "a list of non-empty strings"
    items = [value] if isinstance(value, str) else _items(name, value, need, limit)
    for item in items:
        if not isinstance(item, str) or not item:
            raise refuse_field(name, need, value)
        if len(item) > MAX_STOP_CHARS:
            raise refuse_field(name, f"made of strings of at most {MAX_STOP_CHARS} characters", f"one of {len(item)}")
    return tuple(dict.fromkeys(items))


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    items = _items(name, value, "a list of token ids", MAX_TOKEN_IDS)
    return tuple(dict.fromkeys(checked_integer(name, item, 0, MAX_INT) for item in items))


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise refuse_field(name, "a mapping of token id to bias", value)
    if len(value) > MAX_LOGIT_BIAS:
        raise refuse_field(name, f"at most {MAX_LOGIT_BIAS} entries", f"{len(value)} entries")
    result: dict[int, float] = {}
    for key, bias in value.items():
        # JSON has no integer keys: {"50256": -100} is how every client writes this.
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 10 else key
        result[checked_integer(name, token, 0, MAX_INT)] = _real(name, bias)
    return result


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled and when it stops. Every field is checked; InvalidRequestError names the bad one.

    A field that is None was not given: the runtime config's value applies, then generation_config.json's, then the
    built-in one (temperature 1.0, everything else off).

    max_tokens: tokens to generate, 0 to score the prompt only, None or more than fit = to the end of the context.
    min_tokens: no end token and no stop string before so many tokens.
    temperature: 0 = greedy (the highest logit, the lowest id among equals). 0 to 100.
    top_k: sample among the k most likely tokens; 0 or -1 = off.
    top_p: ... among the likeliest tokens whose probabilities reach p (Holtzman et al. 2019). 1e-6 to 1; 1 = off.
    min_p: ... among tokens at least min_p times as likely as the likeliest (Nguyen et al. 2024). 0 = off.
    repetition_penalty: divides the positive, multiplies the negative logits of all tokens so far (Keskar et al. 2019).
        0.001 to 100; 1 = off.
    presence_penalty, frequency_penalty: subtracted from the logits of tokens in the answer, once or per use. -2 to 2.
    logit_bias: token id -> number added to its logit, -100 to 100.
    allowed_token_ids: if not None, only these can be generated. bad_token_ids: these never.
    bad_words: strings that are never generated as a run of the tokens that the tokenizer makes of them.
    seed: 64 bits; the same seed gives the same tokens in any batch. None = derived from the seed of the LLM.
    stop: strings that end the answer; they are cut off unless include_stop_str_in_output.
    stop_token_ids: tokens that end the answer, beside the model's own end tokens.
    ignore_eos: the model's end tokens do not end the answer.
    n: answers per prompt, 1 to 128; the prompt is computed once.
    logprobs, prompt_logprobs: log probabilities of the tokens of the answer, of the prompt, and of so many best
        alternatives (0 to 20, but no more than the model has tokens). They are of the raw logits, before penalties and
        temperature.
    skip_special_tokens: special tokens give no text.
    structured_outputs: the form that the answer must have (StructuredOutputs, or a mapping of its fields); it ends with
        "stop" where its form is complete.
    cache_salt: requests reuse each other's cached prefixes only when their salts are equal.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | list[int] | None = None
    bad_token_ids: tuple[int, ...] | list[int] | None = None
    bad_words: tuple[str, ...] | list[str] | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | Mapping[str, Any] | None = None
    cache_salt: str | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is None:
                if name in _NEVER_NONE:
                    raise refuse_field(name, "given", None)
                continue
            object.__setattr__(self, name, check(name, value))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise refuse_field("min_tokens", f"at most max_tokens = {self.max_tokens}", self.min_tokens)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise refuse_field("allowed_token_ids", "None or a list with at least one token id", [])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """The params of a mapping of field names, as read from JSON. Raises InvalidRequestError for an unknown name."""
        unknown = sorted(set(values) - sampling_field_names())
        if unknown:
            raise InvalidRequestError(
                f"[SamplingParams] unknown field {unknown[0]!r}; known: {', '.join(sorted(sampling_field_names()))}",
                param=str(unknown[0]),
            )
        return cls(**values)


def _salt(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise refuse_field(name, "a string of at most 256 characters", value)
    return value


def _count(low: int, high: int) -> Callable[[str, Any], int]:
    return lambda name, value: checked_integer(name, value, low, high)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_tokens": _count(0, MAX_INT),
    "min_tokens": _count(0, MAX_INT),
    "temperature": _real,
    "top_k": lambda name, value: max(0, checked_integer(name, value, -1, MAX_INT)),
    "top_p": _real,
    "min_p": _real,
    "repetition_penalty": _real,
    "presence_penalty": _real,
    "frequency_penalty": _real,
    "logit_bias": _bias,
    "allowed_token_ids": _token_ids,
    "bad_token_ids": _token_ids,
    "bad_words": lambda name, value: _strings(name, value, MAX_BAD_WORDS),
    "seed": lambda name, value: checked_integer(name, value, -(1 << 63), (1 << 64) - 1) % (1 << 64),
    "stop": lambda name, value: _strings(name, value, MAX_STOP_STRINGS),
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": _flag,
    "ignore_eos": _flag,
    "n": _count(1, MAX_N),
    "logprobs": _count(0, MAX_LOGPROBS),
    "prompt_logprobs": _count(0, MAX_LOGPROBS),
    "skip_special_tokens": _flag,
    "structured_outputs": lambda name, value: as_structured_outputs(value),
    "cache_salt": _salt,
}
_NEVER_NONE = frozenset({"min_tokens", "include_stop_str_in_output", "ignore_eos", "n", "skip_special_tokens"})


def sampling_field_names() -> frozenset[str]:
    """The names of all fields of SamplingParams."""
    return frozenset(field.name for field in fields(SamplingParams))


def checked_params(params: object) -> SamplingParams:
    """`params` itself. Raises InvalidRequestError when it is something else."""
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError(
            f"[params] must be SamplingParams, got {type(params).__name__}; SamplingParams.from_dict makes them of a "
            "mapping",
            param="params",
        )
    return params


def resolve_params(params: SamplingParams, *defaults: Mapping[str, Any]) -> SamplingParams:
    """The params with no sampling field open: each None takes the first of `defaults` that has it, else the built-in.

    Of a mapping only the fields in BUILT_IN_DEFAULTS count, so a whole generation_config.json may be given. Raises
    InvalidRequestError when a default is out of its field's limits.
    """
    filled: dict[str, Any] = {}
    for name, built_in in BUILT_IN_DEFAULTS.items():
        if getattr(params, name) is not None:
            continue
        given = (mapping[name] for mapping in defaults if mapping.get(name) is not None)
        filled[name] = next(given, built_in)
    return replace(params, **filled)


def derive_seed(seed: int, index: int) -> int:
    """A 64-bit seed for draw `index` of `seed`; index 0 gives `seed` itself. SplitMix64 (Steele et al. 2014)."""
    if index == 0:
        return seed
    mask = (1 << 64) - 1
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
