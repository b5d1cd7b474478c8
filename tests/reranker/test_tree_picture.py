"""Pictures of searches: where things stand, what they say, and that a token's text is never more than text."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from trees import Grown, searched

from llm_decoder.errors import ConfigError, InvalidRequestError
from llm_decoder.reranker.tree_layout import LABEL, Card, lay_out
from llm_decoder.reranker.tree_page import page_of
from llm_decoder.reranker.tree_picture import SUFFIXES, dots_per_inch, write_picture
from llm_decoder.reranker.tree_scene import Line, Rect, Scene, Words, draw_scene, tint_of
from llm_decoder.reranker.tree_svg import svg_file
from llm_decoder.search.run_file import SearchRun

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]


def boxes_of(card: Card) -> list[Box]:
    """left, top, right, bottom of a card and of its label."""
    boxes = [(card.left, card.y, card.left + card.width, card.bottom)]
    if card.label:
        half = card.label_width / 2
        boxes.append((card.x - half, card.bottom, card.x + half, card.bottom + LABEL - 1))
    return boxes


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def lines_of(run: SearchRun) -> list[Line]:
    return [shape for shape in draw_scene(run, with_header=False).shapes if isinstance(shape, Line)]


@pytest.mark.parametrize(
    ("width", "depth", "seed"),
    [*((width, depth, seed) for width, depth in ((1, 5), (2, 12), (4, 40)) for seed in range(8)), (16, 100, 0)],
)
def test_no_card_and_no_label_stands_on_another(width: int, depth: int, seed: int) -> None:
    boxes = [(n, box) for n, card in enumerate(lay_out(searched(seed, width, depth)).cards) for box in boxes_of(card)]
    boxes.sort(key=lambda pair: pair[1][1])
    for i, (a, first) in enumerate(boxes):
        for b, second in boxes[i + 1 :]:
            if second[1] >= first[3]:
                break
            assert a == b or not overlap(first, second), (a, first, b, second)


@pytest.mark.parametrize("seed", range(12))
def test_no_line_goes_through_a_card_or_a_label(seed: int) -> None:
    run = searched(seed, 8, 30)
    # Cards and labels have the page's colour behind them.
    shapes = draw_scene(run, with_header=False).shapes
    cards = [(s.x, s.y, s.x + s.width, s.y + s.height) for s in shapes if isinstance(s, Rect) and s.kind == "page"]
    assert len(cards) == sum(1 + bool(card.label) for card in lay_out(run).cards)
    for line in lines_of(run):
        low, high = sorted((line.x, line.to_x))
        parts = [(line.x, line.y, line.x, line.turn), (low, line.turn, high, line.turn)]
        parts.append((line.to_x, line.turn, line.to_x, line.to_y))
        for part in parts:
            for card in cards:
                assert not overlap(part, (card[0] + 0.1, card[1] + 0.1, card[2] - 0.1, card[3] - 0.1))


def test_time_goes_down_and_steps_stand_at_one_height() -> None:
    cards = lay_out(searched(1, 4, 30)).cards
    begins: dict[int, float] = {}
    for card in cards[1:]:
        assert card.y > cards[card.parent].bottom
        assert begins.setdefault(card.nodes[0].step, card.y) == card.y
    assert [y for _, y in sorted(begins.items())] == sorted(begins.values())


def test_tokens_without_a_branch_are_one_card_and_all_are_there() -> None:
    run = searched(2, 4, 30)
    cards = lay_out(run).cards
    assert sorted(node.id for card in cards for node in card.nodes) == list(range(len(run.tree)))
    n_children = [0] * len(run.tree)
    for node in run.tree.nodes[1:]:
        n_children[node.parent] += 1
    for card in cards:
        assert all(n_children[node.id] == 1 for node in card.nodes[:-1])
        assert card.is_leaf == (n_children[card.nodes[-1].id] == 0)


def test_the_way_to_the_best_answer_goes_straight_down_and_stands_out() -> None:
    run = searched(3, 4, 30)
    best = [card for card in lay_out(run).cards if card.is_best]
    assert [node.id for card in best for node in card.nodes][1:] == [
        n.id for n in run.tree.path(run.candidates[0]["leaf"])
    ]
    assert len({round(card.x, 6) for card in best}) == 1
    assert best[-1].label == "1: -0.500"
    shapes = draw_scene(run).shapes
    assert sum(isinstance(s, Line) and s.kind == "best" for s in shapes) == len(best) - 1
    assert any(isinstance(s, Words) and s.text == "★ 1: -0.500" for s in shapes)


def test_a_branch_that_was_let_go_is_pale_and_says_why() -> None:
    grown = Grown()
    stem = grown.add(0, " a")
    good = grown.add(stem, " b", state="finished", reason="stop")
    bad = grown.add(stem, " c")
    grown.add(bad, " d", state="pruned", reason="no pages")
    run = grown.run(good)
    shapes = draw_scene(run).shapes
    pale = {shape.node for shape in shapes if isinstance(shape, Rect) and shape.pale}
    assert pale == {bad, bad + 1}
    assert any(isinstance(shape, Words) and shape.text == "no pages" for shape in shapes)


def test_labels_tell_the_final_score_where_there_is_one() -> None:
    grown = Grown()
    leaves = [grown.add(0, f" {i}", state="finished") for i in range(2)]
    run = grown.run(*leaves)
    run.candidates[0] |= {"rerank_score": 2.0, "final_score": 0.75}
    run.candidates[1] |= {"rerank_score": 1.0, "final_score": 0.25}
    assert {card.label for card in lay_out(run).cards} == {"", "1: 0.750", "2: 0.250"}
    header = [shape.text for shape in draw_scene(run).shapes if isinstance(shape, Words)]
    assert {"beam", "rerank", "final", "2.000", "0.750"} <= set(header)


def test_tints_go_from_nearly_certain_to_hardly_expected() -> None:
    assert [tint_of(x) for x in (0.0, -0.05, -0.06, -1.0, -1.1, -4.0, -5.0, -5.1, -1e9)] == [
        *("p0", "p0", "p1", "p3", "p4", "p6", "p6", "p7", "p7")
    ]


def test_no_line_of_a_card_is_wider_than_it() -> None:
    for card in lay_out(searched(5, 4, 60)).cards:
        for cell in card.cells:
            assert cell.x + cell.width <= card.width
            assert cell_len(cell.text) * 12 * 0.6025 <= cell.width + 1e-6
            assert (cell.line + 1) * 18 <= card.height


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("\n\n", "↵↵"),
        ("", "⟨7⟩"),
        ("  ", "␣␣"),
        ("\x1b[2J", "�[2J"),
        ("\u202e", "�"),
        ("\ud800", "�"),
        ("👨\u200d👩", "👨👩"),
    ],
)
def test_what_cannot_be_seen_has_a_sign(text: str, sign: str) -> None:
    grown = Grown()
    grown.add(0, text)
    (cell,) = lay_out(grown.run()).cards[1].cells
    assert cell.text == sign


ODD = [
    "<script>alert(1)</script>",
    "]]>",
    '"&amp;',
    "\x00\x0b",
    "\ud800",
    "\ufffe",
    "$x^2$",
    "--></svg>",
    " 你好",
    " שלום",
    "😀",
]


def odd_run() -> SearchRun:
    grown = Grown()
    stem = 0
    for text in ODD:
        grown.add(stem, text, state="pruned", reason=text)
        stem = grown.add(stem, text)
    odd = "".join(ODD)
    run = grown.run(stem, prompt=odd, model=odd)
    run.candidates[0]["finish_reason"] = odd
    return run


def test_an_svg_is_xml_whatever_the_tokens_are() -> None:
    root = ElementTree.fromstring(svg_file(draw_scene(odd_run())))
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert "<script>alert(1" in " ".join(texts)
    assert not list(root.iter("script"))
    assert not list(root.iter(f"{SVG}script"))


def test_an_svg_has_every_token_once_with_its_text() -> None:
    run = searched(4, 4, 20)
    root = ElementTree.fromstring(svg_file(draw_scene(run)))
    nodes = [int(element.get("data-node", "")) for element in root.iter(f"{SVG}text") if "data-node" in element.attrib]
    assert sorted(nodes) == list(range(len(run.tree)))
    tints = [element for element in root.iter(f"{SVG}rect") if "data-node" in element.attrib]
    assert len(tints) == len(run.tree) - 1


def test_a_page_lets_no_text_be_markup() -> None:
    page = page_of(odd_run())
    assert page.count("<script") == 2
    assert page.count("</svg>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data
    assert json.loads(data[1])["texts"][1] == ODD[0]


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = page_of(searched(0))
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_run_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        write_picture(searched(6, 3, 8), tmp_path / f"{name}{suffix}")
    first = (tmp_path / f"a{suffix}").read_bytes()
    assert first == (tmp_path / f"b{suffix}").read_bytes()
    assert first.startswith({".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<svg", ".html": b"<!doctype html>"}[suffix])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_trees_are_drawn(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    root_only = SearchRun({}, candidates=[{"text": "only"}, {"text": "\ud800", "leaf": 9}])
    for number, run in enumerate((odd_run(), root_only, searched(0, 1, 3), Grown().run(prompt=None))):
        write_picture(run, tmp_path / f"{number}{suffix}")
        assert (tmp_path / f"{number}{suffix}").stat().st_size > 500
    assert capfd.readouterr() == ("", "")


def test_a_name_of_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"need a file that ends in \.png, \.svg, \.pdf, \.html, got 'tree.gif'"
    ):
        write_picture(searched(0), tmp_path / "tree.gif")


def test_without_matplotlib_svg_and_html_are_drawn_and_png_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for suffix in (".svg", ".html"):
        write_picture(searched(0), tmp_path / f"tree{suffix}")
    with pytest.raises(ConfigError, match=r"pip install 'llm_decoder\[viz\]'"):
        write_picture(searched(0), tmp_path / "tree.png")


@pytest.mark.parametrize(("width", "height"), [(800, 300), (800, 1_000_000), (30_000, 20_000)])
def test_a_picture_has_no_more_dots_than_matplotlib_draws(width: int, height: int) -> None:
    dpi = dots_per_inch(Scene("", width, height, []))
    n_wide, n_high = width / 96 * dpi, height / 96 * dpi
    assert max(n_wide, n_high) < 2**16
    assert n_wide * n_high <= 60.1e6
    assert dpi == 192 or max(n_wide, n_high) > 59_000 or n_wide * n_high > 59e6
