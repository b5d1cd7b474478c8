"""LaTeX -> MathML, which browsers draw themselves."""

from __future__ import annotations

import functools
import re
from typing import Final

__all__ = ["ATTRIBUTES", "CLASSES", "MAX_CHARS", "TAGS", "mathml"]

MAX_CHARS: Final = 4096
# The library recurses where a formula nests, up to 1.7 KiB of stack for each of these signs: what it may take is less
# than half of the smallest stack that a thread has.
MAX_OPENERS: Final = 500
_OPENERS = "{[\\^_"
MAX_MATHML_CHARS: Final = 1 << 16
# Wider or higher spaces, and those that go back far, are left out: a formula must not lie over what stands around it.
_MAX_EM, _MIN_EM = 20.0, -2.0

TAGS: Final = frozenset(
    [
        *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "mpadded"),
        *(
            "mphantom",
            "menclose",
            "merror",
            "msub",
            "msup",
            "msubsup",
            "munder",
            "mover",
            "munderover",
            "mmultiscripts",
        ),
        *("mprescripts", "mtable", "mtr", "mtd"),
    ]
)
_OF_ALL = {"displaystyle", "scriptlevel", "mathcolor", "mathvariant"}
_OF_SOME = {
    "math": {"display"},
    "mo": {"stretchy", "symmetric", "largeop", "movablelimits", "form", "fence", "separator", "lspace", "rspace"}
    | {"minsize", "maxsize", "accent"},
    "mspace": {"width", "height", "depth"},
    "mpadded": {"width", "height", "depth", "lspace", "voffset"},
    "mfrac": {"linethickness"},
    "mover": {"accent"},
    "munder": {"accentunder"},
    "munderover": {"accent", "accentunder"},
    "menclose": {"notation"},
}
ATTRIBUTES: Final = {tag: _OF_ALL | _OF_SOME.get(tag, set()) for tag in TAGS}
# How the cells of a column stand; the page's policy takes no styles from attributes.
CLASSES: Final = frozenset(["right", "left", "case"])

_NUMBERED = re.compile(r"\\(begin|end)\{(align|equation|gather)\}")
# The library's stack grows with what they stand for, too.
_DEFINES = re.compile(r"\\(?:(?:new|renew|provide)command|[gex]?def|let|global)(?![A-Za-z])")
_ROW_SPACE = re.compile(r"\\\\\[-?[0-9.]{1,8} ?[a-z]{2}\]")
_TAGGED = re.compile(r"\\tag\{([^{}\\$]*)\}")
_TAG = re.compile(r"<[a-z][^<>]*>")
_ATTRIBUTE = re.compile(r' ([a-z]+)="([^"]*)"')
_LENGTH = re.compile(r"(-?[0-9]{0,6}\.?[0-9]{0,9})(em|ex|px|pt)")
_EM_OF = {"em": 1.0, "ex": 0.5, "px": 1 / 16, "pt": 1 / 12}
_LENGTHS = {"width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize", "linethickness"}


@functools.lru_cache(maxsize=256)
def mathml(latex: str, is_display: bool) -> str | None:
    """<math>...</math> with the tags, attributes and classes above; None for what is no formula, or too large a one.
    A command that is not known is shown as it is written."""
    if len(latex) > MAX_CHARS or sum(map(latex.count, _OPENERS)) > MAX_OPENERS or _DEFINES.search(latex):
        return None
    # Nothing refers to the numbers of equations, and the library has none outside of numbered ones.
    latex = _NUMBERED.sub(r"\\\1{\2*}", latex)
    latex = _TAGGED.sub(r"\\qquad\\text{(\1)}", latex)
    latex = _ROW_SPACE.sub(r"\\\\ ", latex)  # which the library takes for a formula
    html = _converted(latex, is_display)
    if html is None or len(html) > MAX_MATHML_CHARS:
        return None
    return _TAG.sub(lambda tag: _ATTRIBUTE.sub(_attribute, tag[0]), html)


def _converted(latex: str, is_display: bool) -> str | None:
    from math_core import LatexToMathML

    # One for each formula: a shared one takes one thread at a time.
    converter = LatexToMathML(fancy_error=False, ignore_unknown_commands=True, max_expansions=64)
    try:
        return converter.convert_with_local_state(latex, displaystyle=is_display)
    except BaseException as error:  # what is no LaTeX; a panic of the library, too, is a formula's and not the answer's
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            return None
        raise


def _attribute(attribute: re.Match[str]) -> str:
    name, value = attribute.groups()
    if name == "style":
        return _instead_of_style(value)
    if name in _LENGTHS and not _is_small(value):
        return ""
    return attribute[0]


def _instead_of_style(style: str) -> str:
    colour = re.search(r"(?<!-)color: ?(#[0-9A-Fa-f]{3,8}|[a-z]{3,20})\b", style)
    if colour:
        return f' mathcolor="{colour[1]}"'
    if "text-align: right" in style:
        return ' class="right"'
    if "text-align: left" in style:
        return ' class="left"' if re.search(r"padding-left: ?0", style) else ' class="case"'
    return ""


def _is_small(length: str) -> bool:
    if length == "0" or length.endswith("%"):
        return True
    match = _LENGTH.fullmatch(length)
    if match is None:
        return False
    try:
        return _MIN_EM <= float(match[1]) * _EM_OF[match[2]] <= _MAX_EM
    except ValueError:
        return False
