"""Settings: five files, one schema that knows every key, and the rule of who overrides whom.

settings = load_settings(config_dir=None)      # flag > LLM_DECODER_* > file > default; flags are the caller's
settings.runtime.engine_arguments()            # keyword arguments of LLM
settings.runtime.sampling_defaults()           # fields of SamplingParams
"""

from __future__ import annotations

from llm_decoder.config.files import find_config_dir, load_settings
from llm_decoder.config.schema import ChatSettings, PathSettings, RuntimeSettings, Settings, WeightFile, WeightPaths

__all__ = [
    "ChatSettings",
    "PathSettings",
    "RuntimeSettings",
    "Settings",
    "WeightFile",
    "WeightPaths",
    "find_config_dir",
    "load_settings",
]
