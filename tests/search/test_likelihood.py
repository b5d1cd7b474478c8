"""Likelihood as a scorer: which requests it makes, and what becomes of them when one fails."""

import pytest

from llm_decoder.errors import RequestFailedError
from llm_decoder.outputs import RequestOutput, TokenLogprob
from llm_decoder.search.likelihood import likelihoods


class Handle:
    def __init__(self, ids, error=None):
        self.ids, self.error, self.is_cancelled = ids, error, False

    def result(self):
        if self.error is not None:
            raise self.error
        entries = [None, *(TokenLogprob(token, -float(token), 1) for token in self.ids[1:])]
        return RequestOutput(None, self.ids, [], prompt_logprobs=entries)

    def cancel(self):
        self.is_cancelled = True


def test_the_mean_is_over_the_tokens_behind_the_prefix():
    assert likelihoods(Handle, [7, 8], [[1], [2, 4], [3, 3, 3]], 100) == [-1.0, -3.0, -3.0]


def test_equal_answers_are_computed_once():
    asked = []

    def submit(ids):
        asked.append(ids)
        return Handle(ids)

    assert likelihoods(submit, [7], [[1], [2], [1]], 100) == [-1.0, -2.0, -1.0]
    assert asked == [[7, 1], [7, 2]]


def test_where_one_fails_the_others_are_cancelled():
    handles = []

    def submit(ids):
        handles.append(Handle(ids, RequestFailedError("no") if ids[-1] == 2 else None))
        return handles[-1]

    with pytest.raises(RequestFailedError, match="no"):
        likelihoods(submit, [7], [[1], [2], [3]], 100)
    assert [handle.is_cancelled for handle in handles] == [True] * 3
