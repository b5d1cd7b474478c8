"""How do groups become batches? Groups of like length together, every candidate a row, padded to the longest."""

from dataclasses import dataclass

import numpy as np
import torch
from vocabulary import LONGEST

_SORTED = 40  # batches whose groups are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """A group as ids: a row of token ids and one of types for each candidate, and the place of the right one."""

    ids: list[list[int]]
    types: list[list[int]]
    gold: int

    @property
    def longest(self):
        """The tokens of the longest row."""
        return max(map(len, self.ids))


def encode(groups, tokenizer):
    """Returns the list of `Encoded` of `groups`; a pair longer than the network is cut, its longer half first."""
    tokenizer.enable_truncation(LONGEST, strategy="longest_first")
    encoded = tokenizer.encode_batch_fast([(g.query, text) for g in groups for text in g.texts])
    rows = iter(encoded)
    result = []
    for g in groups:
        own = [next(rows) for _ in g.texts]
        result.append(Encoded([e.ids for e in own], [e.type_ids for e in own], g.gold))
    return result


def collate(groups):
    """Returns (ids, types, mask), each int64 [n_candidates, n_tokens], and the candidates of each group, a list."""
    rows = [(ids, types) for g in groups for ids, types in zip(g.ids, g.types, strict=True)]
    width = max(len(ids) for ids, _ in rows)
    ids, types, mask = (np.zeros((len(rows), width), np.int64) for _ in range(3))
    for i, (row, kinds) in enumerate(rows):
        ids[i, : len(row)], types[i, : len(row)], mask[i, : len(row)] = row, kinds, 1
    return *(torch.from_numpy(a) for a in (ids, types, mask)), [len(g.ids) for g in groups]


def batches(groups, size, rng):
    """Yields lists of groups of about `size` padded tokens, all groups once, in an order drawn from `rng`."""
    order = rng.permutation(len(groups))
    groups = [groups[i] for i in order]
    mean = np.mean([g.longest * len(g.ids) for g in groups])
    pool = max(1, int(size / mean * _SORTED))
    for start in range(0, len(groups), pool):
        made, batch = [], []
        for g in sorted(groups[start : start + pool], key=lambda g: g.longest):
            if batch and (len(batch) + 1) * g.longest * len(g.ids) > size:
                made.append(batch)
                batch = []
            batch.append(g)
        made.append(batch)
        for i in rng.permutation(len(made)):
            yield made[i]
