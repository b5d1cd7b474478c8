"""How near are two texts by their words alone? BM25 and word overlap: the finder of hard negatives, and a baseline."""

import re
from collections import Counter

import numpy as np
from scipy.sparse import csr_matrix

_WORD = re.compile(r"[a-z0-9]+")
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.75  # k1 and b of BM25


def words(text):
    """Returns the lower-cased words and numbers of `text`."""
    return _WORD.findall(text.lower())


def overlap(query, text):
    """Returns the fraction (0 to 1) of the different words of `query` that stand in `text`."""
    asked = set(words(query))
    return len(asked & set(words(text))) / max(1, len(asked))


class Bm25:
    """BM25 scores of queries against a fixed list of texts (Robertson and Zaragoza 2009, section 3.2)."""

    def __init__(self, texts):
        counts = [Counter(words(t)) for t in texts]
        self.terms = {w: i for i, w in enumerate(sorted({w for c in counts for w in c}))}
        lengths = np.array([sum(c.values()) for c in counts], np.float32)
        norm = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * lengths / max(1.0, lengths.mean()))
        rows = np.repeat(np.arange(len(texts)), [len(c) for c in counts])
        columns = np.array([self.terms[w] for c in counts for w in c], np.int64)
        tf = np.array([n for c in counts for n in c.values()], np.float32)
        df = np.bincount(columns, minlength=len(self.terms))
        idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5)).astype(np.float32)
        values = idf[columns] * tf * (_SATURATION + 1) / (tf + norm[rows])
        self.weights = csr_matrix((values, (rows, columns)), shape=(len(texts), len(self.terms)))

    def scores(self, query):
        """Returns float32 [n_texts]: the score of each text for `query`."""
        asked = np.zeros(len(self.terms), np.float32)
        asked[[self.terms[w] for w in set(words(query)) if w in self.terms]] = 1
        return self.weights @ asked

    def nearest(self, query, count):
        """Returns the places of the `count` best texts, the best first."""
        scores = self.scores(query)
        return np.argsort(-scores, kind="stable")[:count]
