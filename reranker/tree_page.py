"""A search as one HTML file that needs nothing else: the tree to walk through, its candidates beside it."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_decoder.reranker.tree_scene import COLOURS, draw_legend, draw_scene, given_scores, score_text, tint_of
from llm_decoder.reranker.tree_svg import MONOSPACE, colour_rules, svg_element
from llm_decoder.search.run_file import SearchRun

__all__ = ["page_of"]

_TEMPLATES = Path(__file__).parent / "templates"


def page_of(run: SearchRun) -> str:
    """The page. Nothing is fetched; a policy in it lets no script run but its own, whatever the tokens are."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, keep_trailing_newline=True)
    scene = draw_scene(run, with_header=False)
    script = _part("tree.js")
    style = (
        _variables() + colour_rules() + f"svg text {{ font-family: {MONOSPACE}; white-space: pre }}" + _part("tree.css")
    )
    prompt = run.header.get("prompt")
    scores = given_scores(run)
    data = {
        "nodes": [asdict(node) for node in run.tree],
        "texts": [run.texts.get(node.id, "") for node in run.tree],
        "tints": [tint_of(node.logprob) for node in run.tree],
        "prompt": prompt if isinstance(prompt, str) else "",
    }
    page: str = environment.get_template("tree.html").render(
        title=scene.title,
        prompt=data["prompt"],
        legend=svg_element(draw_legend()),
        tree=svg_element(
            scene, attributes='id="tree" tabindex="0" role="application" aria-label="Tokens of the search"'
        ),
        scores=scores,
        candidates=[_row(candidate, scores, len(run.tree)) for candidate in run.candidates],
        data=data,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )
    return page


def _part(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _variables() -> str:
    light, dark = ("; ".join(f"--{kind}: {pair[i]}" for kind, pair in COLOURS.items()) for i in (0, 1))
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def _row(candidate: dict[str, Any], scores: list[str], n_nodes: int) -> dict[str, Any]:
    leaf = candidate.get("leaf")
    return {
        "leaf": leaf if isinstance(leaf, int) and 0 < leaf < n_nodes else None,
        "scores": [score_text(candidate.get(name)) for name in scores],
        "text": candidate.get("text", ""),
        "finish_reason": candidate.get("finish_reason"),
    }


def _hash(text: str) -> str:
    """As a content security policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
