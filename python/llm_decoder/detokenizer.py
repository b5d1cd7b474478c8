"""Tokens to text as they come: only whole characters leave, and never what could be the beginning of a stop string."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Protocol

__all__ = ["Detokenizer", "StopMatcher", "TextDecoder"]

REPLACEMENT = "\ufffd"
# Left context kept for decoders whose text depends on the neighbour (a leading space, a run of byte tokens).
_CONTEXT_TOKENS = 4
# The window grows to this before it is cut back: one decode a token, and one more every dozen.
_WINDOW_TOKENS = 16
# A UTF-8 character has at most four bytes, each at most a token: what is still broken after more than that is broken.
_MAX_HELD_TOKENS = 8
# A character that is not complete has at most three bytes, which a decoder may show as so many U+FFFD.
_MAX_PENDING_CHARS = 3


class TextDecoder(Protocol):
    """The part of a tokenizer that text is made with."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Detokenizer:
    """Incremental text of one sequence. Tokens are taken one by one: the text does not depend on how they arrive.

    Text is the difference between decoding a window with and without its newest tokens; the window begins in the
    prompt, so that a continuation keeps its leading space. A trailing U+FFFD is held back: the next token may
    complete it. What is held too long is no text: it leaves, all but its last U+FFFD, which may still become one.

    With a byte-level decoder the pieces, joined, are what decoding all tokens at once gives. Byte fallback makes a
    whole run of bytes invalid for one bad byte; what of the run has left by then stays as it was.
    """

    def __init__(self, tokenizer: TextDecoder, prompt_ids: Sequence[int], skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window: list[int] = []
        self._context_text = ""  # the beginning of the window's text: it has left, or belongs to the prompt
        for n_tokens in range(min(_CONTEXT_TOKENS, len(prompt_ids)), min(2 * _CONTEXT_TOKENS, len(prompt_ids)) + 1):
            self._window = [int(token) for token in prompt_ids[len(prompt_ids) - n_tokens :]]
            self._context_text = self._decode(self._window)
            if not self._context_text.startswith(REPLACEMENT):  # else the cut went through a character
                break
        self._boundaries = [len(self._window)]  # lengths of the window at which text has left

    def copy(self) -> Detokenizer:
        """Another that goes on from here."""
        other = copy.copy(self)
        other._window, other._boundaries = list(self._window), list(self._boundaries)
        return other

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` add; may be empty while a character is incomplete."""
        return "".join([self._push_one(token) for token in ids])

    def flush(self) -> str:
        """The text still held back: an incomplete character comes out as U+FFFD."""
        return self._take(self._decode(self._window))

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _push_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            delta = self._take(text)
        elif not self._decode([token]):
            self._window.pop()  # a special token, say: it completes nothing, and would fill the window
            return ""
        elif len(self._window) - self._boundaries[-1] > _MAX_HELD_TOKENS:
            delta = self._take(text, n_kept=1)
        else:
            return ""
        if len(self._window) > _WINDOW_TOKENS:
            self._shorten(len(text) - len(self._context_text))
        return delta

    def _take(self, text: str, n_kept: int = 0) -> str:
        """What is new in the window's `text`, but for its last n_kept characters."""
        context = self._context_text
        # The new tokens may have made one character of the last U+FFFD of the prompt.
        n_broken = min(len(context) - len(context.rstrip(REPLACEMENT)), _MAX_PENDING_CHARS)
        lengths = range(len(context), len(context) - n_broken - 1, -1)
        n_out = next((length for length in lengths if text.startswith(context[:length])), None)
        if n_out is None:
            # The decoder has changed its mind about text that has left (a run of byte tokens turned invalid): the new
            # tokens stand alone.
            del self._window[: self._boundaries[-1]]
            self._boundaries = [0]
            text, n_out = self._decode(self._window), 0
        end = max(n_out, len(text) - n_kept)
        self._context_text = text[:end]
        self._boundaries.append(len(self._window))
        return text[n_out:end]

    def _shorten(self, n_pending: int) -> None:
        """Cuts the beginning of the window off. n_pending: characters at the end of its text that have not left.

        A cut through a character makes U+FFFD of the rest of it and changes nothing behind. So it does no harm as far
        as text has left, and the tokens kept are more than a pending character has.
        """
        cut = max((b for b in self._boundaries if len(self._window) - b >= _CONTEXT_TOKENS), default=0)
        if cut:
            del self._window[:cut]
            self._boundaries = [b - cut for b in self._boundaries if b >= cut]
            text = self._decode(self._window)
            self._context_text = text[: len(text) - n_pending]


class StopMatcher:
    """Finds the first stop string in a text that arrives in pieces (Knuth, Morris and Pratt 1977), the one that ends
    first and, among those, the longest. What could still become a stop string is held back."""

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = list(stops)
        self._include_stop = include_stop
        self._fallbacks = [_fallback_table(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._first_characters = {stop[0] for stop in self._stops}
        self._held = ""

    def copy(self) -> StopMatcher:
        """Another that goes on from here."""
        other = copy.copy(self)
        other._states = list(self._states)
        return other

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may leave, the stop string found or None). After a match nothing more may be pushed."""
        if not self._held and self._first_characters.isdisjoint(text):
            return text, None
        whole = self._held + text
        for end in range(len(self._held), len(whole)):
            stop = self._advance(whole[end])
            if stop is not None:
                self._held = ""
                return whole[: end + 1 if self._include_stop else end + 1 - len(stop)], stop
        n_held = max(self._states)
        self._held = whole[len(whole) - n_held :]
        return whole[: len(whole) - n_held], None

    def flush(self) -> str:
        """The text held back; the matcher starts afresh."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        found: str | None = None
        for i, stop in enumerate(self._stops):
            state = self._states[i]
            while state and stop[state] != character:
                state = self._fallbacks[i][state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                if found is None or len(stop) > len(found):
                    found = stop
                state = self._fallbacks[i][state - 1]
            self._states[i] = state
        return found


def _fallback_table(pattern: str) -> list[int]:
    """For each prefix of `pattern`: the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    state = 0
    for i in range(1, len(pattern)):
        while state and pattern[state] != pattern[i]:
            state = table[state - 1]
        if pattern[state] == pattern[i]:
            state += 1
        table[i] = state
    return table
