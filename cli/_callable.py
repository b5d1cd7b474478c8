"""A flag that names a function of yours: module:function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, cast

import typer


def import_callable(name: str, hint: str) -> Callable[..., Any]:
    """module:function, of a module that can be imported here or lies in this folder. Raises typer.BadParameter."""
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"need module:function, such as my_scorers:longest, got {name!r:.100}: {error}"
        raise typer.BadParameter(message, param_hint=hint) from None
    finally:
        sys.path.remove(os.getcwd())
    if not callable(function):
        raise typer.BadParameter(f"need a function, got {name!r:.100}, which is none", param_hint=hint)
    return cast("Callable[..., Any]", function)
