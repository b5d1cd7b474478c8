"""Every key of the five settings files, with its type, range and default. None is "not given"."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llm_decoder.errors import ConfigError

__all__ = [
    "ChatSettings",
    "PathSettings",
    "RuntimeSettings",
    "Settings",
    "WeightFile",
    "WeightPaths",
    "build",
    "parse_text",
]

_Section = TypeVar("_Section")


def _choice(*names: str) -> Any:
    return field(default=None, metadata={"kind": "choice", "choices": names})


def _integer(low: int, high: int, *, step: int = 1) -> Any:
    return field(default=None, metadata={"kind": "integer", "low": low, "high": high, "step": step})


def _number(low: float, high: float) -> Any:
    return field(default=None, metadata={"kind": "number", "low": low, "high": high})


def _text() -> Any:
    return field(default=None, metadata={"kind": "text"})


@dataclass(frozen=True)
class RuntimeSettings:
    """runtime_config.yaml: how a model runs, how it is sampled when a request does not say, and how it is served."""

    device: str | None = _choice("auto", "cpu", "cuda", *(f"cuda:{index}" for index in range(16)))
    quantization: str | None = _choice("auto", "none", "int8", "int4", "fp8")
    dtype: str | None = _choice("auto", "float32", "bfloat16", "float16")
    kv_cache_dtype: str | None = _choice("auto", "float32", "bfloat16", "float16", "fp8", "int8")
    kv_cache_bytes: int | None = field(default=None, metadata={"kind": "size", "low": 1, "high": 2**50})
    kv_tier_bytes: int | None = field(default=None, metadata={"kind": "size", "low": 0, "high": 2**50})
    max_model_len: int | None = _integer(1, 2**26)
    page_size: int | None = _integer(16, 4096, step=16)
    threads: int | None = _integer(1, 1024)
    max_num_seqs: int | None = _integer(1, 4096)
    speculation: str | None = _choice("prompt-lookup", "none")
    speculative_tokens: int | None = _integer(1, 64)
    max_tokens_per_step: int | None = _integer(1, 65536)
    max_tokens: int | None = _integer(1, 2**26)
    temperature: float | None = _number(0.0, 100.0)
    top_k: int | None = _integer(0, 2**24)
    top_p: float | None = _number(1e-6, 1.0)
    min_p: float | None = _number(0.0, 1.0)
    repetition_penalty: float | None = _number(1e-3, 100.0)
    presence_penalty: float | None = _number(-2.0, 2.0)
    frequency_penalty: float | None = _number(-2.0, 2.0)
    generation_config: str | None = _choice("auto", "none")
    seed: int | None = _integer(0, 2**64 - 1)
    host: str | None = _text()
    port: int | None = _integer(0, 65535)
    api_key_file: str | None = _text()
    served_model_name: str | None = _text()
    cors_origins: tuple[str, ...] | None = field(default=None, metadata={"kind": "names"})
    allowed_hosts: tuple[str, ...] | None = field(default=None, metadata={"kind": "names"})
    max_requests: int | None = _integer(1, 2**20)
    max_prompts: int | None = _integer(1, 2**20)
    max_inputs: int | None = _integer(1, 2**20)
    max_n: int | None = _integer(1, 2**20)
    max_beam_width: int | None = _integer(1, 64)
    max_answer_tokens: int | None = _integer(1, 2**40)
    max_body_bytes: int | None = field(default=None, metadata={"kind": "size", "low": 1024, "high": 2**40})
    max_header_bytes: int | None = field(default=None, metadata={"kind": "size", "low": 1024, "high": 2**20})
    read_timeout_s: float | None = _number(0.01, 86400.0)
    ping_s: float | None = _number(0.01, 86400.0)
    drain_s: float | None = _number(0.0, 86400.0)
    resume_s: float | None = _number(0.0, 86400.0)
    log_format: str | None = _choice("text", "json")
    salt_by_key: bool | None = field(default=None, metadata={"kind": "switch"})
    log_prompts: bool | None = field(default=None, metadata={"kind": "switch"})
    debug_kv: bool | None = field(default=None, metadata={"kind": "switch"})

    def engine_arguments(self) -> dict[str, Any]:
        """What is given of LLM's keyword arguments."""
        return self._given(
            *("device", "quantization", "dtype", "kv_cache_dtype", "kv_cache_bytes", "kv_tier_bytes", "max_model_len"),
            *("page_size", "threads", "max_num_seqs", "speculation", "speculative_tokens", "max_tokens_per_step"),
            *("seed", "generation_config"),
        )

    def sampling_defaults(self) -> dict[str, Any]:
        """What is given of SamplingParams' fields."""
        return self._given(
            *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"),
            "frequency_penalty",
        )

    def server_arguments(self) -> dict[str, Any]:
        """What is given of ServerSettings' fields; the file of keys is not read."""
        return self._given(
            *("host", "port", "served_model_name", "cors_origins", "allowed_hosts", "max_requests", "max_prompts"),
            *(
                "max_inputs",
                "max_n",
                "max_beam_width",
                "max_answer_tokens",
                "max_body_bytes",
                "max_header_bytes",
                "read_timeout_s",
                "ping_s",
            ),
            *("drain_s", "resume_s", "salt_by_key", "log_format", "log_prompts", "debug_kv"),
        )

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class ModelSettings:
    """model_config.yaml: the architecture in the words of HF's config.json; null is the checkpoint's own."""

    architecture: Mapping[str, Any] | None = field(default=None, metadata={"kind": "table"})


