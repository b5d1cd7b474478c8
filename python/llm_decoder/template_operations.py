"""What a chat template may call: the filters, tests, functions and methods it has, and what each one costs.

Everything here is on a list: what is not on it does not run. A call pays the rendering's budget before it is done, for
all that it will make; where the work is not bounded by what is paid for, arguments must be short.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from functools import wraps
from types import BuiltinMethodType
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import Undefined, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import safe_range
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace
from markupsafe import Markup

from llm_decoder.template_budget import (
    ELEMENT_CHARS,
    TemplateLimitError,
    as_text,
    budget,
    check_type,
    n_items,
    spend_items,
)
from llm_decoder.template_operators import compare

__all__ = ["FILTERS", "FUNCTIONS", "METHODS", "TESTS", "call", "is_allowed_attribute"]

MAX_SHORT = 1000  # characters of what is looked up by brute force: numbers, sets of characters, names
MAX_INDENT = 64

Operation = Callable[..., Any]


def _check_short(value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_SHORT:
        raise TemplateLimitError(f"need an argument of at most {MAX_SHORT:,} characters, got {len(value):,}")


# -- filters in place of Jinja's


@pass_environment
def _join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    spend_items(value)
    if attribute is not None:
        _check_short(attribute)
        value = map(make_attrgetter(environment, attribute), value)
    texts, separator = [as_text(item) for item in value], as_text(d)
    budget.get().spend_text(sum(map(len, texts)) + len(separator) * len(texts))
    return str(separator).join(texts)


def _safe(value: Any) -> Markup:
    text = as_text(value)
    budget.get().spend_text(len(text))
    return Markup(text)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own escapes HTML characters, which the models have not seen in training.
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= MAX_INDENT):
        raise TemplateLimitError(f"tojson: need an indent from 0 to {MAX_INDENT}, got another")
    between, after_key = separators or (", ", ": ")
    _check_short(between)
    _check_short(after_key)
    size = budget.get().size(value)
    n_around = 4 + len(between) + len(after_key) + (indent or 0) * (size.depth + 1)  # each element
    # A character outside of Unicode's first plane is escaped as twelve.
    budget.get().spend((12 if ensure_ascii else 6) * size.n_chars)
    budget.get().spend(n_around * size.n_elements)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# -- prices: each takes the arguments of what is called


def _pay_nothing(*args: Any, **kwargs: Any) -> None:
    """For what gives a number, a truth value or a value that is there already."""


def _pay_text(growth: int) -> Operation:
    """A text in which each character has become at most so many."""

    def pay(value: Any) -> None:
        budget.get().spend_text(growth * len(as_text(value)))

    return pay


def _pay_look(value: Any, *args: Any) -> None:
    """A look through the whole text; arguments are searched for."""
    budget.get().work(len(value))
    for argument in args:
        budget.get().size(argument)


def _pay_strip(value: Any, chars: Any = None) -> None:
    _check_short(chars)  # each character is looked up in it
    budget.get().spend_text(len(as_text(value)))


def _pay_title(value: Any) -> None:
    n_chars = len(as_text(value))
    budget.get().spend(n_chars, n_chars // 2 + 1)  # a list of words


def _pay_replace(value: Any, old: Any, new: Any, count: Any = None) -> None:
    text, old, new = as_text(value), as_text(old), as_text(new)
    n_found = text.count(old)
    if isinstance(count, int) and count >= 0:
        n_found = min(n_found, count)
    budget.get().spend_text(len(text) + n_found * len(new))


def _pay_indent(value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    check_type(value, str, "a text")
    if (len(width) if isinstance(width, str) else abs(width)) > MAX_INDENT:
        raise TemplateLimitError(f"indent: need a width of at most {MAX_INDENT}, got more")
    n_lines = _n_lines(value)
    budget.get().spend_text(len(value) + n_lines * MAX_INDENT)
    budget.get().spend(0, n_lines)


def _pay_lines(value: Any, keepends: Any = False) -> None:
    budget.get().spend(len(value))
    budget.get().spend_list(_n_lines(value))


def _n_lines(text: str) -> int:
    """At most so many lines, by all that str.splitlines ends a line at."""
    return 1 + sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))


def _pay_split(value: Any, sep: Any = None, maxsplit: Any = -1) -> None:
    n_parts = len(value) // 2 + 1 if sep is None else value.count(sep) + 1
    if 0 <= maxsplit < n_parts:
        n_parts = maxsplit + 1
    budget.get().spend(len(value))
    budget.get().spend_list(n_parts)


def _pay_join(value: Any, items: Any) -> None:
    spend_items(items)
    budget.get().spend_text(sum(len(item) + len(value) for item in items if isinstance(item, str)))


# Fields of str.format that put an argument in as it is: no attributes, no widths.
_PLAIN_FORMAT = re.compile(r"(?:[^{}]|\{\{|\}\}|\{\w*\})*")


def _pay_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _check_short(value)
    if not _PLAIN_FORMAT.fullmatch(value):
        raise TemplateLimitError("format: need plain fields such as {} and {name}, got others")
    longest = max((len(as_text(argument)) for argument in (*args, *kwargs.values())), default=0)
    budget.get().spend_text(len(value) + value.count("{") * longest)


def _pay_items(n_of_each: int) -> Operation:
    """A list with so many entries for each item."""

    def pay(value: Any, *args: Any, **kwargs: Any) -> None:
        spend_items(value, n_of_each)

    return pay


def _pay_chosen(value: Any, *args: Any, **kwargs: Any) -> None:
    """map, select and their like, which take None for an empty list; filters and tests that they call pay for
    themselves."""
    if value is not None:
        spend_items(value)
    for argument in args[:1]:
        _check_short(argument)  # the name of an attribute or an operation
    _check_short(kwargs.get("attribute"))


def _pay_compared(value: Any, *args: Any, **kwargs: Any) -> None:
    """Items are compared, by default in lower case: a copy. They may be compared by several attributes, with commas."""
    n_keys = 2
    for argument in (*args, *kwargs.values()):
        _check_short(argument)
        n_keys += argument.count(",") if isinstance(argument, str) else 0
    spend_items(value, n_keys)
    budget.get().spend(3 * budget.get().size(value).n_chars)


def _pay_dictsort(value: Any, *args: Any, **kwargs: Any) -> None:
    check_type(value, dict, "a mapping")
    _pay_compared(value)


def _pay_reverse(value: Any) -> None:
    if isinstance(value, str):
        budget.get().spend_text(len(value))
    else:
        spend_items(value)


def _pay_copy(value: Any, part: Any) -> None:
    budget.get().spend_text(len(value))


def _pay_dict_items(value: Any) -> None:
    check_type(value, dict | Undefined, "a mapping")
    budget.get().spend_list(2 * len(value))


def _pay_get(value: Any, key: Any, default: Any = None) -> None:
    budget.get().size(key)  # it is hashed


def _pay_find(value: Any, item: Any, *bounds: Any) -> None:
    """A list is compared with an item, which the error for a missing one writes out."""
    _pay_compared(value)
    as_text(item)


def _pay_number(value: Any, *args: Any, **kwargs: Any) -> None:
    _check_short(value)  # numbers are read in time that grows with the square of their digits
    for argument in (*args, *kwargs.values()):
        _check_short(argument)


def _pay_round(value: Any, precision: Any = 0, method: Any = "common") -> None:
    check_type(value, int | float, "a number")
    if abs(precision) > MAX_INDENT:
        raise TemplateLimitError(f"round: need a precision of at most {MAX_INDENT}, got more")


def _pay_sum(value: Any, attribute: Any = None, start: Any = 0) -> None:
    spend_items(value)
    _check_short(attribute)
    check_type(start, int | float, "a number to start from")  # lists would be added one by one, each time to a new one


def _pay_each(value: Any) -> None:
    budget.get().work(ELEMENT_CHARS * n_items(value))


# -- filters and tests


def _pay_for(name: str, pay: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        pay(*args, **kwargs)
    except TypeError:
        raise jinja2.TemplateRuntimeError(f"{name!r} does not take these arguments") from None


def _paid(name: str, function: Operation, pay: Operation) -> Operation:
    """A filter or a test of Jinja's, paid for. What would be computed item by item later is computed now."""
    n_hidden = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context, which Jinja puts first

    @wraps(function)  # carries over what Jinja notes on functions that want its context
    def checked(*args: Any, **kwargs: Any) -> Any:
        _pay_for(name, pay, args[n_hidden:], kwargs)
        result = function(*args, **kwargs)
        return list(result) if isinstance(result, Iterator) else result

    return checked


