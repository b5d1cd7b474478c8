"""LaTeX in a text: where it begins and ends, what becomes of it, and that no formula takes more than its share."""

from __future__ import annotations

import re
import threading

import pytest

from llm_decoder.web.formulas import MAX_CHARS, MAX_MATHML_CHARS, MAX_OPENERS, mathml
from llm_decoder.web.rendering import render_blocks


def html_of(text: str) -> str:
    return "".join(render_blocks(text))


def words(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html).strip()


@pytest.mark.parametrize("text", [r"$\frac{a}{b}$", r"\(\frac{a}{b}\)"])
def test_a_formula_in_a_line_is_math(text: str) -> None:
    assert html_of(f"so {text}.") == "<p>so <math><mfrac><mi>a</mi><mi>b</mi></mfrac></math>.</p>\n"


@pytest.mark.parametrize("text", ["$$x$$", "$$\nx\n$$", r"\[x\]", "\\[\n  x\n\\]", "  $$\n  x $$"])
def test_a_formula_by_itself_is_a_block_in_display_style(text: str) -> None:
    expected = '<p class="formula"><math display="block"><mi>x</mi></math></p>\n'
    assert html_of(text) == expected
    assert html_of(f"before\n{text}\nafter") == f"<p>before</p>\n{expected}<p>after</p>\n"


def test_lines_of_a_formula_are_no_lists_headings_or_rules() -> None:
    html = html_of("$$\na\n- b\n+ c\n= d\n---\n1. e\n$$")
    assert html.count("<math") == 1
    assert not re.search("<(ul|ol|li|h1|h2|hr)", html)


def test_formulas_stand_in_lists_quotes_and_tables() -> None:
    html = html_of("- a $x$\n\n  $$\n  y\n  $$\n\n> \\[\n> z\n> \\]\n\n| a |\n|---|\n| \\(w\\) |")
    assert [re.search(rf"<math[^>]*><mi>{name}</mi></math>", html) is None for name in "xyzw"] == [False] * 4


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10.",
        "US$5 to US$6",
        "$5-$10",
        "$100/$200",
        "$HOME/$PATH and $ x $",
        r"\$x\$",
        "a $ b",
        "$$",
        "$",
        "$$$$",
        r"\\(x\\)",
    ],
)
def test_money_and_variables_are_no_formulas(text: str) -> None:
    assert "<math" not in html_of(text)


def test_code_keeps_its_dollars() -> None:
    assert html_of("`$x$`") == "<p><code>$x$</code></p>\n"
    assert "<math" not in html_of("```sh\necho $a $b$\n$$\nx\n$$\n```\n\n    $x$")


def test_what_cannot_be_drawn_is_shown_as_it_was_written() -> None:
    assert html_of(r"\(\frac{\)") == "<p><code>\\(\\frac{\\)</code></p>\n"
    assert html_of("$$\n\\frac{\n$$") == '<p class="formula"><code>$$\n\\frac{\n$$</code></p>\n'
    assert html_of(r"$\frac{ **b** $") == "<p>$\\frac{ <strong>b</strong> $</p>\n"


def test_a_command_that_is_not_known_is_shown_among_the_others() -> None:
    assert words(html_of(r"$\unheardof + x$")) == r"\unheardof+x"


def test_columns_stand_as_their_environment_says_without_a_style() -> None:
    html = html_of(r"$$\begin{align}a&=b\\[4pt] c&=d\tag{7}\end{align}$$")
    assert (html.count('<mtd class="right">'), html.count('<mtd class="left">')) == (2, 2)
    assert " style=" not in html
    assert "(7)" in words(html)
    assert "pt" not in words(html)
    assert "(1)" not in words(html)


def test_colours_are_attributes() -> None:
    assert 'mathcolor="#FF0000"' in html_of(r"$\textcolor{red}{x}$")


def test_spaces_that_reach_over_the_page_are_left_out() -> None:
    html = html_of(r"$\hspace{500em}\hspace{-30em}\hspace{2em}$")
    assert re.findall(r'width="([^"]*)"', html) == ["2em"]


BOMBS = {
    "braces": "{" * MAX_OPENERS + "x" + "}" * MAX_OPENERS,
    "roots": r"\sqrt{" * (MAX_OPENERS // 2) + "x" + "}" * (MAX_OPENERS // 2),
    "powers": "x^{" * (MAX_OPENERS // 2) + "}" * (MAX_OPENERS // 2),
    "both": "x_{x^{" * (MAX_OPENERS // 4) + "}}" * (MAX_OPENERS // 4),
    "bare": r"\sqrt " * MAX_OPENERS + "x",
    "not": r"\not" * MAX_OPENERS + " x",
    "colours": r"\color{red}" * (MAX_OPENERS // 2) + "x",
    "matrices": r"\begin{matrix}" * (MAX_OPENERS // 4) + r"\end{matrix}" * (MAX_OPENERS // 4),
    "primes": "x" + "'" * (MAX_CHARS - 1),
    "open": "{" * MAX_OPENERS,
    "columns": r"\begin{matrix}" + "&" * 4000 + r"\end{matrix}",
    "nonsense": "\0\uffff\U0001f600\\" * 100,
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_deepest_formula_that_is_let_through_fits_a_small_stack(name: str) -> None:
    before = threading.stack_size(1 << 20)
    try:
        thread = threading.Thread(target=mathml, args=(BOMBS[name], True))
        thread.start()  # what does not fit ends the process
        thread.join()
    finally:
        threading.stack_size(before)
    assert len(mathml(BOMBS[name], True) or "") <= MAX_MATHML_CHARS * 2


@pytest.mark.parametrize(
    "latex",
    [
        "{" * 100_000,
        r"\frac" * 10_000,
        "x" * (MAX_CHARS + 1),
        "x^{" * MAX_OPENERS,
        r"\newcommand{\a}{{{\a}}}\a",
        r"\def\a{\sqrt{\a}}\a",
        r"\providecommand\a{\a\a}\a",
        r"\global\let\a=\b",
        "\ud800",
    ],
)
def test_what_could_take_too_much_is_no_formula(latex: str) -> None:
    assert mathml(latex, False) is None


@pytest.mark.parametrize("part", ["$", "$a ", "$$a\n", r"\(", r"\[", "\\[a\n", r"$\$", "$$$", r"\(x\)", "$x$ "])
def test_a_text_full_of_their_signs_is_shown(part: str) -> None:
    assert html_of(part * (20_000 // len(part)))