@dataclass(frozen=True)
class ChatSettings:
    """chat_template.json: null is the model's own."""

    template: str | None = _text()
    system: str | None = _text()
    stop: tuple[str, ...] | None = field(default=None, metadata={"kind": "texts"})


@dataclass(frozen=True)
class PathSettings:
    """paths.json: what is loaded when no model is named, and where things lie."""

    model: str | None = _text()
    weights: str | None = _text()
    tokenizer: str | None = _text()
    reranker: str | None = _text()
    embedder: str | None = _text()
    cache: str | None = _text()


@dataclass(frozen=True)
class WeightFile:
    """One raw file: `path` (and `scale`, for int8 and int4) relative to the weights directory, `shape` [n] or
    [n_out, n_in]."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    scale: str | None = None


@dataclass(frozen=True)
class WeightPaths:
    """weight_paths.yaml: name -> WeightFile; None is the standard layout of weights/README.md in float32."""

    float: Mapping[str, WeightFile] | None = field(default=None, metadata={"kind": "files"})
    int8: Mapping[str, WeightFile] | None = field(default=None, metadata={"kind": "files"})
    int4: Mapping[str, WeightFile] | None = field(default=None, metadata={"kind": "files"})


@dataclass(frozen=True)
class Settings:
    """All five files, environment applied. `folder` is where they were found."""

    folder: Path
    model: ModelSettings
    runtime: RuntimeSettings
    chat: ChatSettings
    weights: WeightPaths
    paths: PathSettings


def build(section: type[_Section], values: Mapping[str, Any], place: str) -> _Section:
    """A section out of a parsed file. Raises ConfigError naming file, key and, for an unknown one, the nearest
    spelling."""
    known = {item.name: item for item in dataclasses.fields(section)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"[{place}] unknown key {str(key)[:60]!r}{_nearest(str(key), known)}")
    checked = {
        name: check(item.metadata, values[name], f"{place}: {name}")
        for name, item in known.items()
        if values.get(name) is not None
    }
    return section(**checked)


def parse_text(metadata: Mapping[str, Any], text: str, place: str) -> Any:
    """A value out of an environment variable's text; a list of texts is a JSON list, or one text."""
    kind = metadata["kind"]
    try:
        value = _READERS.get(kind, str)(text)
    except ValueError:
        value = text
    return check(metadata, value, place)


def _texts(text: str) -> list[str]:
    value = json.loads(text)  # raises ValueError for a plain text
    return [str(item) for item in value] if isinstance(value, list) else [text]


_SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCHES:
        raise ValueError(text)
    return _SWITCHES[text.lower()]


