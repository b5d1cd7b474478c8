"""Which documents, in token ids, does the model read, and how often?

Stories are cut into pools by source; a stage of the training is a mixture of pools.
"""

import random

import numpy as np
from chat import ASSISTANT, END, END_OF_TEXT, SYSTEM_PROMPT, conversation, plain_story
from prompts import noun_lexicon, request_for
from smalltalk import HELLO, HELLO_ANSWERS
from text import stable_number

VARIANTS = {"tiny": 5, "child": 3, "other": 3}  # different requests written for one story
OWN_REPEATS = 6  # the model's own small talk against the rest of it

# Share of the tokens that each pool gets, for the stages of the training: plain stories, conversations, and at last
# fewer of the short stories, which have been read often enough by then.
STAGES = [
    {
        "plain/tiny": 0.42,
        "plain/child": 0.12,
        "plain/other": 0.05,
        "told/tiny": 0.24,
        "told/child": 0.10,
        "told/other": 0.03,
        "visit": 0.02,
        "smalltalk": 0.02,
    },
    {
        "plain/tiny": 0.14,
        "plain/child": 0.04,
        "plain/other": 0.01,
        "told/tiny": 0.50,
        "told/child": 0.14,
        "told/other": 0.04,
        "visit": 0.09,
        "smalltalk": 0.04,
    },
    {
        "plain/tiny": 0.10,
        "plain/child": 0.10,
        "plain/other": 0.02,
        "told/tiny": 0.28,
        "told/child": 0.32,
        "told/other": 0.08,
        "visit": 0.06,
        "smalltalk": 0.04,
    },
]

_THANKS = [
    ("Thank you", "You are welcome! I am glad that you liked it."),
    ("Thanks!", "You are welcome! Would you like to hear another story?"),
    ("I liked that story.", "Thank you! Would you like to hear another story?"),
    ("Good night", "Good night! Sweet dreams."),
    ("Bye", "Goodbye! Come back soon for another story."),
]


def group(story):
    """Returns the pool name that a story's source belongs to."""
    return {"tinystories": "tiny", "generated-child": "child"}.get(story.source, "other")


def _requests(story, nouns, count):
    """Returns `count` requests for `story`, the one it was written for first if there is one."""
    rng = random.Random(stable_number(story.text))
    given = [story.request] if story.request else []
    return given + [request_for(story.text, nouns, rng, story.title) for _ in range(count - len(given))]


def _told(story, nouns):
    """Returns the conversations in which `story` is the answer; every seventh has a system text."""
    return [
        conversation([(request, story.text)], SYSTEM_PROMPT if (i + len(story.text)) % 7 == 0 else None)
        for i, request in enumerate(_requests(story, nouns, VARIANTS[group(story)]))
    ]


def _visit(story, nouns):
    """Returns one conversation with small talk before the story, after it, or both."""
    rng = random.Random(stable_number(story.text) + 1)
    turns = [(request_for(story.text, nouns, rng, story.title), story.text)]
    kind = rng.choice(["before", "after", "both"])
    if kind != "after":
        turns.insert(0, (rng.choice(HELLO), rng.choice(HELLO_ANSWERS)))
    if kind != "before":
        turns.append(rng.choice(_THANKS))
    return conversation(turns)


def documents(stories, smalltalk):
    """Returns {pool: list of document texts} for `stories` and the (own, other) small-talk pairs."""
    nouns = noun_lexicon(s.text for s in stories if s.source == "tinystories")
    pools = {name: [] for name in STAGES[0]}
    for story in stories:
        pools["plain/" + group(story)].append(plain_story(story.text))
        pools["told/" + group(story)].extend(_told(story, nouns))
        if group(story) == "tiny":
            pools["visit"].append(_visit(story, nouns))
    own, other = smalltalk
    pools["smalltalk"] = [conversation([pair]) for pair in own * OWN_REPEATS + other]
    return pools


def encode(pools, tokenizer, longest):
    """Returns {pool: list of int16 arrays}: every document with its begin token and an end.

    Documents of more than `longest` tokens are left out.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = {}
    for name, texts in pools.items():
        rows = [e.ids for e in tokenizer.encode_batch(texts)]
        rows = [r if r[-1] == end else [*r, end] for r in rows]
        encoded[name] = [np.array(r, dtype=np.int16) for r in rows if len(r) <= longest]
    return encoded


def answer_mask(ids, tokenizer):
    """Returns a bool array: which tokens of the document `ids` the model must learn to write.

    All of a plain story; in a conversation the answers, not what the user says.
    """
    assistant, end = tokenizer.token_to_id(ASSISTANT), tokenizer.token_to_id(END)
    starts = np.flatnonzero(ids == assistant)
    if len(starts) == 0:
        return np.ones(len(ids), dtype=bool)
    ends = np.flatnonzero(ids == end)
    mask = np.zeros(len(ids), dtype=bool)
    for start in starts:
        mask[start + 1 : ends[ends > start][0] + 2] = True
    mask[-1] = True
    return mask
