"""How do documents become batches? Whole documents stand one after the other in one long row."""

from dataclasses import dataclass

import numpy as np

IGNORED = -100  # target value that the loss leaves out


@dataclass(frozen=True)
class Batch:
    """`inputs` and `targets` are int64 of shape (tokens,), `lengths` the tokens of each document."""

    inputs: np.ndarray
    targets: np.ndarray
    lengths: list


class Pool:
    """Documents read in a new shuffled order every epoch; the place is `state`."""

    def __init__(self, items, seed):
        self.items, self.seed, self.state = items, seed, [0, 0]
        self.order = self._shuffled()

    def _shuffled(self):
        return np.random.default_rng([self.seed, self.state[0]]).permutation(len(self.items))

    def restore(self, state):
        """Goes on from a `state` saved earlier: [epoch, place]."""
        self.state = list(state)
        self.order = self._shuffled()

    def next(self):
        """Returns the next item."""
        if self.state[1] >= len(self.items):
            self.state = [self.state[0] + 1, 0]
            self.order = self._shuffled()
        item = self.items[self.order[self.state[1]]]
        self.state[1] += 1
        return item


class Batches:
    """Draws batches of about `size` tokens from pools of (ids, mask) documents."""

    def __init__(self, pools, size, seed=1):
        self.size = size
        self.pools = {name: Pool(items, seed + i) for i, (name, items) in enumerate(pools.items())}
        self.mean = {name: np.mean([len(ids) for ids, _ in items]) for name, items in pools.items()}
        self.rng = np.random.default_rng(seed)

    def state(self):
        """Returns what `restore` needs to go on from here."""
        places = {name: list(pool.state) for name, pool in self.pools.items()}
        return {"pools": places, "rng": self.rng.bit_generator.state}

    def restore(self, state):
        """Goes on from a `state` returned earlier."""
        for name, place in state["pools"].items():
            self.pools[name].restore(place)
        self.rng.bit_generator.state = state["rng"]

    def _draw(self, mixture):
        """Returns a document; `mixture` gives the share of the tokens for each pool."""
        names = list(mixture)
        chance = np.array([mixture[n] / self.mean[n] for n in names])
        return self.pools[names[self.rng.choice(len(names), p=chance / chance.sum())]].next()

    def next(self, mixture):
        """Returns a `Batch`; the document that passes `size` is the last one."""
        documents, total = [], 0
        while total < self.size:
            documents.append(self._draw(mixture))
            total += len(documents[-1][0])
        return collate(documents)


def collate(documents):
    """Returns the `Batch` of the (ids, mask) pairs `documents`.

    Targets are the inputs shifted by one; `IGNORED` where the mask says so and at the last
    token of a document, which nothing follows.
    """
    inputs = np.concatenate([ids for ids, _ in documents]).astype(np.int64)
    targets = np.concatenate(
        [np.append(np.where(mask[1:], ids[1:], IGNORED), IGNORED) for ids, mask in documents]
    ).astype(np.int64)
    return Batch(inputs, targets, [len(ids) for ids, _ in documents])
