"""Where a formula begins and ends in Markdown: $...$ and \\(...\\) in a line, $$...$$ and \\[...\\] by themselves.

As rules of markdown-it. A formula by itself may have lines that would begin a list or a heading elsewhere; it has no
blank line, as in LaTeX, so that a text can be cut into blocks without a look at it (blocks.py).
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_decoder.web.blocks import FENCE, FORMULA_AGAIN, FORMULA_ENDS, HEADING
from llm_decoder.web.formulas import MAX_CHARS, mathml

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.ruler import RuleOptionsType
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

__all__ = ["add_formulas"]

# None of them looks at a sign twice; what is longer is none. A $ beside a letter or a space is money or a name.
_IN_LINE = re.compile(
    rf"""
    \\\( (?P<round> (?: [^\\] | \\[^()] ){{1,{MAX_CHARS}}}+ ) \\\)
  | \\\[ (?P<square> (?: [^\\] | \\[^\[\]] ){{1,{MAX_CHARS}}}+ ) \\\]
  | \$\$ (?P<double> (?: [^\\$] | \\. | \$(?!\$) ){{1,{MAX_CHARS}}}+ ) \$\$
  | (?<!\w) \$ (?![\s$]) (?P<single> (?: [^\\$] | \\. ){{1,{MAX_CHARS}}}+ ) (?<!\s) \$ (?!\w)
    """,
    re.VERBOSE | re.DOTALL,
)
_DISPLAYED = ("square", "double")


def add_formulas(parser: MarkdownIt) -> None:
    """Formulas for `parser`, as MathML."""
    parser.inline.ruler.before("escape", "formula", _in_line)
    may_end: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.after("fence", "formula_block", _by_itself, may_end)
    parser.add_render_rule("formula", _render)
    parser.add_render_rule("formula_block", _render)


def _in_line(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    found = _IN_LINE.match(state.src, state.pos, state.posMax)
    if found is None or not (found[found.lastgroup or 0]).strip():
        return False
    kind = str(found.lastgroup)
    shown = mathml(found[kind].strip(), kind in _DISPLAYED)
    if shown is None and kind == "single":
        return False
    if not silent:
        state.push("formula", "", 0).content = shown or _source(found[0])
    state.pos = found.end()
    return True


def _by_itself(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    if state.is_code_block(start_line):
        return False
    first = _line(state, start_line)
    opening = first[:2]
    if opening not in FORMULA_ENDS:
        return False
    lines = [first]
    n_chars = len(first)
    rest = first[2:]
    while not FORMULA_ENDS[opening].search(rest):
        line = start_line + len(lines)
        if line >= end_line or state.sCount[line] < state.blkIndent or n_chars > MAX_CHARS:
            return False
        rest = _line(state, line)
        if not rest.strip() or HEADING.match(rest) or FENCE.match(rest):
            return False
        if FORMULA_AGAIN.search(rest):
            return False
        lines.append(rest)
        n_chars += len(rest) + 1
    text = "\n".join(lines).strip()
    found = _IN_LINE.fullmatch(text)
    if found is None or found.lastgroup not in _DISPLAYED or not found[found.lastgroup].strip():
        return False
    if not silent:
        shown = mathml(found[found.lastgroup].strip(), True) or _source(text)
        token = state.push("formula_block", "", 0)
        token.content = f'<p class="formula">{shown}</p>\n'
        token.map = [start_line, start_line + len(lines)]
        state.line = start_line + len(lines)
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]


def _source(text: str) -> str:
    """What cannot be drawn is shown as it was written."""
    return f"<code>{html.escape(text)}</code>"


def _render(renderer: object, tokens: Sequence[Token], index: int, options: object, environment: object) -> str:
    return tokens[index].content
