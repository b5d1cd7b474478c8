"""Which stories are cut into a beginning and what follows, and who has seen them?

The embedded model was trained on most of them. Held out are those that it was not trained on: its own held-out stories,
and a fifth of the tales that its recipe left out for a few words too many. The reranker sees none of these either.
"""

from dataclasses import dataclass
from pathlib import Path

import storyteller  # noqa: F401
from data import MAX_CHARACTERS, load_stories, picture_books, read_jsonl, simple_vocabulary, tiny_stories
from prompts import noun_lexicon
from text import clean, is_held_out, is_plain_english, rare_fraction, stable_number

_NEAR = 0.13  # most words outside the simple vocabulary in a tale that is still near to the model's stories
_NEAR_HELD_OUT_PERCENT = 20


@dataclass(frozen=True)
class Tale:
    """A story: its text, where it is from, its title if it has one, its split."""

    text: str
    source: str
    title: str | None
    split: str


def _near_stories(folder, taken):
    """Returns the synthetic tales in nearly simple words whose texts are not in the set `taken`."""
    simple = simple_vocabulary(tiny_stories(folder) + picture_books(folder))
    tales = []
    for record in read_jsonl(folder / "stories_synth_ys.jsonl.xz"):
        if record["cat"] not in ("generated-child", "generated-bedtime"):
            continue
        text = clean(record["response"]).replace("*", "")
        first, _, rest = text.partition("\n")
        text = rest.strip() if rest and len(first) < 80 and first[-1:] not in '.!?"' else text
        if text in taken or not is_plain_english(text) or not 150 < len(text) <= MAX_CHARACTERS:
            continue
        if rare_fraction(text, simple) <= _NEAR and not is_held_out(text):
            held_out = stable_number("reranker" + text) % 100 < _NEAR_HELD_OUT_PERCENT
            tales.append(Tale(text, "near-" + record["cat"], None, "held_out" if held_out else "train"))
    return tales


def load_tales(folder):
    """Returns (tales, nouns): the stories of the data folder `folder`, and the nouns that requests are made of."""
    folder = Path(folder)
    train, held_out = load_stories(folder)
    tales = [Tale(s.text, s.source, s.title, "train") for s in train]
    tales += [Tale(s.text, s.source, s.title, "held_out") for s in held_out]
    tales += _near_stories(folder, {t.text for t in tales})
    return tales, noun_lexicon(t.text for t in tales if t.split == "train")
