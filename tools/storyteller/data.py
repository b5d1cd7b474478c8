"""Which texts is the storyteller trained on?

`load` reads the JSON Lines files of a data folder and returns simple stories, each one
with its title where it has one, split into train and held-out by a hash of the text.
"""

import json
import lzma
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import smalltalk
from text import clean, is_held_out, is_plain_english, rare_fraction, words

MAX_CHARACTERS = 3700  # about 950 tokens: a story and its request fit the context of 1024
_LEAST_STORIES = 5  # a word is simple when it stands in this many of the simple stories
# Largest fraction of words outside the simple vocabulary, per category of synthetic stories.
_RARE_LIMIT = {
    "generated-child": 0.065,
    "generated-bedtime": 0.075,
}
_TITLE = re.compile(r"called '(.+?)'[.]?$")
_CREDITS = re.compile(r"\n+\W*(translated by|first paragraph|illustrat|written by).*", re.I | re.S)
_LETTERS = re.compile(r"[^a-z]+")


@dataclass(frozen=True)
class Story:
    """One story: its text, the source it came from, a title and the request it was written for."""

    text: str
    source: str
    title: str | None = None
    request: str | None = None


def read_jsonl(path):
    """Returns the records of the xz-compressed JSON Lines file `path`."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tiny_stories(folder):
    """Returns the TinyStories texts."""
    records = read_jsonl(folder / "stories_tinystories.jsonl.xz")
    return [Story(clean(r["text"]), "tinystories") for r in records]


def picture_books(folder):
    """Returns picture-book texts without their credit lines."""
    records = read_jsonl(folder / "stories_asp_pb_bookdash.jsonl.xz")
    stories = [Story(_CREDITS.sub("", clean(r["text"])), "picture-book", clean(r["title"])) for r in records]
    return [s for s in stories if len(s.text) > 300]


def synthetic_stories(folder, known):
    """Returns the synthetic stories whose words are nearly all in the set `known`."""
    stories = []
    for r in read_jsonl(folder / "stories_synth_ys.jsonl.xz"):
        text, request = _without_heading(clean(r["response"])), clean(r["prompt"])
        if rare_fraction(text, known) <= _RARE_LIMIT.get(r["cat"], -1):
            title = _TITLE.search(request)
            stories.append(Story(text, r["cat"], title and title.group(1), request))
    return stories


def _without_heading(text):
    """Returns `text` without a first line that is only a title, and without markdown stars."""
    first, _, rest = text.replace("*", "").partition("\n")
    return rest.strip() if rest and len(first) < 80 and first[-1:] not in '.!?"' else text.replace("*", "")


def simple_vocabulary(stories):
    """Returns the lower-case words that stand in at least `_LEAST_STORIES` of `stories`."""
    counts = Counter()
    for story in stories:
        counts.update({w.lower() for w in words(story.text)})
    return {w for w, n in counts.items() if n >= _LEAST_STORIES}


def _usable(story):
    """True for stories that are whole, short enough and free of odd characters."""
    return (
        150 < len(story.text) <= MAX_CHARACTERS
        and is_plain_english(story.text)
        and story.text[-1] in ".!?\"'"
        and "http" not in story.text
    )


def _unique(stories):
    """Returns `stories` without those whose first 200 letters were seen before."""
    seen, kept = set(), []
    for story in stories:
        key = _LETTERS.sub("", story.text.lower())[:200]
        if key not in seen:
            seen.add(key)
            kept.append(story)
    return kept


def load_stories(folder):
    """Returns (train, held_out): lists of `Story` from the data folder `folder`."""
    folder = Path(folder)
    simple = tiny_stories(folder) + picture_books(folder)
    stories = simple + synthetic_stories(folder, simple_vocabulary(simple))
    stories = _unique([s for s in stories if _usable(s)])
    return (
        [s for s in stories if not is_held_out(s.text)],
        [s for s in stories if is_held_out(s.text)],
    )


def load_smalltalk(folder):
    """Returns (own, other): small-talk pairs of (question, answer).

    `own` are written for this model and read often, `other` come from the data folder.
    """
    folder = Path(folder)
    chitchat = smalltalk.chitchat_pairs(read_jsonl(folder / "chat_personality_chitchat.jsonl.xz"))
    sums = [clean(r["question"]) for r in read_jsonl(folder / "math_gsm8k_train.jsonl.xz")[:300]]
    return smalltalk.own_pairs(), chitchat + smalltalk.unknown_pairs(sums)
