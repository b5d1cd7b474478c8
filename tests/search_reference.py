"""Search over plain lists, by beams as Hugging Face's `generate` does it and by steps: the judge of the engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]


@dataclass
class Found:
    """A finished answer: its tokens and its normalised score."""

    tokens: list[int]
    score: float


@dataclass
class _Group:
    live: list[tuple[list[int], np.float32]] = field(default_factory=lambda: [([], np.float32(0.0))])
    finished: list[Found] = field(default_factory=list)
    is_over: bool = False


def log_softmax(row: Row) -> Row:
    shifted = row.astype(np.float64) - row.max()
    return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)


def beam_search(
    logprobs_of: Callable[[list[int]], Row],
    *,
    width: int,
    max_new: int,
    ends: Sequence[int] = (),
    length_penalty: float = 1.0,
    early_stopping: object = False,
    groups: int = 1,
    diversity_penalty: float = 0.0,
) -> list[Found]:
    """The answers, the best first. logprobs_of: what may follow an answer so far, edited log probabilities [vocab]."""
    lanes = [_Group() for _ in range(groups)]
    own = width // groups
    for length in range(1, max_new + 1):
        chosen: list[int] = []
        for lane in lanes:
            if lane.is_over:
                continue
            candidates = []
            for number, (tokens, score) in enumerate(lane.live):
                row = logprobs_of(tokens)
                for token in np.argsort(-row, kind="stable")[: 4 * width + 8].tolist():
                    if row[token] > -np.inf:
                        penalty = np.float32(diversity_penalty * chosen.count(token))
                        candidates.append((score + row[token] - penalty, number, token))
            candidates.sort(key=lambda candidate: (-candidate[0], candidate[1]))
            before = lane.live
            lane.live = []
            n_kept = max(2, 1 + len(ends)) * own
            for rank, (score, number, token) in enumerate(candidates[:n_kept]):
                tokens = [*before[number][0], token]
                if token in ends or length == max_new:
                    if rank < own:
                        lane.finished.append(Found(tokens, float(score / np.float32(length**length_penalty))))
                elif len(lane.live) < own:
                    lane.live.append((tokens, score))
            lane.finished.sort(key=lambda found: -found.score)
            del lane.finished[own:]
            chosen += [tokens[-1] for tokens, _ in lane.live]
            lane.is_over = not lane.live or _is_decided(lane, own, length, max_new, length_penalty, early_stopping)
        if all(lane.is_over for lane in lanes):
            break
    return sorted((found for lane in lanes for found in lane.finished), key=lambda found: -found.score)


def _is_decided(
    lane: _Group, own: int, length: int, max_new: int, length_penalty: float, early_stopping: object
) -> bool:
    if len(lane.finished) < own:
        return False
    if early_stopping is True:
        return True
    reach = max_new if early_stopping == "never" and length_penalty > 0 else length
    return bool(lane.live[0][1] / np.float32(reach**length_penalty) <= lane.finished[-1].score)


def step_search(
    draw: Callable[[list[int], int], int],
    values_of: Callable[[list[list[int]]], list[float]],
    *,
    width: int,
    branches: int,
    max_new: int,
    ends_step: Callable[[list[int]], bool],
    ends: Sequence[int] = (),
) -> list[list[int]]:
    """The answers that are kept, in the order they were. draw(tokens, stream): the token behind these; each stream of
    draws has a number. values_of: by which answers so far are compared. ends_step: of the tokens of a step."""
    kept: list[list[int]] = []
    n_streams = width * branches
    begun: list[tuple[list[int], int]] = [([], stream) for stream in range(n_streams)]
    while begun:
        candidates = []
        for tokens, stream in begun:
            step: list[int] = []
            is_over = False
            while not is_over and not (step and ends_step(step)):
                step.append(draw(tokens + step, stream))
                is_over = step[-1] in ends or len(tokens + step) == max_new
            candidates.append((tokens + step, stream, is_over))
        values = values_of([tokens for tokens, _, _ in candidates])
        order = sorted(range(len(candidates)), key=lambda i: -values[i])
        before = [candidates[i][0] for i in order]
        is_copy = [tokens in kept or tokens in before[:rank] for rank, tokens in enumerate(before)]
        order = [i for i, copy in zip(order, is_copy, strict=True) if not copy] + [
            i for i, copy in zip(order, is_copy, strict=True) if copy
        ]
        best = [candidates[i] for i in order[: width - len(kept)]]
        kept += [tokens for tokens, _, is_over in best if is_over]
        begun = []
        for tokens, stream, is_over in best:
            if not is_over:
                begun.append((tokens, stream))
                for _ in range(branches - 1):
                    begun.append((tokens, n_streams))
                    n_streams += 1
    return kept
