"""Where do the token vectors begin? At the neighbourhood of each token in the training texts, by one decomposition.

A positive pointwise mutual information matrix, cut to its largest singular values (Levy and Goldberg 2014, "Neural word
embedding as implicit matrix factorization"): tokens that stand among the same tokens begin near to each other.
"""

import numpy as np
import torch

_WINDOW = 4  # tokens to each side
_SMOOTHING = 0.75  # exponent of the context counts
_SPREAD = 0.05  # root mean square of an entry


def neighbours(rows, n_tokens):
    """Returns float32 [n_tokens, n_tokens]: how often two tokens stand near each other in the id lists `rows`."""
    counts = np.zeros(n_tokens * n_tokens, np.float32)
    ids = np.concatenate([np.append(np.array(r, np.int64), [-1] * _WINDOW) for r in rows])
    for piece in np.array_split(ids, max(1, len(ids) // 2_000_000)):
        for distance in range(1, _WINDOW + 1):
            left, right = piece[:-distance], piece[distance:]
            kept = (left >= 0) & (right >= 0)
            places, n = np.unique(left[kept] * n_tokens + right[kept], return_counts=True)
            counts[places] += n / distance
    counts = counts.reshape(n_tokens, n_tokens)
    return counts + counts.T


def token_vectors(rows, n_tokens, width):
    """Returns float32 [n_tokens, width], of entries about as large as a fresh network's."""
    counts = neighbours(rows, n_tokens)
    of_token = counts.sum(1)
    of_context = of_token**_SMOOTHING
    share = of_context / of_context.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log(counts / (of_token[:, None] * share[None, :]))
    pmi[~np.isfinite(pmi) | (pmi < 0)] = 0
    torch.manual_seed(1)
    u, s, _ = torch.svd_lowrank(torch.from_numpy(pmi.astype(np.float32)), q=width + 16, niter=3)
    vectors = u[:, :width] * s[:width].sqrt()
    lengths = vectors.norm(dim=1, keepdim=True)
    vectors = torch.where(lengths > 0, vectors / lengths.clamp(min=1e-6), torch.randn_like(vectors) / width**0.5)
    return vectors * (_SPREAD * width**0.5)
