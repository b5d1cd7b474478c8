"""A request's bytes to its schema: bounded JSON, one error that names the field, and the fields that nobody reads."""

from __future__ import annotations

import json
import logging
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from llm_decoder.serving.errors import HttpError
from llm_decoder.serving.exchange import Incoming
from llm_decoder.serving.schemas_base import NOT_IN_THIS_VERSION, Schema

__all__ = ["parse_body", "parse_query"]

AnySchema = TypeVar("AnySchema", bound=Schema)

_LOG = logging.getLogger("llm_decoder.serving")
_MAX_IGNORED_SHOWN = 32
_NOT_SHOWN = re.compile(r"[^A-Za-z0-9_.\-]")
_NOT_SHOWN_OF_A_TYPE = re.compile(r"[^A-Za-z0-9_.+/;= \-]")
_JSON_KINDS = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}


class _Shown(reprlib.Repr):
    """Looks at a few items of the largest value; what has no other name in JSON is called as there."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxlevel = 60, 2

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"


_SHOWN = _Shown()


def parse_body(incoming: Incoming, schema: type[AnySchema]) -> tuple[AnySchema, dict[str, str]]:
    """(The request, headers for its answer). Raises HttpError 400 for what is no JSON object of that schema."""
    _check_content_type(incoming.headers.get("content-type", ""))
    _check_content_encoding(incoming.headers.get("content-encoding", "identity"))
    return _checked(incoming, schema, _json_object(incoming.body))


def parse_query(incoming: Incoming, schema: type[AnySchema]) -> tuple[AnySchema, dict[str, str]]:
    """As `parse_body`, of the fields in a URL: texts as they are, all else as JSON."""
    values: dict[str, Any] = {}
    for name, text in incoming.query.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise HttpError(400, f"[{_plain(name)}] need valid UTF-8", param=_plain(name)) from None
        values[name] = text if name in schema.text_fields else _value(text)
    return _checked(incoming, schema, values)


def _value(text: str) -> Any:
    try:
        return _json(text.encode())
    except ValueError:
        return text


def _check_content_type(given: str) -> None:
    # What a page of another origin may send without asking first (text/plain, a form) is no JSON.
    kind, _, parameters = given.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"') if "charset=" in parameters.lower() else ""
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise HttpError(
            400,
            "[content-type] need application/json in UTF-8, got "
            + (_NOT_SHOWN_OF_A_TYPE.sub("_", given[:64]) or "none"),
            param="content-type",
            code="unsupported_content_type",
        )


def _check_content_encoding(given: str) -> None:
    # Nothing is ever unpacked: a small body stays small.
    if given.strip().lower() not in ("identity", ""):
        raise HttpError(
            400,
            f"[content-encoding] need a body as it is, got {_plain(given)}",
            param="content-encoding",
            code="unsupported_content_encoding",
        )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = _json(body)
    except ValueError as error:
        raise HttpError(400, f"[body] need valid JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        got = _JSON_KINDS.get(type(value), "null")
        raise HttpError(400, f"[body] need a JSON object, got {got}", code="invalid_json")
    return value


def _json(body: bytes) -> Any:
    body = body.removeprefix(b"\xef\xbb\xbf")
    # This parser's depth is bounded and it takes valid Unicode only; the other one sees keys that stand twice.
    from_json(body, allow_inf_nan=False)
    return json.loads(body, object_pairs_hook=_unique, parse_constant=_refuse_number, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is out of range")
    return number


def _checked(
    incoming: Incoming, schema: type[AnySchema], values: Mapping[str, Any]
) -> tuple[AnySchema, dict[str, str]]:
    try:
        request = schema.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None
    ignored: dict[str, None] = {}
    for name in _unread(request):
        ignored[_plain(name)] = None
        if len(ignored) == _MAX_IGNORED_SHOWN:
            break
    if not ignored:
        return request, {}
    shown = ",".join(ignored)
    _LOG.warning("%s: fields that are not known were ignored: %s", incoming.request_id, shown)
    return request, {"x-ignored-fields": shown}


def _unread(model: BaseModel, place: str = "") -> Iterator[str]:
    """Names of fields that no schema knows, at any depth."""
    yield from (place + name for name, value in (model.model_extra or {}).items() if value is not None)
    for name, value in vars(model).items():
        for item in value if isinstance(value, list) else (value,):
            if not isinstance(item, BaseModel):
                break  # items of a list are of one kind
            yield from _unread(item, f"{place}{name}.")


def _refusal(error: ValidationError) -> HttpError:
    # Of a field that has several forms, the one that was followed furthest.
    first = max(error.errors(include_url=False, include_context=False), key=lambda entry: len(entry["loc"]))
    param = ".".join(_plain(str(part)) for part in first["loc"] if not _is_kind(part)) or None
    field = str(first["loc"][0]) if first["loc"] else ""
    if field in NOT_IN_THIS_VERSION and first["type"] != "missing":
        return HttpError(400, f"[{field}] {NOT_IN_THIS_VERSION[field]}", param=field, code="unsupported")
    if first["type"] == "missing":
        return HttpError(400, f"[{param}] need this field, got none", param=param)
    message = first["msg"].removeprefix("Value error, ")
    return HttpError(400, f"[{param or 'body'}] {message}, got {_SHOWN.repr(first['input'])}", param=param)


def _is_kind(part: int | str) -> bool:
    """Where a field has several forms the place names the one that was tried."""
    return isinstance(part, str) and (part in ("str", "bool", "int", "float", "ToolChoice") or "[" in part)


def _plain(name: str) -> str:
    """A name from outside, fit for a header, a log line and a message."""
    return _NOT_SHOWN.sub("_", name[:64])
