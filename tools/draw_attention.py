"""Draws docs/attention_<method>.png: which block of the GPU computes which part of attention, and in which order.

    python tools/draw_attention.py docs        # needs matplotlib

Left a prompt of six tiles of queries, right one new token with the four query heads that share a KV head. A colour is a
block, a number the order in which it goes over its tiles of keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

N_KEY_TILES = 8
N_QUERY_TILES = 6
N_HEADS = 4
COLOURS = ["#8ecae6", "#ffb703", "#90be6d", "#f28482", "#b8a1d9", "#f6bd60", "#84a59d", "#cdb4db", "#a3b18a", "#e5989b"]
PAGES = [7, 2, 9, 0, 5, 3, 8, 1]


@dataclass(frozen=True)
class Cell:
    """A tile of queries (or a head) against a tile of keys: who computes it, as its how-manieth, and a hatch."""

    block: int
    order: int
    hatch: str = ""


@dataclass(frozen=True)
class Method:
    name: str
    title: str
    prompt: Callable[[int, int], Cell]
    decode: Callable[[int, int], Cell]
    memory: str
    has_pages: bool = False


def split_of(key: int) -> int:
    return key // 2


def first_query(key: int) -> int:
    """The first tile of queries that sees a tile of keys: six tiles of queries end where eight of keys do."""
    return max(0, key - (N_KEY_TILES - N_QUERY_TILES))


def cells_before(key: int) -> int:
    """Cells of a prompt left of this tile of keys."""
    return sum(N_QUERY_TILES - first_query(left) for left in range(key))


METHODS = [
    Method(
        "naive",
        "naive: every score goes to memory",
        lambda query, key: Cell(6, 1, "//"),
        lambda head, key: Cell(6, 1, "//"),
        "memory: all scores, written and read twice",
    ),
    Method(
        "flash_attention_1",
        "FlashAttention: keys outside, queries inside",
        lambda query, key: Cell(0, cells_before(key) + query - first_query(key) + 1),
        lambda head, key: Cell(head, key + 1),
        "memory: each query's state, out and back at every tile of keys",
    ),
    Method(
        "flash_attention_2",
        "FlashAttention-2: a block a tile of queries",
        lambda query, key: Cell(query, key + 1),
        lambda head, key: Cell(head, key + 1),
        "memory: nothing in between; keys again for every tile of queries and head",
    ),
    Method(
        "flash_decoding",
        "Flash-Decoding: keys are split too, then merged",
        lambda query, key: Cell(query, key + 1),
        lambda head, key: Cell(head * 4 + split_of(key), key % 2 + 1),
        "memory: a state a split; keys once a query head",
    ),
    Method(
        "flash_decoding_pp",
        "FlashDecoding++: heads together, one guessed maximum",
        lambda query, key: Cell(query, key + 1),
        lambda head, key: Cell(split_of(key), key % 2 + 1),
        "memory: a sum a split; keys once a KV head; a row whose guess was wrong, again",
    ),
    Method(
        "paged_attention",
        "PagedAttention: keys wherever the table says",
        lambda query, key: Cell(query, key + 1),
        lambda head, key: Cell(head * 4 + split_of(key), key % 2 + 1),
        "memory: a state a split, a table entry a page; keys once a query head",
        has_pages=True,
    ),
    Method(
        "fused",
        "the fused kernel: heads together, split, paged",
        lambda query, key: Cell(query, key + 1),
        lambda head, key: Cell(split_of(key), key % 2 + 1),
        "memory: a state a split, where there are splits; keys once a KV head, shared ones once a step",
        has_pages=True,
    ),
]


def is_seen(query: int, key: int) -> bool:
    return query >= first_query(key)


def draw_cells(axes: Axes, cells: dict[tuple[int, int], Cell], n_rows: int, row_label: str, *, pages: bool) -> None:
    for (row, key), cell in cells.items():
        colour = COLOURS[cell.block % len(COLOURS)]
        axes.add_patch(Rectangle((key, row), 1, 1, facecolor=colour, edgecolor="white", linewidth=2, hatch=cell.hatch))
        axes.text(key + 0.5, row + 0.5, str(cell.order), ha="center", va="center", fontsize=9, color="#222222")
    for key in range(N_KEY_TILES):
        label = f"page {PAGES[key]}" if pages else f"{key}"
        axes.text(key + 0.5, -0.25, label, ha="center", va="bottom", fontsize=7, color="#555555")
    axes.set_xlim(0, N_KEY_TILES)
    axes.set_ylim(n_rows, -0.8)
    axes.set_ylabel(row_label, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)


def draw(method: Method, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.1), width_ratios=[1, 1], layout="constrained")
    prompt = {
        (query, key): method.prompt(query, key)
        for query in range(N_QUERY_TILES)
        for key in range(N_KEY_TILES)
        if is_seen(query, key)
    }
    decode = {(head, key): method.decode(head, key) for head in range(N_HEADS) for key in range(N_KEY_TILES)}
    draw_cells(left, prompt, N_QUERY_TILES, "tiles of queries", pages=method.has_pages)
    draw_cells(right, decode, N_HEADS, "query heads, one token", pages=method.has_pages)
    left.set_title("a prompt: keys from left to right", fontsize=9)
    right.set_title("decode", fontsize=9)
    figure.suptitle(method.title, fontsize=12)
    figure.supxlabel(method.memory, fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for method in METHODS:
        draw(method, folder / f"attention_{method.name}.png")


if __name__ == "__main__":
    main()
