"""Where one finished part of a Markdown text ends and the next begins, found while the text is still being written.

A cut is made only where CommonMark says that nothing which follows can change what stands before it, so a block can be
rendered once and for all. Every line is looked at once, whatever came before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "FENCE",
    "FORMULA_AGAIN",
    "FORMULA_ENDS",
    "HEADING",
    "MAX_BLOCK_CHARS",
    "MAX_CODE_CHARS",
    "Block",
    "BlockSplitter",
]

# A longer block is cut where it stands: a text can be such that rendering takes the square of its length.
MAX_BLOCK_CHARS = 1 << 14
MAX_CODE_CHARS = 1 << 16

FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
# What a formula by itself begins with, and what ends it; a backslash before that makes it another sign.
FORMULA = re.compile(r" {0,3}(\$\$|\\\[)")
FORMULA_ENDS = {"$$": re.compile(r"(?<!\\)\$\$"), "\\[": re.compile(r"(?<!\\)(?:\\\\)*\\\]")}
FORMULA_AGAIN = re.compile(r"(?<!\\)(?:\\\\)*\\\[")
_QUOTE = re.compile(r" {0,3}>")
_MARKER = re.compile(r"( {0,3})([-+*]|[0-9]{1,9}[.)])( *)(?=([^ ]?))")


@dataclass(frozen=True, slots=True)
class Block:
    """markdown: a part of the text that renders by itself. n_chars: how many characters of the text it stands for."""

    markdown: str
    n_chars: int


class BlockSplitter:
    """Takes a text piece by piece; the blocks are the same however it was cut into pieces."""

    def __init__(self) -> None:
        self._pieces: list[str] = []  # of the line that has no end yet
        self._n_partial = 0
        self._start()

    def _start(self) -> None:
        self._lines: list[str] = []  # of the open block
        self._n_chars = 0
        self._prefix = ""  # the fence of a block of code that was cut
        self._after_blank = False
        self._fence = ""  # that the open block of code began with, at the top level
        self._item = ""  # kind of the marker of the list that is open
        self._offset = 0  # columns that lines of its last item are indented by
        self._inner_fence = ""
        self._is_paragraph = False  # whether the line before is one's, outside of lists, quotes and tables
        self._in_other = False  # whether a quote or a table is open
        self._formula = (
            ""  # what the formula by itself began with that may be open; until it ends it is lines like others
        )
        self._list = ("", 0, "")  # _item, _offset, _inner_fence before it

    def push(self, text: str) -> list[Block]:
        """The blocks that are finished now, in order."""
        blocks: list[Block] = []
        *ends, rest = text.split("\n")
        for end in ends:
            self._pieces.append(end)
            line = "".join(self._pieces) + "\n"
            self._pieces.clear()
            self._n_partial = 0
            self._take(line, blocks)
        self._pieces.append(rest)
        self._n_partial += len(rest)
        while self._n_partial > MAX_BLOCK_CHARS:
            line = "".join(self._pieces)
            self._take(line[:MAX_BLOCK_CHARS], blocks)
            self._pieces = [line[MAX_BLOCK_CHARS:]]
            self._n_partial -= MAX_BLOCK_CHARS
        return blocks

    def finish(self) -> list[Block]:
        """The rest, when no more text comes."""
        blocks: list[Block] = []
        last = "".join(self._pieces)
        self._pieces.clear()
        self._n_partial = 0
        if last:
            self._take(last, blocks)
        self._cut(blocks)
        return blocks

    def _take(self, line: str, blocks: list[Block]) -> None:
        most = MAX_CODE_CHARS if self._fence else MAX_BLOCK_CHARS
        if self._n_chars + len(line) > most and self._lines:
            fence, prefix = self._fence, self._prefix or (self._lines[0] if self._fence else "")
            self._cut(blocks)
            self._fence, self._prefix = fence, prefix
        text = line.rstrip("\r\n")
        if self._fence:
            self._add(line)
            if _closes(text, self._fence):
                self._cut(blocks)
            return
        if not text.strip(" \t"):
            self._add(line)
            self._after_blank = True
            self._is_paragraph = self._in_other = False
            self._formula = ""
            return
        if HEADING.match(text) or FENCE.match(text):
            self._formula = ""
        if self._lines and not self._formula and self._begins_block(text):
            self._cut(blocks)
        is_over = self._closes_formula(text)
        self._note(text)
        if is_over:
            self._item, self._offset, self._inner_fence = self._list
            self._formula, self._is_paragraph, self._in_other = "", False, False
        self._add(line)
        self._after_blank = False
        if not self._item and HEADING.match(text):
            self._cut(blocks)

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._n_chars += len(line)

    def _cut(self, blocks: list[Block]) -> None:
        if self._lines:
            blocks.append(Block(self._prefix + "".join(self._lines), self._n_chars))
        self._start()

    def _begins_block(self, text: str) -> bool:
        """Whether nothing before this line, which is not blank, has to do with it."""
        indent = _indent(text)
        if self._item:
            if indent >= self._offset:
                return False
            marker = _MARKER.match(text)
            if marker and not _is_rule(text):
                return self._after_blank and _kind(marker) != self._item
            return bool(
                self._after_blank
                or self._inner_fence
                or _is_rule(text)
                or FENCE.match(text)
                or HEADING.match(text)
                or _QUOTE.match(text)
            )
        if self._after_blank:
            return indent < 4  # else it may go on with indented code
        return bool(FENCE.match(text) or HEADING.match(text))

    def _closes_formula(self, text: str) -> bool:
        """Follows which formula by itself may be open; whether it ends with this line."""
        if not self._formula:
            opening = FORMULA.match(text)
            if not opening or (self._item and _indent(text) >= self._offset):
                return False
            self._formula = opening[1]
            self._list = (self._item, self._offset, self._inner_fence)
            text = text[opening.end() :]
        end = FORMULA_ENDS[self._formula].search(text)
        if end is not None and not text[end.end() :].strip():
            return True
        if end is not None or FORMULA_AGAIN.search(text):
            self._formula = ""
        return False

    def _note(self, text: str) -> None:
        """Follows which list is open, and which fence."""
        fence = FENCE.match(text)
        if self._item and _indent(text) >= self._offset:
            if self._inner_fence:
                if _closes(text.strip(" \t"), self._inner_fence):
                    self._inner_fence = ""
            elif inner := FENCE.match(text[self._offset :]):
                self._inner_fence = inner[1]
            return
        if fence:
            self._fence = fence[1]
            return
        marker = _MARKER.match(text)
        was_paragraph = self._is_paragraph
        if _QUOTE.match(text) or _is_table(text):
            self._in_other = True
        is_code = not was_paragraph and _indent(text) >= 4
        self._is_paragraph = not (self._in_other or is_code or _is_rule(text) or _is_underline(text))
        if not marker or _is_rule(text):
            return
        has_text = bool(marker[4])
        if has_text and not marker[3] and text[marker.end(2) : marker.end(2) + 1] != "\t":
            return  # "*bold*", "1.5"
        if was_paragraph and not self._item and (not has_text or marker[2] not in ("-", "+", "*", "1.", "1)")):
            return  # it cannot interrupt a paragraph
        self._item = _kind(marker)
        n_spaces = len(marker[3])
        self._offset = marker.end(2) + (n_spaces if has_text and 1 <= n_spaces <= 4 else 1)
        inner = FENCE.match(text[self._offset :])
        self._inner_fence = inner[1] if inner else ""


def _indent(text: str) -> int:
    """Columns before the first sign; a tab goes to the next multiple of four."""
    column = 0
    for sign in text:
        if sign == " ":
            column += 1
        elif sign == "\t":
            column += 4 - column % 4
        else:
            break
    return column


def _is_rule(text: str) -> bool:
    """Whether it is a thematic break."""
    signs = text.replace(" ", "").replace("\t", "")
    return _indent(text) < 4 and len(signs) >= 3 and signs[0] in "-*_" and signs == signs[0] * len(signs)


def _is_table(text: str) -> bool:
    """Whether it is the row below a table's head."""
    return "|" in text and "-" in text and not text.strip("|-: \t")


def _is_underline(text: str) -> bool:
    """Whether it makes a heading of the paragraph above it."""
    return not text.strip("= \t")


def _closes(text: str, fence: str) -> bool:
    signs = text.strip(" \t")
    return _indent(text) < 4 and len(signs) >= len(fence) and signs == fence[0] * len(signs)


def _kind(marker: re.Match[str]) -> str:
    return marker[2][-1]