def _refusal(kind: str, name: str) -> Operation:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise jinja2.TemplateRuntimeError(f"the {kind} {name!r} is not available to chat templates")

    return refuse


_FILTER_PRICES: dict[str, Operation] = {
    "abs": _pay_number,
    "capitalize": _pay_text(3),
    "count": _pay_nothing,
    "d": _pay_nothing,
    "default": _pay_nothing,
    "dictsort": _pay_dictsort,
    "first": _pay_each,
    "float": _pay_number,
    "indent": _pay_indent,
    "int": _pay_number,
    "items": _pay_dict_items,
    "last": _pay_each,
    "length": _pay_nothing,
    "list": _pay_items(1),
    "lower": _pay_text(3),
    "map": _pay_chosen,
    "max": _pay_compared,
    "min": _pay_compared,
    "reject": _pay_chosen,
    "rejectattr": _pay_chosen,
    "replace": _pay_replace,
    "reverse": _pay_reverse,
    "round": _pay_round,
    "select": _pay_chosen,
    "selectattr": _pay_chosen,
    "sort": _pay_compared,
    "sum": _pay_sum,
    "title": _pay_title,
    "trim": _pay_strip,
    "unique": _pay_compared,
    "upper": _pay_text(3),
}
FILTERS: dict[str, Operation] = (
    {name: _refusal("filter", name) for name in JINJA_FILTERS}
    | {name: _paid(name, JINJA_FILTERS[name], pay) for name, pay in _FILTER_PRICES.items()}
    | {"join": _join, "safe": _safe, "string": as_text, "tojson": _tojson}
)


