"""Source code in colours: text in, <span class="..."> out."""

from __future__ import annotations

import functools
import html
import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from pygments.token import _TokenType

__all__ = ["LANGUAGES", "classes", "highlight"]

# A lexer is a set of regular expressions that run on what a model has written, some of which look ahead to the end for
# each sign that they take. So: the languages that people ask models for, lines as people write them, and a bound on the
# time; what lies beyond is shown without colours.
LANGUAGES = frozenset(
    [
        *("bash", "c", "cpp", "csharp", "css", "cuda", "dart", "diff", "docker", "elixir", "go", "graphql", "haskell"),
        *("html", "ini", "java", "javascript", "json", "jsx", "julia", "kotlin", "latex", "lua", "make", "matlab"),
        *("nginx", "objective-c", "perl", "php", "powershell", "protobuf", "python", "pytb", "r", "ruby", "rust"),
        *("scala", "scss", "sql", "swift", "toml", "typescript", "tsx", "vim", "xml", "yaml", "zig"),
    ]
)
MAX_LINE_CHARS = 1 << 10
MAX_CPU_S = 0.2


def highlight(code: str, language: str) -> str:
    """HTML of `code`: its text escaped, with spans whose classes `code.css` colours."""
    lexer = _lexer(language)
    if lexer is None or any(len(line) > MAX_LINE_CHARS for line in code.split("\n")):
        return html.escape(code)
    parts: list[str] = []
    for name, run in itertools.groupby(_tokens(lexer, code), key=lambda token: token[0]):
        escaped = html.escape("".join(text for _, text in run))
        parts.append(f'<span class="{name}">{escaped}</span>' if name else escaped)
    return "".join(parts)


def _tokens(lexer: Lexer, code: str) -> Iterator[tuple[str, str]]:
    """(class, text); all of `code`."""
    end_s = time.thread_time() + MAX_CPU_S
    for index, kind, text in lexer.get_tokens_unprocessed(code):
        if time.thread_time() > end_s:
            yield "", code[index:]
            return
        yield _class_of(kind), text


def _class_of(kind: _TokenType) -> str:
    """ "" for what has no colour."""
    from pygments.token import STANDARD_TYPES, Whitespace

    if kind is Whitespace:
        return ""
    return next(STANDARD_TYPES[ancestor] for ancestor in reversed(kind.split()) if ancestor in STANDARD_TYPES)


@functools.lru_cache(maxsize=256)
def _lexer(language: str) -> Lexer | None:
    """The lexer of one of LANGUAGES, by any of its names."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language:
        return None
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
    return lexer if LANGUAGES.intersection(lexer.aliases) else None


@functools.cache
def classes() -> frozenset[str]:
    """Every class that `highlight` may give."""
    from pygments.token import STANDARD_TYPES

    return frozenset(STANDARD_TYPES.values()) - {""}
