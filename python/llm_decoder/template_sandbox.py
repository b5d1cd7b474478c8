"""Running a chat template that a stranger wrote: it sees plain data, and its time and memory are bounded.

Jinja's immutable sandbox keeps it away from Python. Against loops and bombs: the CPU time of its own lines is counted
(a trace function that fires on lines of template code alone), ranges are short (the sandbox's rule), and every
operation that can make something large out of something small (`*`, `+`, `~`, `**`, `%`, padding, replace, join) is
looked at first.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["MAX_OUTPUT_CHARS", "MAX_SECONDS", "MAX_SOURCE_CHARS", "TemplateLimitError", "compile_template", "render"]

MAX_SOURCE_CHARS = 1 << 20
MAX_OUTPUT_CHARS = 1 << 23
MAX_SECONDS = 2.0  # of this thread's CPU
MAX_ELEMENTS = 1 << 18  # of a container, nested ones counted
MAX_WIDTH = 10_000  # of padding, indentation and the like
MAX_POWER_BITS = 4096

_FILE_NAME = "<template>"  # what Jinja compiles a template from a string under
_WIDE_FORMAT = re.compile(r"\d{4,}|\*")


class TemplateLimitError(jinja2.TemplateError):
    """A template asked for more time or memory than it may have."""


def compile_template(source: str) -> jinja2.Template:
    """The template, compiled. Raises jinja2.TemplateError for a syntax error, TemplateLimitError when it is too
    long."""
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateLimitError(f"need a template of at most {MAX_SOURCE_CHARS:,} characters, got {len(source):,}")
    try:
        return _environment().from_string(source)
    except RecursionError:
        raise TemplateLimitError("the template is nested too deeply") from None


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text. Raises jinja2.TemplateError or whatever the template's own operations raise."""
    pieces: list[str] = []
    n_chars = 0
    with _Deadline(MAX_SECONDS):
        for piece in template.generate(**variables):
            n_chars += len(piece)
            if n_chars > MAX_OUTPUT_CHARS:
                raise TemplateLimitError(f"the template wrote more than {MAX_OUTPUT_CHARS:,} characters")
            pieces.append(piece)
    return "".join(pieces)


class _Deadline:
    """Ends template code that ran for too long. Puts the thread's own trace function back afterwards."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.thread_time() + seconds

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._on_call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename == _FILE_NAME else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > self._end_s:
            raise TemplateLimitError(f"the template ran for more than {MAX_SECONDS:g} seconds")
        return self._on_line


class _ConcatAsAdd(NodeTransformer):
    """`a ~ b` becomes `a|string + b|string`, which the environment looks at like every other sum."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        parts = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        total: nodes.Expr = parts[0]
        for part in parts[1:]:
            total = nodes.Add(total, part, lineno=node.lineno)
        return total


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _ConcatAsAdd().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # the sandbox wraps str.format
        if isinstance(owner, str | bytes | list | tuple):
            _check_method(owner, getattr(__obj, "__name__", ""), args)
        for value in (*args, *kwargs.values()):
            _check_size(value)
        return super().call(__context, __obj, *args, **kwargs)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=_checked
    )
    for name, function in environment.filters.items():
        environment.filters[name] = _guarded(name, function)
    environment.filters["tojson"] = _guarded("tojson", _tojson)
    environment.globals.pop("lipsum")
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """`{% generation %}`, with which some templates mark the assistant's part, is read and has no effect."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML characters, which the models have not seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or _WIDE_FORMAT.search(pattern):
        raise TemplateLimitError("strftime_now: need a short pattern without widths")
    return datetime.datetime.now().strftime(pattern)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # carries over what Jinja notes on functions that want its context
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and not isinstance(value, bool) and name not in _NUMBER_FILTERS:
                _check_width(value)
            _check_size(value)
        if name == "replace" and len(args) >= 3:
            _check_replace(*(str(value) for value in args[-3:]))
        if name in ("format", "xmlattr", "urlize"):
            raise TemplateLimitError(f"the filter {name!r} is not available to chat templates")
        return _checked(function(*args, **kwargs))

    return checked


_NUMBER_FILTERS = frozenset(["abs", "int", "float", "round", "string", "tojson", "default", "d", "filesizeformat"])


def _check_method(owner: Any, name: str, args: tuple[Any, ...]) -> None:
    if name in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        for value in args:
            if isinstance(value, int):
                _check_width(value)
    elif name == "replace" and len(args) >= 2 and all(isinstance(value, type(owner)) for value in args[:2]):
        _check_replace(owner, args[0], args[1])
    elif name in ("format", "format_map") and _WIDE_FORMAT.search(str(owner)):
        raise TemplateLimitError("format: need widths under 1000")
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _check_chars(len(owner) * len(args[0]) + sum(len(item) for item in args[0] if isinstance(item, str)))
    elif name == "translate":
        raise TemplateLimitError("translate is not available to chat templates")


def _check_replace(text: Any, old: Any, new: Any) -> None:
    n_found = text.count(old) if len(old) else len(text) + 1
    _check_chars(len(text) + n_found * len(new))


def _check_add(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes) and isinstance(right, str | bytes):
        _check_chars(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _check_elements(len(left) + len(right))


def _check_multiply(left: Any, right: Any) -> None:
    for sized, times in ((left, right), (right, left)):
        if isinstance(sized, str | bytes | list | tuple) and isinstance(times, int):
            (_check_chars if isinstance(sized, str | bytes) else _check_elements)(len(sized) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_POWER_BITS:
        raise TemplateLimitError("a product grew too large")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MAX_POWER_BITS:
        raise TemplateLimitError("a power grew too large")


def _check_percent(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes) and _WIDE_FORMAT.search(str(left)):
        raise TemplateLimitError("%: need widths under 1000")


_CHECKS: dict[str, Callable[[Any, Any], None]] = {
    "+": _check_add,
    "*": _check_multiply,
    "**": _check_power,
    "%": _check_percent,
}


def _check_width(value: int) -> None:
    if value > MAX_WIDTH:
        raise TemplateLimitError(f"need a width or count of at most {MAX_WIDTH:,}, got more")


def _check_chars(n_chars: int) -> None:
    if n_chars > MAX_OUTPUT_CHARS:
        raise TemplateLimitError(f"a text grew past {MAX_OUTPUT_CHARS:,} characters")


def _check_elements(n_elements: int) -> None:
    if n_elements > MAX_ELEMENTS:
        raise TemplateLimitError(f"a list grew past {MAX_ELEMENTS:,} elements")


def _checked(value: Any) -> Any:
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """A container that shares its parts can be exponentially larger when it is written out than it is in memory."""
    if isinstance(value, str | bytes):
        _check_chars(len(value))
    if not isinstance(value, list | tuple | dict):
        return
    waiting: list[Any] = [value]
    n_elements = n_chars = 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            n_chars += len(item)
            _check_chars(n_chars)
        elif isinstance(item, list | tuple | dict):
            n_elements += len(item)
            _check_elements(n_elements)
            waiting.extend([*item, *item.values()] if isinstance(item, dict) else item)
