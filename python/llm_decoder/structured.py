"""What form an answer must have: what may be asked for, and its limits. Compiling it is grammars.py's."""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llm_decoder.errors import InvalidRequestError

__all__ = ["MAX_CHARS", "MAX_CHOICES", "MAX_DEPTH", "StructuredOutputs", "as_structured_outputs", "refuse"]

MAX_CHARS = 1 << 18  # of a schema, a regular expression, a grammar, or all choices
MAX_DEPTH = 100  # of values within values in a schema, of groups within groups in an expression
MAX_CHOICES = 10_000
_ANY_OBJECT = '{"type":"object"}'


def refuse(need: str, got: object) -> InvalidRequestError:
    """The error of a form that cannot be had."""
    shown = got if isinstance(got, str) else repr(got)
    if len(shown) > 300:
        shown = shown[:297] + "..."
    return InvalidRequestError(f"[structured_outputs] {need}, got {shown}", param="structured_outputs")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """The form of an answer: exactly one of these is given.

    json: a JSON Schema, as a dict, as JSON text, or True for any JSON value; kept as text. What of JSON Schema is
        understood stands in docs/structured.md; a keyword that is not is refused, never ignored.
    json_object: True = any JSON object.
    regex: a regular expression that the whole answer matches (Rust's syntax: no look-around, no back-references).
    choice: the answer is one of these texts.
    grammar: a context-free grammar, in llguidance's Lark syntax (its first rule: start) or llama.cpp's GBNF (root).

    Raises InvalidRequestError, param "structured_outputs", for none or several of them, and for what is too large or
    too deep. Whether a schema, expression or grammar makes sense is found out when a request with it is submitted.
    """

    json: str | Mapping[str, Any] | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is not None and not isinstance(self.json_object, bool):
            raise refuse("json_object must be true or false", self.json_object)
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) != 1:
            names = ", ".join(field.name for field in fields(self))
            raise refuse(f"need exactly one of {names}", ", ".join(given) or "none")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        elif self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        elif self.regex is not None:
            _check_expression("regex", self.regex)
        elif self.grammar is not None:
            _check_expression("grammar", self.grammar)

    @property
    def schema(self) -> str | None:
        """The JSON Schema of `json` or `json_object`, as text."""
        if self.json_object:
            return _ANY_OBJECT
        return "{}" if self.json == "true" else None if self.json is None else str(self.json)


def as_structured_outputs(value: Any) -> StructuredOutputs:
    """`value` itself, or what a mapping of its fields says. Raises InvalidRequestError."""
    if isinstance(value, StructuredOutputs):
        return value
    if not isinstance(value, Mapping):
        raise refuse("must be StructuredOutputs or a mapping of its fields", type(value).__name__)
    known = [field.name for field in fields(StructuredOutputs)]
    unknown = [str(name) for name in value if name not in known]
    if unknown:
        raise refuse(f"knows {', '.join(known)}", unknown[0])
    return StructuredOutputs(**value)


def _schema_text(schema: Any) -> str:
    """The schema as JSON on one line, its keys in the order given: that is the order of an answer's properties."""
    if isinstance(schema, str):
        _check_text("json", schema)
        _check_depth("json", _text_depth(schema, "[{", "]}", '"'))
        try:
            schema = json_library.loads(schema)
        except (ValueError, RecursionError) as error:
            raise refuse("json must be a JSON Schema", f"text that is no JSON: {error}") from None
    if schema is not True and not isinstance(schema, Mapping):
        raise refuse("json must be a JSON Schema (an object) or true", type(schema).__name__)
    _check_values(schema)
    try:
        text = json_library.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise refuse("json must be a JSON Schema", f"what is no JSON: {error}") from None
    _check_text("json", text)
    return text


def _check_values(schema: Any) -> None:
    """Nothing but JSON, and no deeper than it may be: a walk without recursion."""
    stack = [(schema, 1)]
    n_values = 0
    while stack:
        value, depth = stack.pop()
        _check_depth("json", depth)
        n_values += 1
        if n_values > MAX_CHARS:
            raise refuse(f"json must have at most {MAX_CHARS} values", "more")
        if isinstance(value, Mapping):
            wrong = next((key for key in value if not isinstance(key, str)), None)
            if wrong is not None:
                raise refuse("json must have keys that are texts", wrong)
            stack += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            stack += [(inner, depth + 1) for inner in value]
        elif value is not None and not isinstance(value, (str, int, float, bool)):
            raise refuse("json must be made of JSON values", type(value).__name__)


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, (str, bytes, Mapping)) or not isinstance(choices, Sequence):
        raise refuse("choice must be a list of texts", choices)
    if not choices or len(choices) > MAX_CHOICES:
        raise refuse(f"choice must have 1 to {MAX_CHOICES} texts", len(choices))
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise refuse("choice must be a list of texts that are not empty", choice)
    _check_text("choice", "".join(choices))
    return tuple(dict.fromkeys(choices))


def _check_expression(name: str, text: Any) -> None:
    _check_text(name, text)
    if not text.strip():
        raise refuse(f"{name} must have something in it", text)
    _check_depth(name, _text_depth(text, "([{", ")]}", '"' if name == "grammar" else ""))


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise refuse(f"{name} must be a text", type(text).__name__)
    if len(text) > MAX_CHARS:
        raise refuse(f"{name} must have at most {MAX_CHARS} characters", f"{len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refuse(f"{name} must be valid Unicode", "a lone surrogate") from None


def _text_depth(text: str, opening: str, closing: str, quote: str) -> int:
    """How deep brackets stand within brackets, escaped and quoted ones aside."""
    depth = deepest = 0
    is_quoted = is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == quote:
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif character in opening:
            depth += 1
            deepest = max(deepest, depth)
        elif character in closing:
            depth -= 1
    return deepest


def _check_depth(name: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise refuse(f"{name} must be nested at most {MAX_DEPTH} deep", f"{depth}")
