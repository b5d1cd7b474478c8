"""How is raw text cleaned, split into words and assigned to train or held-out?"""

import hashlib
import re

HELD_OUT_PERCENT = 2

_REPLACEMENTS = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00a0": " ",
        "\r": None,
        "\t": " ",
        "`": "'",
    }
)
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def clean(text):
    """Returns `text` with plain quotes, single spaces and at most one blank line in a row."""
    text = text.translate(_REPLACEMENTS).replace("''", '"')
    text = re.sub(r" +", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_plain_english(text):
    """True when `text` has no character outside ASCII (a cheap test for damaged encodings)."""
    return text.isascii()


def words(text):
    """Returns the words of `text` as they are written, without punctuation."""
    return _WORD.findall(text)


def rare_fraction(text, known):
    """Returns the fraction (0 to 1) of lower-case words in `text` missing from the set `known`.

    Capitalised words are not counted: names are always rare.
    """
    lower = [w for w in words(text) if w[0].islower()]
    return sum(w not in known for w in lower) / max(1, len(lower))


def stable_number(text):
    """Returns a 64-bit integer that depends on `text` alone (same on every machine)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_held_out(text):
    """True for the documents that are kept away from training."""
    return stable_number(text) % 100 < HELD_OUT_PERCENT
