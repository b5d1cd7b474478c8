"""A flag that names a callable of yours: module:function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from llm_decoder.errors import ConfigError


def import_callable(name: str) -> Callable[..., Any]:
    """`module:function`, looked for in the current folder last. Raises ConfigError where there is none."""
    module, _, function = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"[{name}] need module:function that can be imported, got none: {error}") from error
    if not callable(found):
        raise ConfigError(f"[{name}] need a callable, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]
