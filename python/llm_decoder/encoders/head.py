"""What makes one number of what an encoder read: the head of a sequence classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["ClassifierHead", "HeadConfig", "Pooling", "head_shapes"]

Pooling = Literal["first", "mean"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeadConfig:
    """logit = classifier(norm(activation(dense(pooled)))), as a family has these.

    pooling: which hidden state of a sequence is read. has_dense, has_dense_bias: the matrix before the activation.
    activation: "tanh", "relu", "gelu" (the one with erf) or "none". norm_eps 0: there is no norm.
    """

    pooling: Pooling = "first"
    has_dense: bool = True
    has_dense_bias: bool = True
    activation: str = "tanh"
    norm_eps: float = 0.0
    has_norm_bias: bool = False


def head_shapes(head: HeadConfig, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every weight of a head with one label; matrices are [n_out, n_in]."""
    shapes: dict[str, tuple[int, ...]] = {}
    if head.has_dense:
        shapes["head_dense"] = (hidden_size, hidden_size)
        if head.has_dense_bias:
            shapes["head_dense.bias"] = (hidden_size,)
    if head.norm_eps:
        shapes["head_norm"] = (hidden_size,)
        if head.has_norm_bias:
            shapes["head_norm.bias"] = (hidden_size,)
    return shapes | {"classifier": (1, hidden_size), "classifier.bias": (1,)}


class ClassifierHead:
    """A head with its weights by the names of head_shapes, float32. Its work is a thousandth of the encoder's, and
    stays in float32 whatever the encoder's weights are."""

    def __init__(self, config: HeadConfig, weights: Mapping[str, Floats]) -> None:
        self.config = config
        self._weights = weights

    def logits(self, pooled: Floats) -> Floats:
        """float32 [n_sequences, hidden_size] -> float32 [n_sequences]."""
        # Row by row: a product of many rows at once may sum in another order than one of few, and then a score would
        # depend on its neighbours.
        return np.array([self._logit(row) for row in pooled], np.float32)

    def _logit(self, x: Floats) -> float:
        weights = self._weights
        if self.config.has_dense:
            x = weights["head_dense"] @ x
            if self.config.has_dense_bias:
                x = x + weights["head_dense.bias"]
        x = _activate(x, self.config.activation)
        if self.config.norm_eps:
            centred = x - x.mean()
            x = centred / np.sqrt(np.mean(centred * centred) + np.float32(self.config.norm_eps)) * weights["head_norm"]
            if self.config.has_norm_bias:
                x = x + weights["head_norm.bias"]
        return float((weights["classifier"] @ x + weights["classifier.bias"])[0])


def _activate(x: Floats, activation: str) -> Floats:
    if activation == "tanh":
        return np.tanh(x)
    if activation == "relu":
        return np.maximum(x, np.float32(0))
    if activation == "gelu":
        erf = np.array([math.erf(value / math.sqrt(2.0)) for value in x.tolist()], np.float32)
        return x * (np.float32(0.5) * (np.float32(1) + erf))
    return x