_READERS: Mapping[str, Callable[[str], Any]] = {"integer": int, "number": float, "texts": _texts, "switch": _switch}


def check(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    """`value` in the type and range that `metadata` asks for. Raises ConfigError."""
    kind = metadata["kind"]
    result = _CHECKS[kind](metadata, value, place)
    if result is None:
        raise ConfigError(f"[{place}] need {_wanted(metadata)}, got {value!r:.80}")
    return result


def nearest_name(name: str, known: Mapping[str, Any]) -> str | None:
    """The known name that `name` is a misspelling of, if any."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return close[0] if close else None


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = nearest_name(key, known)
    return f"; did you mean {close!r}?" if close else f"; known keys: {', '.join(known)}"


def _wanted(metadata: Mapping[str, Any]) -> str:
    kind = metadata["kind"]
    if kind == "choice":
        return "one of " + ", ".join(metadata["choices"])
    if kind in ("integer", "number"):
        step = metadata.get("step", 1)
        what = "a number" if kind == "number" else "an integer" if step == 1 else f"a multiple of {step}"
        return f"{what} from {metadata['low']:g} to {metadata['high']:g}"
    return {
        "size": "a number of bytes, or a text such as 512MiB",
        "text": "a text",
        "texts": "a list of texts",
        "names": "a list of names, or names with commas between",
        "switch": "true or false",
        "table": "a table",
        "files": "a table of name -> {path, dtype, shape}",
    }[str(kind)]


def _check_choice(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    return value if isinstance(value, str) and value in metadata["choices"] else None


def _check_integer(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    is_within = is_integer and metadata["low"] <= value <= metadata["high"]
    return value if is_within and value % metadata.get("step", 1) == 0 else None


def _check_number(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if metadata["low"] <= value <= metadata["high"] else None


def _check_size(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    if isinstance(value, str):
        number = value.strip().upper().removesuffix("B").removesuffix("I")
        power = "KMGT".find(number[-1:]) + 1 if number[-1:] else 0
        try:
            value = int(float(number[:-1] if power else number) * 1024**power)
        except (ValueError, OverflowError):
            return None
    return _check_integer(metadata, value, place)


def _check_text(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    return value if isinstance(value, str) and "\0" not in value else None


def _check_texts(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    value = [value] if isinstance(value, str) else value
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value) if is_texts else None


def _check_names(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    value = value.split(",") if isinstance(value, str) else value
    names = _check_texts(metadata, value, place)
    return None if names is None else tuple(name.strip() for name in names if name.strip())


def _check_switch(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    return value if isinstance(value, bool) else None


def _check_table(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    return dict(value) if isinstance(value, dict) and all(isinstance(key, str) for key in value) else None


def _check_files(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    table = _check_table(metadata, value, place)
    return None if table is None else {name: _weight_file(item, f"{place}: {name}") for name, item in table.items()}


def _weight_file(value: Any, place: str) -> WeightFile:
    known = {item.name: item for item in dataclasses.fields(WeightFile)}
    if not isinstance(value, dict):
        raise ConfigError(f"[{place}] need {{path, dtype, shape}}, got {value!r:.80}")
    for key in value:
        if key not in known:
            raise ConfigError(f"[{place}] unknown key {str(key)[:60]!r}{_nearest(str(key), known)}")
    path, dtype, shape, scale = (value.get(name) for name in ("path", "dtype", "shape", "scale"))
    if not isinstance(path, str) or not isinstance(dtype, str) or not isinstance(scale, str | None):
        raise ConfigError(f"[{place}] need path and dtype as texts, got {value!r:.80}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 2**40 for size in shape):
        raise ConfigError(f"[{place}: shape] need a list of sizes, got {shape!r:.80}")
    return WeightFile(path, dtype, tuple(shape), scale)


_CHECKS = {
    "choice": _check_choice,
    "integer": _check_integer,
    "number": _check_number,
    "size": _check_size,
    "text": _check_text,
    "texts": _check_texts,
    "names": _check_names,
    "switch": _check_switch,
    "table": _check_table,
    "files": _check_files,
}
