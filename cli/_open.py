"""The one place where the command line meets the engine: flags and settings files become an open LLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_decoder.cli import _options
from llm_decoder.cli._options import ModelOptions, SamplingOptions
from llm_decoder.cli._output import loading_bar

if TYPE_CHECKING:
    from llm_decoder.config.schema import Settings
    from llm_decoder.llm import LLM
    from llm_decoder.sampling import SamplingParams


def open_llm(options: ModelOptions) -> LLM:
    """The model that the flags, the environment and the settings files ask for, loaded."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
    arguments = engine_arguments(options)
    from llm_decoder import LLM

    with loading_bar() as progress:
        return LLM(**arguments, progress=progress)


def engine_arguments(options: ModelOptions) -> dict[str, Any]:
    """Keyword arguments of `LLM`: flags over the environment over the settings files. What nobody gave is left out."""
    settings = _settings(options)
    given = {
        "model": settings.paths.model or settings.paths.weights,
        "tokenizer": settings.paths.tokenizer,
        "cache_dir": settings.paths.cache,
        "chat_template": settings.chat.template,
        "system": settings.chat.system,
        "sampling_defaults": settings.runtime.sampling_defaults(),
    }
    found = {name: value for name, value in given.items() if value}
    arguments = found | settings.runtime.engine_arguments() | options.engine_arguments()
    _refuse_unused_architecture(settings, arguments.get("model"))
    return arguments


def _refuse_unused_architecture(settings: Settings, model: str | None) -> None:
    """An architecture counts only beside the weights that it describes; elsewhere it would be ignored."""
    if settings.model.architecture is None:
        return
    if model is not None and settings.folder.resolve() in (Path(model).resolve(), Path(model).resolve() / "config"):
        return
    from llm_decoder.errors import ConfigError

    raise ConfigError(
        f"[{settings.folder / 'model_config.yaml'}: architecture] need null, for it describes the weights directory "
        f"that it lies in, got one for {model or 'the embedded model'}; move it into that directory's config/"
    )


def is_embedded(options: ModelOptions) -> bool:
    """Whether the model is the one that came with the package."""
    return "model" not in engine_arguments(options)


def sampling_params(options: SamplingOptions, model: ModelOptions) -> SamplingParams:
    """The SamplingParams of flags over settings files over the command line's own defaults.

    Fields that the settings files give beside these are the engine's to fill in: see engine_arguments.
    """
    settings = _settings(model)
    given = {"max_tokens": settings.runtime.max_tokens, "stop": settings.chat.stop}
    return _options.sampling_params(options, {name: value for name, value in given.items() if value is not None})


def _settings(options: ModelOptions) -> Settings:
    from llm_decoder.config.files import load_settings

    return load_settings(options.config)
