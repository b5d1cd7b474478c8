"""What stands around the transformer in a folder of sentence-transformers: modules.json and the files that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_decoder.encoders.checkpoint import encoder_folder
from llm_decoder.encoders.head import Pooling
from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.json_file import MAX_CONFIG_BYTES, read_bounded, read_json_object

__all__ = ["SentenceModules", "read_modules"]

_POOLINGS: Mapping[str, Pooling] = {"cls": "first", "mean": "mean"}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceModules:
    """transformer: the folder of the encoder itself. max_length: tokens of a text, None = as many as it takes.
    is_lowered: texts are put in lower case first. prompt: what is put before every text."""

    transformer: Path
    pooling: Pooling = "mean"
    is_normalised: bool = False
    max_length: int | None = None
    is_lowered: bool = False
    prompt: str = ""


def read_modules(folder: str | Path) -> SentenceModules:
    """What the folder of a sentence encoder says. Raises ModelNotFoundError, UnsupportedModelError for a module that
    this build does not run, MalformedFileError."""
    path = encoder_folder(folder)
    if not (path / "modules.json").exists():
        return SentenceModules(path)
    modules = _modules(path / "modules.json")
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModelError(
            f"[{path / 'modules.json'}] this build runs Transformer, Pooling and perhaps Normalize, "
            f"got {', '.join(kinds)[:120] or 'nothing'}"
        )
    transformer = path / modules[0][1]
    max_length, is_lowered = _read_transformer(transformer)
    return SentenceModules(
        transformer=transformer,
        pooling=_read_pooling(path / modules[1][1] / "config.json"),
        is_normalised="Normalize" in kinds,
        max_length=max_length,
        is_lowered=is_lowered,
        prompt=_read_prompt(path / "config_sentence_transformers.json"),
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """(kind, folder inside the model's) of each module in turn."""
    try:
        modules = json.loads(read_bounded(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"[{path}] need valid JSON: {error!s:.100}") from None
    result = []
    for module in modules if isinstance(modules, list) else [None]:
        kind, inside = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(inside, str):
            raise MalformedFileError(f"[{path}] need a list of modules with type and path, got {module!r:.80}")
        if not all(part.isprintable() and part not in (".", "..") for part in inside.split("/")) or inside[:1] == "/":
            raise MalformedFileError(f"[{path}: path] need a folder inside the model's, got {inside!r:.80}")
        result.append((kind.rpartition(".")[2], inside))
    return result


def _read_pooling(path: Path) -> Pooling:
    config = read_json_object(path)
    mode = config.get("pooling_mode")
    modes = [name for key, name in _OLD_POOLINGS.items() if config.get(key) is True] if mode is None else mode
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) > 1 or (modes or ["mean"])[0] not in _POOLINGS:
        raise UnsupportedModelError(f"[{path}: pooling_mode] this build runs cls or mean, got {modes!r:.80}")
    if config.get("include_prompt", True) is not True:
        raise UnsupportedModelError(f"[{path}: include_prompt] this build pools the prompt too, got false")
    return _POOLINGS[(modes or ["mean"])[0]]


def _read_transformer(folder: Path) -> tuple[int | None, bool]:
    """(max_seq_length, do_lower_case)"""
    path = folder / "sentence_bert_config.json"
    config: dict[str, Any] = read_json_object(path) if path.exists() else {}
    max_length, is_lowered = config.get("max_seq_length"), config.get("do_lower_case") or False
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise MalformedFileError(f"[{path}: max_seq_length] need a positive integer, got {max_length!r:.40}")
    if not isinstance(is_lowered, bool):
        raise MalformedFileError(f"[{path}: do_lower_case] need true or false, got {is_lowered!r:.40}")
    return max_length, is_lowered


def _read_prompt(path: Path) -> str:
    """The default prompt; the others are for those who put them before their texts themselves."""
    config: dict[str, Any] = read_json_object(path) if path.exists() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):
        raise MalformedFileError(f"[{path}: default_prompt_name] need one of the prompts, got {name!r:.60}")
    return prompt
