"""Shapes of a scene as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from llm_decoder.reranker.tree_scene import COLOURS, Line, Rect, Scene, Words

__all__ = ["MONOSPACE", "colour_rules", "svg_element", "svg_file"]

MONOSPACE = "'DejaVu Sans Mono', Menlo, 'Cascadia Mono', Consolas, 'Liberation Mono', monospace"


def svg_file(scene: Scene) -> str:
    """A file of its own, light or dark as who looks at it has it."""
    style = f"text {{ font-family: {MONOSPACE}; white-space: pre }} {colour_rules()}"
    page = '<rect class="f-page" width="100%" height="100%"/>'
    return svg_element(scene, before=f"<title>{_text(scene.title)}</title><style>{style}</style>{page}") + "\n"


def colour_rules() -> str:
    """CSS: a class for each use of each colour, light, and dark where that is wanted."""
    return f"{_rules(0)} @media (prefers-color-scheme: dark) {{ {_rules(1)} }}"


def _rules(which: int) -> str:
    return " ".join(
        f".{letter}-{kind} {{ {use}: {pair[which]} }}"
        for kind, pair in COLOURS.items()
        for letter, use in (("f", "fill"), ("s", "stroke"), ("b", "background"))
    )


def svg_element(scene: Scene, *, before: str = "", attributes: str = "") -> str:
    """before: markup that stands first in it. attributes: of the element."""
    size = f'width="{_number(scene.width)}" height="{_number(scene.height)}"'
    box = f'viewBox="0 0 {_number(scene.width)} {_number(scene.height)}"'
    shapes = "\n".join(_markup(scene))
    space = 'xmlns="http://www.w3.org/2000/svg"'
    return f"<svg {space} {size} {box} {attributes}>{before}\n{shapes}\n</svg>"


def _markup(scene: Scene) -> Iterator[str]:
    for shape in scene.shapes:
        if isinstance(shape, Rect):
            yield _rect(shape)
        elif isinstance(shape, Line):
            yield _line(shape)
        else:
            yield _words(shape)


def _rect(rect: Rect) -> str:
    classes = [f"f-{rect.kind}"] if rect.kind else []
    style = ' fill="none"' if not rect.kind else ' fill-opacity="0.45"' if rect.pale else ""
    if rect.edge:
        classes.append(f"s-{rect.edge}")
        style += f' stroke-width="{_number(rect.thickness)}"'
    place = f'x="{_number(rect.x)}" y="{_number(rect.y)}" width="{_number(rect.width)}" height="{_number(rect.height)}"'
    corner = f' rx="{_number(rect.radius)}"' if rect.radius else ""
    return f'<rect class="{" ".join(classes)}" {place}{corner}{style}{_node(rect.node)}/>'


def _line(line: Line) -> str:
    r = line.radius
    path = f"M{_number(line.x)} {_number(line.y)}"
    if r:
        side = math.copysign(r, line.to_x - line.x)
        path += f"V{_number(line.turn - r)}q0 {_number(r)} {_number(side)} {_number(r)}"
        path += f"H{_number(line.to_x - side)}q{_number(side)} 0 {_number(side)} {_number(r)}"
    path += f"V{_number(line.to_y)}"
    return f'<path class="s-{line.kind}" fill="none" stroke-width="{_number(line.thickness)}" d="{path}"/>'


def _words(words: Words) -> str:
    anchor = "" if words.anchor == "start" else f' text-anchor="{words.anchor}"'
    weight = "" if words.weight == "normal" else f' font-weight="{words.weight}"'
    place = f'x="{_number(words.x)}" y="{_number(words.y)}" font-size="{_number(words.size)}"'
    return f'<text class="f-{words.kind}" {place}{anchor}{weight}{_node(words.node)}>{_text(words.text)}</text>'


def _node(node: int | None) -> str:
    return "" if node is None else f' data-node="{node}"'


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(text: str) -> str:
    """What XML allows of it, escaped."""
    return escape(
        "".join(c if c >= " " and c not in "\ufffe\uffff" and not "\ud800" <= c <= "\udfff" else "�" for c in text)
    )
