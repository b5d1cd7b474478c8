"""Which request could a child have made that this story answers?

A small rule, no tagger: a word is a noun when the corpus often shows it between an
article and a punctuation mark ("the park.", "a dog,"). The things a story is about are
the first noun phrases with "a" or "an" in its opening sentences; the hero is the first
"named X" or the first capitalised word in the middle of a sentence.
"""

import re
from collections import Counter

_NOUN_SPOT = re.compile(r"\b(?:the|a|an|his|her|my|your|their) ([a-z]+)[.,!?]")
_NOT_TOPICS = {
    "one",
    "other",
    "others",
    "time",
    "day",
    "way",
    "while",
    "lot",
    "bit",
    "moment",
    "same",
    "rest",
    "best",
    "first",
    "next",
    "last",
    "end",
    "it",
    "minute",
    "year",
    "side",
    "little",
    "big",
    "small",
    "happy",
    "special",
    "old",
    "new",
    "story",
    "smile",
    "sound",
    "mess",
    "sudden",
    "idea",
    "thing",
    "name",
    "days",
    "times",
    "two",
    "top",
    "back",
    "most",
}
_PHRASE = re.compile(r"\b(an?) ((?:[a-z]+ )?)([a-z]+)\b")
_NAMED = re.compile(r"\b(?:named|called|name was|name is) ([A-Z][a-z]+)")
_MIDDLE_NAME = re.compile(r"[a-z,] ([A-Z][a-z]{2,})\b")
_NOT_NAMES = {
    "March",
    "May",
    "April",
    "June",
    "July",
    "August",
    "Yes",
    "No",
    "And",
    "But",
    "You",
    "It",
    "He",
    "Once",
    "The",
    "Then",
    "There",
    "They",
    "She",
    "One",
    "Mum",
    "Mom",
    "Mommy",
    "Mummy",
    "Dad",
    "Daddy",
    "God",
    "Christmas",
    "Sunday",
    "Monday",
    "Saturday",
    "Friday",
    "English",
    "What",
}

ABOUT = [
    "Tell me a story about {x}.",
    "Tell me a story about {x}.",
    "Can you tell me a story about {x}?",
    "Please tell me a story about {x}.",
    "Write a story about {x}.",
    "Write a short story about {x}.",
    "Tell me a short story about {x}.",
    "I want a story about {x}.",
    "Tell a bedtime story about {x}.",
    "A story about {x}, please.",
    "I would like to hear a story about {x}.",
]
ANY = [
    "Tell me a story.",
    "Tell me a bedtime story.",
    "Please tell me a story!",
    "Can you tell me a story?",
    "Tell me a short story.",
    "I want to hear a story.",
    "Write a short story.",
]
NAMED = [
    'Write a bedtime story called "{x}".',
    'Tell me a story called "{x}".',
    'Write a story with the title "{x}".',
]


def noun_lexicon(texts, least=4):
    """Returns the set of words that stand at least `least` times in a noun's place in `texts`."""
    counts = Counter()
    for text in texts:
        counts.update(_NOUN_SPOT.findall(text))
    return {w for w, n in counts.items() if n >= least} - _NOT_TOPICS


def opening(text, sentences=4):
    """Returns the first sentences of `text`, where a story says what it is about."""
    return " ".join(re.split(r"(?<=[.!?])\s+", text)[:sentences])


def hero(text):
    """Returns the name of the main figure in the opening of `text`, or None."""
    start = opening(text)
    for name in _NAMED.findall(start) + _MIDDLE_NAME.findall(start):
        if name not in _NOT_NAMES:
            return name
    return None


def things(text, nouns):
    """Returns noun phrases such as "a red ball" from the opening of `text`, in order."""
    found, seen = [], set()
    for article, adjective, noun in _PHRASE.findall(opening(text)):
        if noun not in nouns and adjective.strip() in nouns:
            noun, adjective = adjective.strip(), ""
        if noun in nouns and noun not in seen:
            seen.add(noun)
            found.append(f"{article} {adjective}{noun}")
    return found


def topic(text, nouns, rng):
    """Returns what the story is about in words ("a dog and a red ball"), or None.

    `rng` is a random.Random; it chooses how many of the found things are named.
    """
    found, name = things(text, nouns)[:3], hero(text)
    rng.shuffle(found)
    chosen = found[: rng.choice([1, 1, 2, 2, 3])]
    named = re.search(r"\b(an? (?:[a-z]+ ){1,2})(?:named|called) ([A-Z][a-z]+)", opening(text))
    if named and rng.random() < 0.2:
        return named.group(0)
    if name and chosen and rng.random() < 0.25:
        return f"{name} and {chosen[0]}"
    if name and (not chosen or rng.random() < 0.1):
        return name
    if not chosen:
        return None
    return chosen[0] if len(chosen) == 1 else ", ".join(chosen[:-1]) + " and " + chosen[-1]


def casual(request, rng):
    """Returns `request` as typed by different people: some lower-case, some without the end mark."""
    if rng.random() < 0.2:
        request = request[0].lower() + request[1:]
    return request.rstrip(".") if rng.random() < 0.25 else request


def made_title(text, nouns):
    """Returns a title for a story that has none ("Lily and the Red Ball"), or None."""
    name = hero(text)
    found = [t for t in things(text, nouns) if not (name and t.endswith((" girl", " boy")))]
    if not found:
        return None
    thing = found[0].split(" ", 1)[1].title()
    return f"{name} and the {thing}" if name else f"The {thing}"


def request_for(text, nouns, rng, title=None):
    """Returns one user request that `text` answers; `title` is the story's own, if it has one."""
    if rng.random() < (0.4 if title else 0.12):
        title = title or made_title(text, nouns)
        if title:
            return rng.choice(NAMED).format(x=title)
    subject = topic(text, nouns, rng)
    if subject is None or rng.random() < 0.08:
        return casual(rng.choice(ANY), rng)
    return casual(rng.choice(ABOUT).format(x=subject), rng)
