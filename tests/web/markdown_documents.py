"""Markdown as models write it, in any order: what hypothesis makes documents of."""

from __future__ import annotations

from hypothesis import strategies as st

words = st.lists(
    st.sampled_from(["some", "words", "**bold**", "`x = 1`", "_so_", "é", "😀", "1.", "a*b", "~~no~~"]),
    min_size=1,
    max_size=5,
).map(" ".join)
code = st.lists(st.sampled_from(["", "x = 1", "  y", "- z", "# no heading", "```", "> w", "\tt"]), max_size=5).map(
    "\n".join
)


def _indented(text: str, n: int) -> str:
    return "\n".join(" " * n + line if line else line for line in text.split("\n"))


@st.composite
def fences(draw: st.DrawFn) -> str:
    sign = draw(st.sampled_from(["````", "~~~"]))
    return f"{sign}{draw(st.sampled_from(['', 'python', 'c++ x']))}\n{draw(code)}\n{sign}"


@st.composite
def lists(draw: st.DrawFn) -> str:
    marker = draw(st.sampled_from(["-", "*", "1.", "10.", "2)"]))
    items = []
    for _ in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(st.one_of(words, fences(), words.map(lambda text: f"- {text}")), min_size=0, max_size=2))
        first = draw(words)
        body = "".join("\n\n" + _indented(part, len(marker) + 1) for part in parts)
        items.append(f"{marker} {first}{body}")
    return draw(st.sampled_from(["\n", "\n\n"])).join(items)


tables = st.lists(words, min_size=1, max_size=3).map(
    lambda rows: "| a | b |\n|---|--:|\n" + "\n".join(f"| {row.replace('|', '')} | 1 |" for row in rows)
)
blocks = st.one_of(
    words,
    st.tuples(words, words).map("\n".join),
    fences(),
    lists(),
    tables,
    words.map(lambda text: f"## {text}"),
    words.map(lambda text: f"> {text}\n> more"),
    words.map(lambda text: f"{text}\n==="),
    words.map(lambda text: f"    {text}"),
    st.sampled_from(["---", "***", "- - -", "* * *"]),
    st.sampled_from(
        ["so $x$ is", "$$\nx\n= y\n$$", "\\[\na\n- b\n\\]", "$$ a", "$$\n# a\n$$", "\\[\n\nx\n\\]", "$$\n~~~\n$$"]
    ),
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    text = draw(blocks)
    for block in draw(st.lists(blocks, max_size=6)):
        text += draw(st.sampled_from(["\n", "\n\n", "\n\n\n", "\n  \n"])) + block
    return text + draw(st.sampled_from(["", "\n"]))
