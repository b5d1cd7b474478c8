"""The operators, literals and loops of a chat template, as calls that pay for what they make."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import Undefined, pass_context
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

__all__ = ["OPERATORS", "check_arithmetic", "compare", "joined", "written"]

MAX_NUMBER_BITS = 4096
_ESCAPED_CHARS = 6  # `&quot;`: what `+` makes of a character beside a text marked as safe


@pass_context  # which keeps Jinja from calling it while it compiles
def written(context: Any, value: Any) -> str:
    """What `{{ value }}` writes."""
    text = as_text(value)
    # Jinja takes the text itself; of one that is marked as safe it takes a copy.
    budget.get().spend(ELEMENT_CHARS + (len(text) if isinstance(text, Markup) else 0))
    return text


def joined(pieces: list[str]) -> str:
    """The text of a block whose output is kept."""
    budget.get().spend_text(sum(map(len, pieces)))
    return "".join(pieces)


def _concatenated(first: Any, *others: Any) -> str:
    return joined([as_text(value) for value in (first, *others)])


def check_arithmetic(sign: str, left: Any, right: Any) -> None:
    """Pays for `left sign right`. Raises jinja2.TemplateError for operands that are not for this operator."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        _check_numbers(sign, left, right)
    elif sign == "+" and isinstance(left, str) and isinstance(right, str):
        growth = _ESCAPED_CHARS if isinstance(left, Markup) != isinstance(right, Markup) else 1
        budget.get().spend_text(growth * (len(left) + len(right)))
    elif sign == "+" and isinstance(left, list | tuple) and type(left) is type(right):
        budget.get().spend_list(len(left) + len(right))
    elif sign == "*" and isinstance(right, int):
        _check_repeated(left, right)
    elif sign == "*" and isinstance(left, int):
        _check_repeated(right, left)
    elif not isinstance(left, Undefined) and not isinstance(right, Undefined):  # about which Jinja has its own words
        raise jinja2.TemplateRuntimeError(f"cannot compute {type(left).__name__} {sign} {type(right).__name__}")


def _check_repeated(value: Any, times: int) -> None:
    if isinstance(value, str):
        budget.get().spend_text(len(value) * max(times, 0))
    else:
        check_type(value, list | tuple | Undefined, "a text, a list or a number")
        budget.get().spend_list(len(value) * max(times, 0))


def _check_numbers(sign: str, left: float, right: float) -> None:
    if not isinstance(left, int) or not isinstance(right, int):
        return
    n_bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}
    if n_bits.get(sign, 0) > MAX_NUMBER_BITS:
        raise TemplateLimitError("a number grew too large")


_COMPARISONS: dict[str, Callable[..., Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}


def compare(left: Any, *others: Any) -> bool:
    """`left < middle <= right`; `others` are names of comparisons and operands in turn."""
    for name, right in zip(others[::2], others[1::2], strict=True):
        if name in ("in", "notin"):
            n_items(right)
        budget.get().work(_n_compared(left) + _n_compared(right))
        if not _COMPARISONS[name](left, right):
            return False
        left = right
    return True


def _n_compared(value: Any) -> int:
    if isinstance(value, Namespace):  # which is equal to itself alone
        return 0
    size = budget.get().size(value)
    return size.n_chars + ELEMENT_CHARS * size.n_elements


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    if isinstance(value, str):
        budget.get().spend(len(value))
    else:
        spend_items(value)
    return value[start:stop:step]


def _list(_: None, *items: Any) -> list[Any]:
    budget.get().spend_list(1 + len(items))
    return list(items)


def _tuple(_: None, *items: Any) -> tuple[Any, ...]:
    budget.get().spend_list(1 + len(items))
    return items


def _dict(_: None, *keys_and_values: Any) -> dict[Any, Any]:
    budget.get().spend_list(1 + len(keys_and_values))
    keys = keys_and_values[::2]
    for key in keys:
        budget.get().size(key)  # it is hashed
    return dict(zip(keys, keys_and_values[1::2], strict=True))


def _loop_over(value: Any) -> Any:
    budget.get().work(ELEMENT_CHARS * n_items(value))
    return value


def _take_turn(value: Any) -> Any:
    """At the beginning of each turn of a loop, and around the condition of a loop that leaves turns out."""
    budget.get().work(4 * ELEMENT_CHARS)
    return value


# What the sandbox puts in place of expressions; no template can spell these names.
OPERATORS: dict[str, Callable[..., Any]] = {
    "<concatenated>": _concatenated,
    "<compared>": compare,
    "<sliced>": _sliced,
    "<list>": _list,
    "<tuple>": _tuple,
    "<dict>": _dict,
    "<loop over>": _loop_over,
    "<turn>": _take_turn,
}
