"""The one place where the command line meets the engine: flags and settings files become an open LLM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm_decoder.cli import _options
from llm_decoder.cli._options import ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from llm_decoder.llm import LLM

    from llm_decoder.sampling import SamplingParams


def open_llm(options: ModelOptions) -> LLM:
    """The model that the flags, the environment and the settings files ask for, loaded."""
    prepare(options)
    from llm_decoder import LLM

    return LLM(**options.engine_arguments())


def sampling_params(options: SamplingOptions, model: ModelOptions) -> SamplingParams:
    """The SamplingParams of flags over settings files over the command line's own defaults."""
    return _options.sampling_params(options, {})


def prepare(options: ModelOptions) -> None:
    """Applies what must be known before a library is imported."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
