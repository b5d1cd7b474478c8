"""CUDADecoders of tiny random models on the host machine that stands for a GPU, and what judges them."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rounded_reference
from sampling_reference import params_of
from tiny_decoder import LAST_TOKEN, Weights, fuse, i32, quantized_as_float
from tiny_decoder import tiny_config as any_tiny_config

from llm_decoder import _core, reference


def gpu_module() -> Any:
    return importlib.import_module("llm_decoder._cuda_host")


@contextlib.contextmanager
def late_streams() -> Iterator[None]:
    """What is queued on a stream happens only when somebody waits for it."""
    gpu_module().set_late_streams(True)
    try:
        yield
    finally:
        gpu_module().set_late_streams(False)


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """As tiny_decoder's, with the sizes that a GPU's products and heads want: multiples of 8, and bricks of gate and up
    that few rows multiply and activate at once."""
    sizes = {"hidden_size": 64, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32, "intermediate_size": 128}
    return any_tiny_config(**{**sizes, "vocab_size": 331, **overrides})


def half_bits(weight: np.ndarray, dtype: str) -> np.ndarray:
    return weight.astype(rounded_reference.ROW_DTYPES[dtype]).view(np.uint16)


def set_weight(decoder: Any, name: str, weight: np.ndarray, layout: str) -> None:
    """layout: half, w8, w4 or f8 (embedding and output layer w8)."""
    gpu = gpu_module()
    if weight.ndim == 1:
        decoder.set_weight(name, "vector", weight.shape, weight)
    elif layout == "half":
        layout = {"bfloat16": "gpu_bf16", "float16": "gpu_f16"}[decoder.dtype]
        decoder.set_weight(name, layout, weight.shape, gpu.pack_gpu_half(half_bits(weight, decoder.dtype)))
    elif layout == "w4" and name not in ("embedding", "lm_head"):
        *groups, scale = _core.quantize_weight_groups(weight)
        decoder.set_weight(name, "gpu_w4", weight.shape, gpu.pack_gpu_w4(*groups), scale)
    elif layout == "f8" and name not in ("embedding", "lm_head"):
        q, scale = gpu.quantize_f8_rows(weight)
        decoder.set_weight(name, "gpu_f8", weight.shape, gpu.pack_gpu_f8(q), scale)
    else:
        q, scale = _core.quantize_weight_rows(weight)
        decoder.set_weight(name, "gpu_w8", weight.shape, gpu.pack_gpu_w8(q), scale)


def as_seen(weights: Weights, layout: str, dtype: str) -> Weights:
    """Every matrix as the floats that its packed form stands for."""
    if layout == "w8":
        return quantized_as_float(weights)
    seen = dict(weights)
    for name, weight in weights.items():
        if weight.ndim != 2:
            continue
        if layout == "half":
            seen[name] = rounded_reference.rounded(weight, dtype)
        elif name in ("embedding", "lm_head"):
            seen |= quantized_as_float({name: weight})
        elif layout == "f8":
            codes, scale = rounded_reference.fp8_rows(weight)
            seen[name] = codes.astype(np.float32) * scale[:, None]
        else:
            *groups, scale = _core.quantize_weight_groups(weight)
            q = _core.expand_w4(_core.pack_w4(*groups), *weight.shape)
            seen[name] = q.astype(np.float32) * scale[:, None]
    return seen


def make_decoder(
    config: dict[str, Any],
    weights: Weights,
    layout: str = "half",
    *,
    dtype: str = "bfloat16",
    deterministic: bool = False,
    max_tokens: int = 128,
    graphs: bool = True,
) -> Any:
    decoder = gpu_module().CUDADecoder(config, dtype=dtype, deterministic=deterministic, graphs=graphs)
    for name, weight in fuse(config, weights).items():
        set_weight(decoder, name, weight, layout)
    decoder.finalize(max_tokens)
    return decoder


def make_cache(
    decoder: Any,
    config: dict[str, Any],
    dtype: str = "bf16",
    *,
    n_pages: Any = 32,
    window: Any = 0,
    layers: Any = None,
    n_tier_slots: Any = 0,
) -> Any:
    sizes = (config["n_layers"] if layers is None else layers, config["n_kv_heads"], config["head_dim"])
    places = {"window": window, "n_tier_slots": n_tier_slots}
    return gpu_module().KvCache(decoder, n_pages, 16, *sizes, dtype=dtype, **places)


class Judge:
    """The reference's logits of one sequence, and how far a decoder of 16 bits may be from them: twice as far as
    rounding alone takes the reference, by its largest and by its mean error."""

    def __init__(
        self,
        config: dict[str, Any],
        weights: Weights,
        tokens: Sequence[int],
        *,
        layout: str = "half",
        dtype: str = "bfloat16",
        kv_dtype: str = "bf16",
    ) -> None:
        seen = as_seen(weights, layout, dtype)
        self.want = reference.forward(config, seen, tokens)
        error = np.abs(rounded_reference.forward(config, seen, tokens, dtype, kv_dtype) - self.want)
        self.most, self.mean = 2.0 * float(error.max()), 2.0 * float(error.mean())

    def check(self, got: np.ndarray, begin: int = 0) -> None:
        """got: logits of the tokens from `begin` on."""
        want = self.want[begin : begin + len(got)]
        error = np.abs(got - want)
        assert got.shape == want.shape
        assert error.max() <= self.most, f"{error.max()} above {self.most}"
        assert error.mean() <= self.mean, f"{error.mean()} above {self.mean}"
        second, first = np.sort(want, axis=-1)[:, -2:].T
        is_clear = first - second > 2.0 * self.most
        assert np.array_equal(got.argmax(axis=-1)[is_clear], want.argmax(axis=-1)[is_clear])


class Together:
    """Sequences that decode together, in a new order every step, their draws in another one."""

    def __init__(self, decoder: Any, cache: Any, *, temperature: float = 0.0, seed: int = 0) -> None:
        self.decoder, self.cache, self.temperature = decoder, cache, temperature
        self._random = np.random.default_rng(seed)
        self._draws: list[list[int]] = []  # of which sequence, of each draw that was begun and not ended
        self.tokens: dict[int, list[int]] = {}

    def admit(self, prompt: Sequence[int]) -> int:
        """Steps through the prompt alone and draws the first token."""
        seq_id, n_cached = self.cache.admit(i32(prompt))
        self.tokens[seq_id] = []
        self._step([seq_id], i32([len(prompt) - n_cached]), i32(prompt[n_cached:]))
        self._commit([seq_id], i32([len(prompt) - n_cached]), i32(prompt[n_cached:]))
        self._begin([seq_id])
        self._end()
        return int(seq_id)

    def decode(self, n: int, *, ahead: bool) -> None:
        """n tokens more of each. ahead: a step is queued before the draws of the one before are read."""
        for i in range(n):
            ids = [int(s) for s in self._random.permutation(list(self.tokens))]
            if ahead and i > 0:
                fed = i32(-1 - self._draws[-1].index(s) for s in ids)
            else:
                fed = i32(self.tokens[s][-1] for s in ids)
            ones = np.ones(len(ids), np.int32)
            self._step(ids, ones, fed)
            self._begin(ids)
            if ahead and i > 0:
                self._end()
            self._commit(ids, ones, i32(self.tokens[s][-1] for s in ids))
            if not ahead:
                self._end()
        while self._draws:
            self._end()

    def release(self, seq_id: int) -> list[int]:
        self.cache.release(seq_id)
        return self.tokens.pop(seq_id)

    def _step(self, ids: list[int], counts: np.ndarray, tokens: np.ndarray) -> None:
        at = np.array(ids, np.int64)
        assert self.cache.reserve(at, counts)
        assert self.decoder.step(self.cache, tokens, at, counts, np.full(len(ids), LAST_TOKEN, np.uint8)) == len(ids)

    def _commit(self, ids: list[int], counts: np.ndarray, tokens: np.ndarray) -> None:
        self.cache.commit(np.array(ids, np.int64), counts, tokens)

    def _begin(self, ids: list[int]) -> None:
        rows = [int(row) for row in self._random.permutation(len(ids))]
        draws = [
            {"temperature": self.temperature, "seed": ids[row], "position": self.cache.length(ids[row])} for row in rows
        ]
        self.decoder.begin_sample(i32(rows), params_of(draws), 0)
        self._draws.append([ids[row] for row in rows])

    def _end(self) -> None:
        tokens = self.decoder.end_sample()[0]
        for seq_id, token in zip(self._draws.pop(0), tokens, strict=True):
            self.tokens[seq_id].append(int(token))
