"""llm-decoder tree: searches from a file, at the terminal or as pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import complain, emit_json, emit_line, without_controls
from llm_decoder.cli._search_files import check_file
from llm_decoder.cli._stream import read_stdin

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from llm_decoder.reranker.tree_layout import Card
    from llm_decoder.search.run_file import SearchRun


def tree(
    *,
    file: Annotated[str, typer.Argument(metavar="RUNS", help="A file of runs (.jsonl); - reads standard input.")],
    run: Annotated[
        str | None, typer.Option("--run", help="One run, by its number from 1 or its id.", metavar="N|ID")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Draw it as .png, .svg, .pdf or .html [the last run]. Repeatable."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show searches that `search --runs FILE` or `--tree FILE.jsonl` has kept.

    llm-decoder tree runs.jsonl --run 3 --out tree.html

    Lines that cannot be read are told by their numbers, and the rest is shown.
    """
    from llm_decoder.cli._candidates import emit_rows

    pictures = list(out or ())
    check_pictures(pictures)
    runs = read(file)
    chosen = runs if run is None else [choose(runs, run)]
    if pictures:
        from llm_decoder.reranker.tree_picture import write_picture

        for path in pictures:
            write_picture(chosen[-1], path)
        return
    for one in chosen:
        if as_json:
            emit_json(summary(one))
            continue
        emit_tree(one)
        if one.candidates:
            emit_rows(one.candidates)
        emit_line()


def check_pictures(paths: list[Path]) -> None:
    """Raises typer.BadParameter, or ConfigError where what draws them is not installed."""
    from llm_decoder.reranker.tree_picture import SUFFIXES

    for path in paths:
        problem = check_file(path, SUFFIXES)
        if problem is not None:
            raise typer.BadParameter(problem, param_hint="--out")


def read(name: str) -> list[SearchRun]:
    """The runs of a file. Raises OSError, and MalformedFileError where it has none."""
    from llm_decoder.errors import MalformedFileError
    from llm_decoder.search.run_file import read_runs

    text = read_stdin() if name == "-" else Path(name).read_text(encoding="utf-8", errors="replace")
    runs, problems = read_runs(text.splitlines(), name)
    for problem in problems:
        complain("warning", str(problem))
    if not runs:
        raise MalformedFileError(
            f"[{name}] need a run of a search, got none; `llm-decoder search --runs FILE` writes it"
        )
    return runs


def choose(runs: list[SearchRun], name: str) -> SearchRun:
    """By its id, or its number from 1; of runs with one id the last. Raises typer.BadParameter."""
    if name.isdecimal() and 1 <= int(name) <= len(runs):
        return runs[int(name) - 1]
    for run in reversed(runs):
        if run.header.get("id") == name:
            return run
    raise typer.BadParameter(f"need 1 to {len(runs)} or the id of a run, got {name!r:.100}", param_hint="--run")


def summary(run: SearchRun) -> dict[str, Any]:
    """A run as one object: its header, counts, and candidates."""
    states = [node.state for node in run.tree][1:]
    counts = {f"n_{state}": states.count(state) for state in ("live", "finished", "pruned")}
    return {**run.header, "n_nodes": len(states), **counts, "candidates": run.candidates}


def emit_tree(run: SearchRun) -> None:
    """What was looked at. The way to the best answer stands at the left; a branch stands under the place where it left,
    and goes on in lines that begin with "…"."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from llm_decoder.reranker.tree_layout import lay_out
    from llm_decoder.reranker.tree_scene import title_of

    cards = lay_out(run).cards
    below: list[list[Card]] = [[] for _ in cards]
    for card in cards[1:]:
        below[card.parent].append(card)
    numbers = {id(card): number for number, card in enumerate(cards)}
    root = Tree(Text(title_of(run), style="bold"), guide_style="dim")
    waiting: list[tuple[Tree, Card]] = [(root, cards[0])]
    while waiting:
        level, card = waiting.pop()
        goes_on = level is not root and card is below[card.parent][0]
        entry = level.add(_words(run, card, "… " if goes_on else ""))
        children = below[numbers[id(card)]]
        # The last one in is the next one out.
        waiting += [(level, child) for child in children[:1]]
        waiting += [(entry, child) for child in reversed(children[1:])]
    Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty()).print(root)


def _words(run: SearchRun, card: Card, mark: str) -> Text:
    from rich.text import Text

    text = "".join(cell.text for cell in card.cells) if card.parent < 0 else card_text(run, card)
    style = "bold" if card.is_best else "" if card.is_alive else "dim"
    words = Text(mark + text, style=style)
    if card.label:
        star = "★ " if card.rank == 0 else ""
        words.append(f"  {star}{card.label}", style="yellow" if card.rank == 0 else "dim")
    return words


def card_text(run: SearchRun, card: Card) -> str:
    """A card's tokens on one line."""
    from llm_decoder.reranker.tree_layout import visible

    text = "".join(run.texts.get(node.id, "") for node in card.nodes)
    return without_controls(visible(text)).strip() or "".join(cell.text for cell in card.cells)
