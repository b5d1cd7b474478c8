"""What a draw from a row of logits must be, in float64 with a full sort. p: the parameters of one draw, by name; those
that are not there are off."""

from __future__ import annotations

from typing import Any

import numpy as np


def philox_uniform(seed: int, position: int) -> float:
    """Philox4x32-10 (Salmon et al. 2011) on plain integers: key = seed, counter = position; 53 bits in [0, 1)."""
    mask = 0xFFFFFFFF
    c = [position & mask, position >> 32 & mask, 0, 0]
    k = [seed & mask, seed >> 32 & mask]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
        k = [k[0] + 0x9E3779B9 & mask, k[1] + 0xBB67AE85 & mask]
    return (c[0] << 21 | c[1] >> 11) / 2**53


def edited(row: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    """The logits after penalties, bias, bans, in the order that the contract gives."""
    x = row.astype(np.float64)
    prompt, output = p.get("prompt", []), p.get("output", [])
    for token in set(prompt) | set(output):
        penalty = float(np.float32(p.get("repetition_penalty", 1.0)))
        x[token] = x[token] * penalty if x[token] < 0 else x[token] / penalty
    for token in set(output):
        x[token] -= p.get("frequency_penalty", 0.0) * output.count(token) + p.get("presence_penalty", 0.0)
    for token, value in p.get("bias", {}).items():
        x[token] += value
    x[p.get("banned", [])] = -np.inf
    if p.get("allowed"):
        kept = np.full_like(x, -np.inf)
        kept[p["allowed"]] = x[p["allowed"]]
        x = kept
    if p.get("mask") is not None:  # tokens, as allowed; but none leave none
        x[np.setdiff1d(np.arange(len(x)), p["mask"])] = -np.inf
    return x


def candidates(x: np.ndarray, p: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities that may be drawn, by descending probability, then ascending id."""
    scaled = (x - x.max()) / np.float32(p["temperature"])
    ids = np.lexsort((np.arange(len(x)), -scaled))
    probabilities = np.exp(scaled[ids])
    n = p.get("top_k", 0) or len(x)
    ids, probabilities = ids[:n], probabilities[:n] / probabilities[:n].sum()
    before = np.concatenate([[0.0], np.cumsum(probabilities)[:-1]])
    kept = (before < np.float32(p.get("top_p", 1.0))) | (p.get("top_p", 1.0) == 1.0)
    kept &= probabilities >= np.float32(p.get("min_p", 0.0)) * probabilities[0]
    kept[0] = True
    kept &= probabilities > 0
    return ids[kept], probabilities[kept] / probabilities[kept].sum()


def reference_token(row: np.ndarray, p: dict[str, Any]) -> int:
    x = edited(row, p)
    if p["temperature"] == 0:
        return int(np.argmax(x))
    ids, probabilities = candidates(x, p)
    u = philox_uniform(p.get("seed", 0), p.get("position", 0))
    return int(ids[min(np.searchsorted(np.cumsum(probabilities), u, side="right"), len(ids) - 1)])


def is_token_of(token: int, row: np.ndarray, p: dict[str, Any]) -> bool:
    """Whether `token` is the reference's, or its neighbour where the draw falls on the rounding between the two."""
    ids, probabilities = candidates(edited(row, p), p)
    found = np.flatnonzero(ids == token)
    if len(found) == 0:
        return False
    end = probabilities[: found[0] + 1].sum()
    begin = end - probabilities[found[0]]
    return bool(begin - 3e-6 <= philox_uniform(p.get("seed", 0), p.get("position", 0)) <= end + 3e-6)


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return offsets, np.array([i for x in lists for i in x], np.int32)


def params_of(draws: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of _core.sample for draws by name."""

    def each(name: str, off: float, dtype: Any) -> np.ndarray:
        return np.array([p.get(name, off) for p in draws], dtype)

    params = {
        "temperature": each("temperature", 0, np.float32),
        "top_k": each("top_k", 0, np.int32),
        "top_p": each("top_p", 1, np.float32),
        "min_p": each("min_p", 0, np.float32),
        "repetition_penalty": each("repetition_penalty", 1, np.float32),
        "presence_penalty": each("presence_penalty", 0, np.float32),
        "frequency_penalty": each("frequency_penalty", 0, np.float32),
        "seed": each("seed", 0, np.uint64),
        "position": each("position", 0, np.int64),
    }
    for name, ids in (("prompt", "tokens"), ("output", "tokens"), ("banned", "ids"), ("allowed", "ids")):
        params[f"{name}_offsets"], params[f"{name}_{ids}"] = ragged([list(p.get(name, [])) for p in draws])
    params["bias_offsets"], params["bias_ids"] = ragged([list(p.get("bias", {})) for p in draws])
    params["bias_values"] = np.array([v for p in draws for v in p.get("bias", {}).values()], np.float32)
    return params
