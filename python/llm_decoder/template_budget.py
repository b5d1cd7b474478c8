"""What one rendering of a chat template may cost: seconds of CPU, and characters made."""

from __future__ import annotations

import time
from contextvars import ContextVar
from itertools import chain
from typing import Any, NamedTuple

import jinja2
from jinja2 import Undefined
from jinja2.utils import Namespace

__all__ = [
    "ELEMENT_CHARS",
    "MAX_OUTPUT_CHARS",
    "MAX_SECONDS",
    "Budget",
    "TemplateLimitError",
    "as_text",
    "budget",
    "check_type",
    "n_items",
    "spend_items",
]

MAX_SECONDS = 2.0  # of this thread's CPU
MAX_OUTPUT_CHARS = 1 << 23  # of the whole text, and of any text on the way to it
MAX_ELEMENTS = 1 << 18  # of a container, nested ones counted as often as they would be written
MAX_DEPTH = 100  # of containers in containers
MAX_STEP_CHARS = 1 << 25  # that one operation makes
MAX_MADE_CHARS = 1 << 26  # that all operations together make; 256 MB of the widest ones
ELEMENT_CHARS = 64  # what an element of a container counts as
_CLOCK_EVERY_CHARS = 1 << 16  # reading the clock costs as much as a few operations


class TemplateLimitError(jinja2.TemplateError):
    """A template asked for more time or memory than it may have."""


class Size(NamedTuple):
    """What a value is when it is written out. A container that shares its parts can be exponentially larger then than
    it is in memory, so this also bounds what comparing and hashing it cost."""

    n_chars: int
    n_elements: int = 0
    depth: int = 0


class Budget:
    """What is left of one rendering. Operations pay before they are done."""

    def __init__(self) -> None:
        self._end_s = time.thread_time() + MAX_SECONDS
        self._n_left = MAX_MADE_CHARS
        self._n_unclocked = 0
        self._sizes: dict[int, tuple[Any, Size]] = {}  # by id; the value is held, so that no other gets its id

    def work(self, n_chars: int) -> None:
        """For characters that are looked at and not kept."""
        self._n_unclocked += n_chars
        if self._n_unclocked >= _CLOCK_EVERY_CHARS:
            self._n_unclocked = 0
            if time.thread_time() > self._end_s:
                raise TemplateLimitError(f"the template ran for more than {MAX_SECONDS:g} seconds")

    def spend(self, n_chars: int, n_elements: int = 0) -> None:
        """For characters and elements of containers that are made."""
        n_chars += ELEMENT_CHARS * n_elements
        if n_chars > MAX_STEP_CHARS:
            raise TemplateLimitError(f"an operation asked for more than {MAX_STEP_CHARS:,} characters at once")
        self._n_left -= n_chars
        if self._n_left < 0:
            raise TemplateLimitError(f"the template made more than {MAX_MADE_CHARS:,} characters on its way")
        self.work(n_chars)

    def spend_text(self, n_chars: int) -> None:
        """For a text that is made and may be kept."""
        if n_chars > MAX_OUTPUT_CHARS:
            raise TemplateLimitError(f"a text grew past {MAX_OUTPUT_CHARS:,} characters")
        self.spend(n_chars)

    def spend_list(self, n_elements: int) -> None:
        """For a container that is made and may be kept."""
        if n_elements > MAX_ELEMENTS:
            raise TemplateLimitError(f"a list grew past {MAX_ELEMENTS:,} elements")
        self.spend(0, n_elements)

    def size(self, value: Any) -> Size:
        """Refuses what would be too large when written out, or nested too deeply."""
        if isinstance(value, str):
            return Size(len(value))
        if isinstance(value, int):
            return Size(8 + value.bit_length() // 3)
        if isinstance(value, Namespace):
            raise jinja2.TemplateRuntimeError("a namespace can be asked for its fields only")
        if not isinstance(value, list | tuple | dict):
            return Size(ELEMENT_CHARS)
        known = self._sizes.get(id(value))
        if known is None:
            known = self._sizes[id(value)] = (value, self._sum(value))
        return known[1]

    def _sum(self, container: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Size:
        parts = chain(container, container.values()) if isinstance(container, dict) else container
        n_elements = len(container) * (2 if isinstance(container, dict) else 1)
        self.spend(0, n_elements)
        n_chars = depth = 0
        for part in parts:
            size = self.size(part)
            n_chars += size.n_chars
            n_elements += size.n_elements
            depth = max(depth, size.depth)
        if n_chars > MAX_OUTPUT_CHARS:
            raise TemplateLimitError(f"the texts of a list grew past {MAX_OUTPUT_CHARS:,} characters")
        if n_elements > MAX_ELEMENTS:
            raise TemplateLimitError(f"a list grew past {MAX_ELEMENTS:,} elements")
        if depth >= MAX_DEPTH:
            raise TemplateLimitError(f"a list is nested more than {MAX_DEPTH} deep")
        return Size(n_chars, n_elements, depth + 1)


# The rendering that runs on this thread. What Jinja tries out while it compiles finds none, and is left for later.
budget: ContextVar[Budget] = ContextVar("budget")


def as_text(value: Any) -> str:
    """The text of a value, paid for."""
    if isinstance(value, str):
        return value
    size = budget.get().size(value)
    # A character that cannot be printed is written as ten.
    budget.get().spend_text(10 * size.n_chars + 8 * size.n_elements)
    return str(value)


def n_items(value: Any) -> int:
    """How many turns a loop over a value takes; never of a value that the loop would use up."""
    check_type(value, str | list | tuple | dict | range | Undefined, "a list, a mapping or a text")
    return len(value)


def spend_items(value: Any, n_of_each: int = 1) -> None:
    """For a container that is made with so many elements of each item of a value."""
    budget.get().spend_list(n_of_each * n_items(value))


def check_type(value: Any, kind: Any, words: str) -> None:
    """Raises jinja2.TemplateError when a value is not of a kind; `words` say which."""
    if not isinstance(value, kind):
        raise jinja2.TemplateRuntimeError(f"need {words}, got {type(value).__name__}")