def _test_of(name: str) -> Operation:
    return lambda left, right: compare(left, name, right)


def _pay_remainder(value: Any, *divisor: Any) -> None:
    for number in (value, *divisor):  # % formats texts
        check_type(number, int | float, "a number")


_TEST_PRICES: dict[str, Operation] = {
    **dict.fromkeys(["boolean", "callable", "defined", "false", "float", "integer", "iterable"], _pay_nothing),
    **dict.fromkeys(["mapping", "none", "number", "sameas", "sequence", "string", "true", "undefined"], _pay_nothing),
    **dict.fromkeys(["divisibleby", "even", "odd"], _pay_remainder),
    **dict.fromkeys(["filter", "lower", "test", "upper"], as_text),
}
_TEST_COMPARISONS = {
    **dict.fromkeys(["==", "eq", "equalto"], "eq"),
    **dict.fromkeys(["!=", "ne"], "ne"),
    **dict.fromkeys(["<", "lt", "lessthan"], "lt"),
    **dict.fromkeys(["<=", "le"], "lteq"),
    **dict.fromkeys([">", "gt", "greaterthan"], "gt"),
    **dict.fromkeys([">=", "ge"], "gteq"),
    "in": "in",
}
TESTS: dict[str, Operation] = (
    {name: _refusal("test", name) for name in JINJA_TESTS}
    | {name: _paid(name, cast(Operation, JINJA_TESTS[name]), pay) for name, pay in _TEST_PRICES.items()}
    | {name: _test_of(comparison) for name, comparison in _TEST_COMPARISONS.items()}
)


# -- functions and methods


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(as_text(message)[:1000])


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"%[^%a-zA-Z]*\d", pattern):
        raise TemplateLimitError("strftime_now: need a short pattern without widths")
    return datetime.datetime.now().strftime(pattern)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    for value in args:
        budget.get().size(value)  # keys are hashed
        spend_items(value, 2)
    budget.get().spend_list(2 * len(kwargs))
    return dict(*args, **kwargs)


def _new_namespace(*args: Any, **kwargs: Any) -> Namespace:
    for value in args:
        check_type(value, dict, "a mapping")
        budget.get().spend_list(2 * len(value))
    budget.get().spend_list(8 + 2 * len(kwargs))
    return Namespace(*args, **kwargs)


FUNCTIONS: dict[str, Operation] = {
    "dict": _new_dict,
    "namespace": _new_namespace,
    "raise_exception": _raise_exception,
    "range": safe_range,
    "strftime_now": _strftime_now,
}

_LOOKS = ["isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper"]
_SEARCHES = ["count", "endswith", "find", "index", "rfind", "rindex", "startswith"]
METHODS: dict[type, dict[str, Operation]] = {
    str: {
        **dict.fromkeys([*_LOOKS, *_SEARCHES], _pay_look),
        **dict.fromkeys(["capitalize", "casefold", "lower", "swapcase", "title", "upper"], _pay_text(3)),
        **dict.fromkeys(["lstrip", "rstrip", "strip"], _pay_strip),
        **dict.fromkeys(["rsplit", "split"], _pay_split),
        **dict.fromkeys(["partition", "removeprefix", "removesuffix", "rpartition"], _pay_copy),
        "format": _pay_format,
        "join": _pay_join,
        "replace": _pay_replace,
        "splitlines": _pay_lines,
    },
    list: dict.fromkeys(["count", "index"], _pay_find),
    tuple: dict.fromkeys(["count", "index"], _pay_find),
    dict: {"get": _pay_get, **dict.fromkeys(["items", "keys", "values"], _pay_dict_items)},
}
_LOOP_FIELDS = frozenset(
    [
        *("cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem"),
        *("previtem", "revindex", "revindex0"),
    ]
)


def is_allowed_attribute(owner: Any, name: str) -> bool:
    """Whether a template may ask a value for this attribute."""
    if isinstance(owner, Namespace):
        return not name.startswith("_")
    if isinstance(owner, LoopContext):
        return name in _LOOP_FIELDS
    return name in METHODS.get(type(owner), {})


def call(run: Operation, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of calling what a template calls; `run` does it for Jinja's own functions."""
    budget.get().work(16 * ELEMENT_CHARS)
    budget.get().spend(0, len(args) + len(kwargs))
    if isinstance(function, LoopContext):  # a recursive loop
        _pay_each(*args)
    if isinstance(function, BuiltinMethodType):
        owner = function.__self__
        pay = METHODS.get(type(owner), {}).get(function.__name__)
        if pay is not None:
            _pay_for(function.__name__, pay, (owner, *args), kwargs)
            result = function(*args, **kwargs)
            # A view of a dict becomes a list, so that there is one kind of value to look at.
            return list(result) if isinstance(owner, dict) and function.__name__ != "get" else result
    is_ours = any(function is known for known in FUNCTIONS.values())
    is_of_loop = getattr(function, "__func__", None) is LoopContext.cycle
    if is_ours or is_of_loop or isinstance(function, Macro | LoopContext | Undefined):
        return run(function, *args, **kwargs)
    raise jinja2.TemplateRuntimeError(f"cannot call a value of type {type(function).__name__}")
