"""Where the settings files are found, how they are read, and what the environment overrides."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llm_decoder.config.schema import (
    ChatSettings,
    ModelSettings,
    PathSettings,
    RuntimeSettings,
    Settings,
    WeightPaths,
    build,
    nearest_name,
    parse_text,
)
from llm_decoder.errors import ConfigError

__all__ = [
    "FILE_NAMES",
    "describing_folder",
    "find_config_dir",
    "load_settings",
    "packaged_config_dir",
    "read_table",
    "read_weight_paths",
]

FILE_NAMES = {
    "model": "model_config.yaml",
    "runtime": "runtime_config.yaml",
    "chat": "chat_template.json",
    "weights": "weight_paths.yaml",
    "paths": "paths.json",
}
_SECTIONS = {
    "model": ModelSettings,
    "runtime": RuntimeSettings,
    "chat": ChatSettings,
    "weights": WeightPaths,
    "paths": PathSettings,
}
ENVIRONMENT_PREFIX = "LLM_DECODER_"
# What else docs/environment.md names: no file has these, and some are a letter from one that a file has.
OTHER_VARIABLES = frozenset(
    [
        *("cache_dir", "cache_max_bytes", "chat_template", "cpu_isa", "build_dir", "config", "offline", "debug", "isa"),
        *("deterministic", "api_key"),
        *(
            "min_tokens",
            "stop_token_ids",
            "bad_words",
            "bad_token_ids",
            "allowed_token_ids",
            "logit_bias",
            "ignore_eos",
        ),
        *("include_stop_str_in_output", "skip_special_tokens", "n", "logprobs", "prompt_logprobs", "cache_salt"),
        "structured_outputs",
        *("width", "method", "length_penalty", "early_stopping", "groups", "diversity_penalty", "scorer", "alpha"),
        *("normalise", "query", "separator", "step_tokens", "branches"),
    ]
)
_WEIGHT_OF_EVERY_MODEL = Path("final_norm.bin")
MAX_FILE_BYTES = 8 * 2**20
MAX_DEPTH = 32

_Section = TypeVar("_Section", RuntimeSettings, PathSettings, ChatSettings)
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_settings(config_dir: str | Path | None = None, *, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in force, flags aside: environment over file over default.

    Files lie in `config_dir`, else in ./config when that holds ours, else in the package; one that is missing there has
    its defaults. `environment` stands in for os.environ. Raises ConfigError naming file or variable, key and reason.
    """
    folder = find_config_dir(config_dir)
    sections: dict[str, Any] = {}
    for name, file_name in FILE_NAMES.items():
        path = folder / file_name
        sections[name] = build(_SECTIONS[name], read_table(path) if path.exists() else {}, str(path))
    variables = os.environ if environment is None else environment
    _refuse_misspelt(variables)
    sections["runtime"] = _with_environment(sections["runtime"], variables, {})
    sections["paths"] = _with_environment(sections["paths"], variables, {"cache": "CACHE_DIR"})
    sections["chat"] = _with_environment(sections["chat"], variables, {"template": "CHAT_TEMPLATE"})
    return Settings(folder=folder, **sections)


def find_config_dir(config_dir: str | Path | None = None) -> Path:
    """The folder that settings are read from. Raises ConfigError when the one asked for is none.

    A ./config that lies inside a weights directory is that model's own, not the user's: it is read with that model.
    """
    if config_dir is not None:
        folder = Path(config_dir).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"[--config {config_dir}] need a folder with settings files, got no such folder")
        return folder
    local = Path("config")
    is_ours = (local / FILE_NAMES["runtime"]).is_file() and (local / FILE_NAMES["paths"]).is_file()
    if is_ours and not _WEIGHT_OF_EVERY_MODEL.exists():
        return local
    return packaged_config_dir()


def packaged_config_dir() -> Path:
    """The files that ship with the package: every default, with comments."""
    return Path(__file__).parent


def describing_folder(settings: Settings, model: str | Path | None) -> Path | None:
    """The settings folder, where it may describe the weights directory `model`.

    It does not when the user asked for another model than the directory that paths.json names: a flag goes over a file.
    """
    described = settings.paths.weights
    is_another = described is not None and (model is None or Path(model).resolve() != Path(described).resolve())
    return None if is_another or settings.folder == packaged_config_dir() else settings.folder


def read_table(path: Path) -> dict[str, Any]:
    """A settings file as a table of plain values: .json as JSON, the rest as YAML without tags, anchors or twin keys.

    Raises ConfigError naming the file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"[{path}] need at most {MAX_FILE_BYTES:,} bytes, got {path.stat().st_size:,}")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[{path}] cannot be read: {error}") from error
    try:
        value = _read_json(text) if path.suffix == ".json" else _read_yaml(text)
    except RecursionError:
        raise ConfigError(f"[{path}] need values nested a few levels deep, got hundreds") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"[{path}] {' '.join(str(error).split())[:400]}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"[{path}] need a table of keys, got {type(value).__name__}")
    return value


def read_weight_paths(path: Path) -> WeightPaths:
    """A weights directory's own weight_paths.yaml."""
    return build(WeightPaths, read_table(path), str(path))


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:60]!r} stands twice")
        table[key] = value
    return table


class _Loader(_BaseLoader):  # type: ignore[misc]
    """YAML's safe subset, with keys that stand twice refused and 1e-5 read as the number that it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if not isinstance(key, str):
                raise ValueError(f"need texts as keys, got {key!r:.60}")
            if key in keys[:index]:
                raise ValueError(f"the key {key[:60]!r} stands twice")
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    # Anchors make small files explode, and deep ones exhaust the stack of a recursive reader: both are seen in the flat
    # run of events first.
    depth = 0
    for event in yaml.parse(text, Loader=_BaseLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("anchors and aliases are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"need values nested at most {MAX_DEPTH} deep")
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _with_environment(section: _Section, variables: Mapping[str, str], names: Mapping[str, str]) -> _Section:
    """The section with fields replaced from LLM_DECODER_<FIELD>, or LLM_DECODER_<names[field]>."""
    changes = {}
    for item in dataclasses.fields(section):
        variable = ENVIRONMENT_PREFIX + names.get(item.name, item.name.upper())
        text = variables.get(variable)
        if text:
            changes[item.name] = parse_text(item.metadata, text, variable)
    return dataclasses.replace(section, **changes)


def _refuse_misspelt(variables: Mapping[str, str]) -> None:
    """A variable that is nearly a setting's name is a mistake; one that is far from all may belong to another
    program."""
    settings = {name for section in (RuntimeSettings, PathSettings, ChatSettings) for name in _field_names(section)}
    known = settings | OTHER_VARIABLES
    for variable in variables:
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        close = None if name in known else nearest_name(name, dict.fromkeys(known))
        if close and abs(len(close) - len(name)) <= 2 and close[:1] == name[:1]:
            raise ConfigError(f"[{variable}] unknown setting; did you mean {ENVIRONMENT_PREFIX}{close.upper()}?")


def _field_names(section: type[Any]) -> list[str]:
    return [item.name for item in dataclasses.fields(section)]
