"""A search as a picture: PNG and PDF through matplotlib (the extra viz), SVG and HTML by themselves."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from llm_decoder.errors import ConfigError, InvalidRequestError
from llm_decoder.reranker.tree_page import page_of
from llm_decoder.reranker.tree_scene import COLOURS, Line, Rect, Scene, Words, draw_scene
from llm_decoder.reranker.tree_svg import svg_file
from llm_decoder.search.run_file import SearchRun

__all__ = ["SUFFIXES", "check_picture", "dots_per_inch", "write_picture"]

SUFFIXES = (".png", ".svg", ".pdf", ".html")
_DPI = 192
_UNITS = 96  # of a scene, an inch
_MAX_SIDE = 60_000  # dots; matplotlib draws up to 2**16
_MAX_DOTS = 60e6
_FONTS = ("DejaVu Sans Mono", "DejaVu Sans")  # come with matplotlib
_PLACEHOLDERS = "Last Resort"  # comes with matplotlib, too: a sign a script
_NO_GLYPH = "▯"


def check_picture(path: Path) -> None:
    """Raises InvalidRequestError for a name that is no picture's, ConfigError where what draws it is not installed."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidRequestError(f"[tree] need a file that ends in {', '.join(SUFFIXES)}, got {path.name!r:.100}")
    if path.suffix.lower() in (".png", ".pdf"):
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"[tree] {path.suffix} needs matplotlib, which is not installed: pip install 'llm_decoder[viz]', or "
                "name a file that ends in .svg or .html"
            ) from None


def write_picture(run: SearchRun, path: Path) -> None:
    """Draws one search into a file, by the end of its name. The same run gives the same bytes.

    A character that no font here has is drawn as ▯ in PNG and PDF. Raises as check_picture, and OSError.
    """
    check_picture(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        path.write_text(page_of(run), encoding="utf-8", errors="replace")
    elif suffix == ".svg":
        path.write_text(svg_file(draw_scene(run)), encoding="utf-8")
    else:
        _write_figure(draw_scene(run), path, suffix)


def dots_per_inch(scene: Scene) -> float:
    """As many as screens show, fewer where a picture would have more dots than matplotlib draws."""
    width, height = scene.width / _UNITS, scene.height / _UNITS
    return min(_DPI, _MAX_SIDE / max(width, height), math.sqrt(_MAX_DOTS / (width * height)))


def _write_figure(scene: Scene, path: Path, suffix: str) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = scene.width / _UNITS, scene.height / _UNITS
    options: dict[str, Any] = {"metadata": {"CreationDate": None}}
    if suffix == ".png":
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    with matplotlib.rc_context({"pdf.fonttype": 42, "text.parse_math": False}):
        figure = Figure(figsize=size, facecolor=COLOURS["page"][0])
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, scene.width)
        axes.set_ylim(scene.height, 0)
        painter = _Painter(axes, *_fonts_for(scene))
        for shape in scene.shapes:
            painter.draw(shape)
        figure.savefig(path, dpi=dots_per_inch(scene), **options)


class _Painter:
    def __init__(self, axes: Any, fonts: list[str], unknown: set[str]) -> None:
        self._axes = axes
        self._fonts = fonts
        self._unknown = re.compile("[" + re.escape("".join(sorted(unknown))) + "]") if unknown else None

    def draw(self, shape: Rect | Line | Words) -> None:
        if isinstance(shape, Rect):
            self._rect(shape)
        elif isinstance(shape, Line):
            self._line(shape)
        else:
            self._words(shape)

    def _rect(self, rect: Rect) -> None:
        from matplotlib.patches import FancyBboxPatch, Rectangle

        style: dict[str, Any] = {
            "facecolor": COLOURS[rect.kind][0] if rect.kind else "none",
            "edgecolor": COLOURS[rect.edge][0] if rect.edge else "none",
            "linewidth": rect.thickness * 72 / _UNITS if rect.edge else 0,
            "alpha": 0.45 if rect.pale else None,
        }
        corner = rect.x, rect.y
        if rect.radius:
            box = f"round,pad=0,rounding_size={rect.radius}"
            self._axes.add_artist(FancyBboxPatch(corner, rect.width, rect.height, boxstyle=box, **style))
        else:
            self._axes.add_artist(Rectangle(corner, rect.width, rect.height, **style))

    def _line(self, line: Line) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path as Curve

        points: list[tuple[float, float]] = [(line.x, line.y)]
        codes = [Curve.MOVETO]
        r = line.radius
        if r:
            side = math.copysign(r, line.to_x - line.x)
            points += [(line.x, line.turn - r), (line.x, line.turn), (line.x + side, line.turn)]
            points += [(line.to_x - side, line.turn), (line.to_x, line.turn), (line.to_x, line.turn + r)]
            codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3] * 2
        points.append((line.to_x, line.to_y))
        codes.append(Curve.LINETO)
        thickness = line.thickness * 72 / _UNITS
        style = {"edgecolor": COLOURS[line.kind][0], "facecolor": "none", "linewidth": thickness}
        self._axes.add_artist(PathPatch(Curve(points, codes), **style))

    def _words(self, words: Words) -> None:
        text = self._unknown.sub(_NO_GLYPH, words.text) if self._unknown else words.text
        self._axes.text(
            words.x,
            words.y,
            text,
            fontsize=words.size * 72 / _UNITS,
            family=self._fonts,
            weight=words.weight,
            color=COLOURS[words.kind][0],
            ha={"start": "left", "middle": "center", "end": "right"}[words.anchor],
            va="baseline",
        )


def _fonts_for(scene: Scene) -> tuple[list[str], set[str]]:
    """Fonts that together have the characters of the scene, and those that none has."""
    from matplotlib import font_manager

    missing = {c for shape in scene.shapes if isinstance(shape, Words) for c in shape.text}
    fonts = list(_FONTS)
    for name in _FONTS:
        missing -= _characters(font_manager.findfont(name))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if not missing:
            break
        is_new = entry.name not in fonts and not entry.name.startswith(_PLACEHOLDERS)
        found = missing & _characters(entry.fname) if is_new else set()
        if found:
            fonts.append(entry.name)
            missing -= found
    return fonts, missing


def _characters(file: str) -> set[str]:
    """Of a font; none of one whose glyphs are pictures, which matplotlib cannot draw."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except RuntimeError:
        return set()
    return {chr(code) for code in font.get_charmap()} if font.scalable else set()
