"""How is a question with its candidates kept? One JSON object a line: a group.

`source` says where it comes from, `split` is "train" or "held_out", `document` names what was split (a story, a
title, an entity): no document is in both. `texts` are the candidates, `gold` is the place of the right one.
`logprobs`, of held-out groups, is how likely the embedded model finds each candidate: nats a token.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

STORIES = ("continuation", "answer")  # the sources of the first task; all others are of the second


@dataclass(frozen=True)
class Group:
    """One query, its candidates, and which of them is right."""

    source: str
    split: str
    document: str
    query: str
    texts: list[str]
    gold: int
    logprobs: list[float] | None = None


def shuffled(source, split, document, query, texts, logprobs=None):
    """Returns a `Group` of `texts`, the first of which is right, in an order that the texts decide."""
    order = list(range(len(texts)))
    random.Random(query + texts[0]).shuffle(order)
    own = logprobs and [logprobs[i] for i in order]
    return Group(source, split, document, query, [texts[i] for i in order], order.index(0), own)


def write_groups(path, groups):
    """Writes `groups` to the JSON Lines file `path` and returns how many there were."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as lines:
        for group in groups:
            lines.write(json.dumps(asdict(group), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_groups(path, split=None):
    """Returns the groups of the file `path`, those of one `split` if it is named."""
    with Path(path).open(encoding="utf-8") as lines:
        groups = [Group(**json.loads(line)) for line in lines]
    return [g for g in groups if split in (None, g.split)]
