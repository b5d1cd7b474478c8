"""Markdown of a model -> HTML that is safe to put into the page."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_decoder.web import formulas, highlight
from llm_decoder.web.blocks import BlockSplitter
from llm_decoder.web.formula_syntax import add_formulas

if TYPE_CHECKING:
    import nh3
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = ["BlockRenderer", "render_blocks"]

_ALIGNMENTS = {"text-align:left": "left", "text-align:center": "center", "text-align:right": "right"}
_TAGS = set(
    [
        *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "span", "a"),
        *("blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "input"),
    ]
)


class BlockRenderer:
    """Renders the blocks of one text, in order: link definitions count for the blocks after them."""

    def __init__(self) -> None:
        self._environment: dict[str, Any] = {}

    def render(self, markdown: str) -> str:
        """HTML without scripts, styles, images and foreign schemes, whatever `markdown` holds."""
        return _cleaner().clean(_parser().render(markdown, self._environment))


def render_blocks(text: str) -> list[str]:
    """A whole text as the blocks that it would have been streamed in."""
    splitter, renderer = BlockSplitter(), BlockRenderer()
    blocks = [*splitter.push(text), *splitter.finish()]
    return [renderer.render(block.markdown) for block in blocks if not block.markdown.isspace()]


@functools.cache
def _parser() -> MarkdownIt:
    """CommonMark with GitHub's tables, strikethrough and task lists, and formulas, without HTML; a line's end is
    kept."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    add_formulas(parser)
    parser.core.ruler.push("task_lists", _mark_tasks)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("code_block", _code_block)
    parser.add_render_rule("image", _image)
    for name in ("th_open", "td_open"):
        parser.add_render_rule(name, _cell)
    return parser


@functools.cache
def _cleaner() -> nh3.Cleaner:
    """The second lock: it takes away what the parser should not have let through."""
    import nh3

    return nh3.Cleaner(
        tags=_TAGS | formulas.TAGS,
        clean_content_tags={"script", "style"},
        attributes={
            "a": {"href", "title"},
            "ol": {"start"},
            "pre": {"data-language"},
            "input": {"checked", "disabled"},
            **formulas.ATTRIBUTES,
        },
        tag_attribute_values={"input": {"type": {"checkbox"}}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        allowed_classes={
            "span": set(highlight.classes()),
            "pre": {"code"},
            "li": {"task"},
            "th": set(_ALIGNMENTS.values()),
            "td": set(_ALIGNMENTS.values()),
            "p": {"formula"},
            "mtd": set(formulas.CLASSES),
        },
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )


def _fence(renderer: object, tokens: Sequence[Token], index: int, options: object, environment: object) -> str:
    words = tokens[index].info.split()
    return _code(tokens[index].content, words[0].lower()[:32] if words else "")


def _code_block(renderer: object, tokens: Sequence[Token], index: int, options: object, environment: object) -> str:
    return _code(tokens[index].content, "")


def _code(code: str, language: str) -> str:
    name = f' data-language="{html.escape(language)}"' if language else ""
    return f'<pre class="code"{name}><code>{highlight.highlight(code, language)}</code></pre>\n'


def _image(renderer: object, tokens: Sequence[Token], index: int, options: object, environment: object) -> str:
    """A link to it. An image would be fetched as soon as it is shown: whatever stands in its address would be told."""
    address = html.escape(str(tokens[index].attrGet("src") or ""))
    return f'<a href="{address}">{html.escape(tokens[index].content) or address}</a>'


def _cell(renderer: object, tokens: Sequence[Token], index: int, options: object, environment: object) -> str:
    """A class for its alignment: the page's policy takes no styles from attributes."""
    token = tokens[index]
    name = _ALIGNMENTS.get(str(token.attrGet("style") or ""))
    return f'<{token.tag} class="{name}">' if name else f"<{token.tag}>"


def _mark_tasks(state: Any) -> None:
    """[ ] and [x] at the beginning of a list's item become boxes."""
    from markdown_it.token import Token

    tokens = state.tokens
    for item, paragraph, inline in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if item.type != "list_item_open" or paragraph.type != "paragraph_open" or not inline.children:
            continue
        text = inline.children[0]
        if text.type != "text" or text.content[:4].lower() not in ("[ ] ", "[x] "):
            continue
        checked = "" if text.content[1] == " " else " checked"
        text.content = text.content[4:]
        box = Token("html_inline", "", 0, content=f'<input type="checkbox" disabled{checked}> ')
        inline.children.insert(0, box)
        item.attrSet("class", "task")
