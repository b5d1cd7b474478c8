"""What every verb has in common: groups of flags, and how an error or Ctrl-C ends it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 130  # 2, a wrong command line, is Typer's

_Debug = Annotated[
    bool, typer.Option("--debug", envvar="LLM_DECODER_DEBUG", show_envvar=False, help="Show where an error came from.")
]


class Command(TyperCommand):
    """A verb whose help has its own flags first, then each group under its title."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                parts.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        for title, records in parts.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def verb(function: Callable[..., int | None]) -> Callable[..., None]:
    """`function` as a typer command.

    A parameter whose type is a dataclass is spread into one flag a field. The number that `function` returns is the
    exit code; an error of ours is one line on standard error and exit code 1, or 2 when it is about a field that is a
    flag; Ctrl-C is 130, and a reader that went away (`| head`) is no error. With --debug the traceback is shown.
    """
    parameters, groups = _parameters(function)
    flags = {field.name for group in groups.values() for field in dataclasses.fields(group)}

    @functools.wraps(function)
    def command(*, debug: bool, **values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        code = run(lambda: _call(function, values, flags), debug=debug)
        if code != EXIT_OK:  # else a verb under this one may follow
            raise typer.Exit(code)

    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _call(function: Callable[..., int | None], values: dict[str, Any], flags: set[str]) -> int | None:
    """Raises typer.BadParameter, which names the flag, where the engine refuses a field of a request that is one."""
    from llm_decoder.errors import InvalidRequestError

    try:
        return function(**values)
    except InvalidRequestError as error:
        if error.param in flags:
            raise typer.BadParameter(str(error), param_hint=f"--{error.param.replace('_', '-')}") from error
        raise


def run(function: Callable[[], int | None], *, debug: bool = False) -> int:
    """Calls `function` and turns how it ended into an exit code. Usage errors (typer's) pass through."""
    from llm_decoder.cli._output import STDOUT, complain
    from llm_decoder.errors import LLMDecoderError

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        complain("warning", str(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return function() or EXIT_OK
    except BrokenPipeError:
        forget_stdout()
        return EXIT_OK
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (LLMDecoderError, OSError, UnicodeError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename == STDOUT:
            forget_stdout()  # what is left in its buffer would fail, and be complained of, once more
        if debug:
            raise
        complain("error", words(error))
        return EXIT_ERROR


def words(error: Exception) -> str:
    """What an error says; an operating system's with its place first, as ours have it."""
    if isinstance(error, OSError) and error.strerror:
        return f"[{error.filename}] {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def forget_stdout() -> None:
    """Points standard output at nothing, so that Python's last flush does not meet the same error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parameters(function: Callable[..., Any]) -> tuple[list[inspect.Parameter], dict[str, type]]:
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _flags_of(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    parameters.append(inspect.Parameter("debug", keyword_only, default=False, annotation=_Debug))
    return parameters, groups


@functools.cache
def _flags_of(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    flags = []
    for field in dataclasses.fields(group):
        annotation = hints[field.name]
        kind, option = get_args(annotation)
        if kind != list[str] | None:  # typer would cut a text at its spaces; _options reads these
            option.envvar = option.envvar or f"LLM_DECODER_{field.name.upper()}"
        option.rich_help_panel = option.rich_help_panel or group.title  # type: ignore[attr-defined]
        flags.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
        )
    return flags
