"""Reading the fields of a config.json: each with its type and range, none left unread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, overload

from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.models.inert import FIXED_FIELDS, INERT_FIELDS, INERT_PREFIXES

__all__ = ["Fields"]

MAX_INTEGER = 2**31 - 1


class Fields:
    """A config object that remembers which of its fields were read.

    null counts as absent. `place` names the object in errors.
    """

    def __init__(self, values: Mapping[str, Any], place: str = "config.json") -> None:
        self._values = {str(key): value for key, value in values.items() if value is not None}
        self._nulls = {str(key) for key, value in values.items() if value is None}
        self._read: set[str] = set()
        self.place = place

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def is_null(self, name: str) -> bool:
        """Whether the field stands there as null, for the few where that differs from being absent."""
        return name in self._nulls

    @overload
    def integer(self, name: str, low: int = ..., high: int = ..., *, default: int) -> int: ...
    @overload
    def integer(self, name: str, low: int = ..., high: int = ...) -> int: ...
    @overload
    def integer(self, name: str, low: int = ..., high: int = ..., *, default: None) -> int | None: ...
    def integer(self, name: str, low: int = 1, high: int = MAX_INTEGER, **default: Any) -> int | None:
        value = self._take(name, default)
        if name not in self._values:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._bad(name, f"an integer in {low}..{high}", value)
        return value

    @overload
    def number(self, name: str, low: float = ..., high: float = ..., *, default: float) -> float: ...
    @overload
    def number(self, name: str, low: float = ..., high: float = ...) -> float: ...
    @overload
    def number(self, name: str, low: float = ..., high: float = ..., *, default: None) -> float | None: ...
    def number(self, name: str, low: float = 0.0, high: float = 1e30, **default: Any) -> float | None:
        value = self._take(name, default)
        if name not in self._values:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._bad(name, f"a number in {low:g}..{high:g}", value)
        if not math.isfinite(value):
            raise self._bad(name, "a finite number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._take(name, {"default": default})
        if not isinstance(value, bool):
            raise self._bad(name, "true or false", value)
        return value

    def text(self, name: str, default: str) -> str:
        value = self._take(name, {"default": default})
        if not isinstance(value, str):
            raise self._bad(name, "a text", value)
        return value

    def texts(self, name: str) -> list[str] | None:
        value = self._take(name, {"default": None})
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self._bad(name, "a list of texts", value)
        return value

    def table(self, name: str) -> dict[str, Any] | None:
        value = self._take(name, {"default": None})
        if value is not None and not isinstance(value, dict):
            raise self._bad(name, "an object", value)
        return value

    def numbers(self, name: str, count: int, low: float, high: float = 1e30) -> tuple[float, ...]:
        """A list of exactly `count` numbers."""
        value = self._take(name, {})
        if not isinstance(value, list) or len(value) != count:
            got = f"one of {len(value)}" if isinstance(value, list) else _short(value)
            raise MalformedFileError(f"[{self.place}: {name}] need a list of {count} numbers, got {got}")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int | float) or not low <= number <= high:
                raise self._bad(name, f"numbers in {low:g}..{high:g}", number)
        return tuple(float(number) for number in value)

    def only(self, name: str, allowed: tuple[Any, ...], default: Any) -> Any:
        """A field that this build runs at some values alone; 1 and 1.0 are one value, 1 and true are two."""
        value = self._take(name, {"default": default})
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in allowed):
            choices = " or ".join(_short(choice) for choice in allowed)
            raise UnsupportedModelError(f"[{self.place}: {name}] this build runs {choices}, got {_short(value)}")
        return value

    def ignore(self, *names: str) -> None:
        """These fields never change what this model computes."""
        self._read.update(names)

    def finish(self) -> None:
        """Raises UnsupportedModelError for a field that was not read and may change logits.

        A field that nobody knows passes when it is null or empty (`""`, `[]`, `{}`): it names nothing that could be
        done. false and 0 do not: `is_causal: false` turns a decoder into an encoder, a factor of 0 is a value. Those
        known to be harmless stand in inert.py, with the value at which they are.
        """
        for name in sorted(self._values.keys() - self._read):
            if name in FIXED_FIELDS:
                self.only(name, (FIXED_FIELDS[name],), FIXED_FIELDS[name])
            elif name not in INERT_FIELDS and not name.startswith(INERT_PREFIXES) and not self._is_empty(name):
                raise UnsupportedModelError(
                    f"[{self.place}: {name}] this field may change the model's output and this build does not know it "
                    f"(value {_short(self._values[name])}); remove it if it has no effect, or use a newer llm_decoder"
                )

    def _take(self, name: str, default: dict[str, Any]) -> Any:
        self._read.add(name)
        if name in self._values:
            return self._values[name]
        if "default" not in default:
            raise MalformedFileError(f"[{self.place}: {name}] need this field, got none")
        return default["default"]

    def _is_empty(self, name: str) -> bool:
        value = self._values[name]
        return isinstance(value, str | list | dict) and not value

    def _bad(self, name: str, need: str, value: Any) -> MalformedFileError:
        return MalformedFileError(f"[{self.place}: {name}] need {need}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of over 40 digits"
    return text if len(text) <= 80 else text[:77] + "..."
