"""A seeded pairwise cover: few rows in which every two levels of any two factors meet."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairwise_cover(factors: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """Rows {factor: level}. Greedy: a row begins with a pair that is still missing and takes, factor by factor, the
    level that completes most missing pairs (Cohen et al. 1997, AETG)."""
    rng = random.Random(seed)
    missing = {
        _pair((a, x), (b, y)) for a, b in itertools.combinations(factors, 2) for x in factors[a] for y in factors[b]
    }
    rows = []
    while missing:
        row = dict(rng.choice(sorted(missing, key=repr)))
        others = [name for name in factors if name not in row]
        rng.shuffle(others)
        for name in others:
            levels = list(factors[name])
            rng.shuffle(levels)
            row[name] = max(levels, key=lambda level: sum(_pair((name, level), at) in missing for at in row.items()))
        missing -= {_pair(a, b) for a, b in itertools.combinations(row.items(), 2)}
        rows.append({name: row[name] for name in factors})
    return rows


def every_level(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the rows, in their order, that bring a level of a factor which none before them has."""
    seen: set[tuple[str, Any]] = set()
    kept = []
    for row in rows:
        if not seen.issuperset(row.items()):
            kept.append(row)
            seen.update(row.items())
    return kept


def cover(factors: Mapping[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """A pairwise cover; under LLM_DECODER_GRID=few only what of it brings every level: sanitizers need ten times as
    long for a row."""
    rows = pairwise_cover(factors, seed)
    return every_level(rows) if os.environ.get("LLM_DECODER_GRID") == "few" else rows


def some(levels: Sequence[Any], n: int) -> list[Any]:
    """All; under LLM_DECODER_GRID=few the first, and n - 1 that lie evenly behind it."""
    return list(levels[:: -(-len(levels) // n)] if os.environ.get("LLM_DECODER_GRID") == "few" else levels)


def _pair(a: tuple[str, Any], b: tuple[str, Any]) -> Pair:
    return (a, b) if a[0] < b[0] else (b, a)
