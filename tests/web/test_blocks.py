"""Where a text is cut into blocks while it is being written."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_documents import documents

from llm_decoder.web.blocks import MAX_BLOCK_CHARS, MAX_CODE_CHARS, Block, BlockSplitter
from llm_decoder.web.rendering import BlockRenderer, _parser


def split(*pieces: str) -> list[Block]:
    splitter = BlockSplitter()
    blocks = [block for piece in pieces for block in splitter.push(piece)]
    return blocks + splitter.finish()


def texts(text: str) -> list[str]:
    return [block.markdown for block in split(text)]


def test_a_paragraph_is_finished_when_the_next_one_begins() -> None:
    splitter = BlockSplitter()
    assert splitter.push("one\ntwo\n\n") == []
    assert splitter.push("t") == []
    assert splitter.push("hree\n") == [Block("one\ntwo\n\n", 9)]
    assert splitter.finish() == [Block("three\n", 6)]


def test_code_is_finished_with_its_fence_and_holds_blank_lines() -> None:
    assert texts("```py\na\n\n# b\n~~~\n```\nafter") == ["```py\na\n\n# b\n~~~\n```\n", "after"]
    assert texts("text\n~~~\n```\n~~~~\nafter") == ["text\n", "~~~\n```\n~~~~\n", "after"]


def test_a_heading_stands_alone() -> None:
    assert texts("one\n# two\nthree") == ["one\n", "# two\n", "three"]


def test_a_list_goes_on_over_blank_lines_until_something_else_comes() -> None:
    assert texts("- a\n\n- b\n\n  more\n\nend") == ["- a\n\n- b\n\n  more\n\n", "end"]
    assert texts("1. a\n\n   ```\n   x\n\n   y\n   ```\n\n2. b\n\n* c") == [
        "1. a\n\n   ```\n   x\n\n   y\n   ```\n\n2. b\n\n",
        "* c",
    ]


def test_a_fence_that_its_list_does_not_hold_is_code_of_its_own() -> None:
    assert texts("1. a\n```\nx\n\ny\n```\n2. b") == ["1. a\n", "```\nx\n\ny\n```\n", "2. b"]


def test_a_formula_is_in_one_block_whatever_its_lines_look_like() -> None:
    formula = "$$\na\n- b\n---\n> c\n$$\n"
    assert texts(f"{formula}\nafter") == [f"{formula}\n", "after"]
    assert texts(f"- a\n\n{formula}- b") == ["- a\n\n", f"{formula}- b"]
    assert texts("\\[\n- a\n\n---") == ["\\[\n- a\n\n", "---"]


def test_indented_code_stays_with_what_stands_before_it() -> None:
    assert texts("a\n\n    b\n\n    c\n\nd") == ["a\n\n    b\n\n    c\n\n", "d"]


def test_code_that_is_too_long_is_cut_and_stays_code() -> None:
    text = "```py\n" + "x = 1\n" * MAX_CODE_CHARS + "```\n"
    blocks = split(text)
    assert sum(block.n_chars for block in blocks) == len(text)
    assert all(MAX_CODE_CHARS - 6 < block.n_chars <= MAX_CODE_CHARS for block in blocks[:-1])
    assert all(block.markdown.startswith("```py\nx") for block in blocks)


def test_a_line_without_an_end_is_cut() -> None:
    splitter = BlockSplitter()
    blocks = [block for _ in range(100) for block in splitter.push("word " * 1000)]
    assert sum(block.n_chars for block in blocks) >= 500_000 - 2 * MAX_BLOCK_CHARS
    assert all(block.n_chars <= MAX_BLOCK_CHARS for block in blocks)


@settings(max_examples=100, deadline=None)
@given(documents(), st.data())
def test_blocks_are_the_same_however_a_text_comes(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(*pieces) == split(text)
    assert split(*text) == split(text)
    assert sum(block.n_chars for block in split(text)) == len(text)


@settings(max_examples=150, deadline=None)
@given(documents())
def test_blocks_render_to_what_the_whole_text_renders_to(text: str) -> None:
    renderer = BlockRenderer()
    joined = "".join(renderer.render(block.markdown) for block in split(text))
    whole = BlockRenderer().render(text)
    assert joined.replace("\n", "") == whole.replace("\n", "")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab -*+1.)\n`~#>|[]\t:=_", max_size=60))
def test_no_text_is_lost_or_refused(text: str) -> None:
    assert "".join(texts(text)) == text
    assert isinstance(_parser().render(text), str)
