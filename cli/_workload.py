"""What a load generator asks: lengths, prompts and moments, all drawn from one seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

__all__ = ["FIRST_TOKEN", "Lengths", "Workload", "parse_lengths"]

# Below are the special tokens of nearly every vocabulary.
FIRST_TOKEN = 100


@dataclass(frozen=True)
class Lengths:
    """Ranges of tokens, both ends included; each draw takes one of them, then a length in it."""

    ranges: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in self.ranges)

    @property
    def low(self) -> int:
        return min(low for low, _ in self.ranges)

    @property
    def high(self) -> int:
        return max(high for _, high in self.ranges)

    def draw(self, random: random.Random) -> int:
        return random.randint(*random.choice(self.ranges))


def parse_lengths(text: str, hint: str) -> Lengths:
    """ "128", "64-256", "128,128,2048". Raises typer.BadParameter."""
    ranges = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        try:
            pair = int(low), int(high or low)
        except ValueError:
            pair = 0, 0
        if not 1 <= pair[0] <= pair[1]:
            raise typer.BadParameter(f"need lengths such as 128, 64-256 or 128,2048, got {text!r}", param_hint=hint)
        ranges.append(pair)
    return Lengths(tuple(ranges))


@dataclass(frozen=True)
class Workload:
    """n_requests prompts of random token ids, FIRST_TOKEN to vocab - 1. shared_prefix: so many tokens at the beginning
    are the same in all. rate: requests a second on average, at random (a Poisson process); None = all at once. model:
    what the server calls it."""

    n_requests: int
    prompt: Lengths
    answer: Lengths
    shared_prefix: int = 0
    vocab: int = 1000
    rate: float | None = None
    seed: int = 0
    model: str | None = None

    def prompts(self, salt: str = "") -> Iterator[tuple[list[int], int]]:
        """(token ids, tokens to generate) of each request; the same for one seed and salt."""
        draw = random.Random(f"{self.seed}{salt}")
        prefix = self._tokens(random.Random(f"{self.seed} prefix"), self.shared_prefix)
        for _ in range(self.n_requests):
            n_prompt, n_answer = self.prompt.draw(draw), self.answer.draw(draw)
            yield prefix + self._tokens(draw, n_prompt - self.shared_prefix), n_answer

    def _tokens(self, draw: random.Random, n: int) -> list[int]:
        return draw.choices(range(FIRST_TOKEN, self.vocab), k=n)

    def bodies(self, salt: str = "") -> list[bytes]:
        """Bodies for /v1/completions. Answers are greedy and as long as they are asked to be."""
        own: dict[str, Any] = {} if self.model is None else {"model": self.model}
        rest = {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        return [
            json.dumps(own | {"prompt": prompt, "max_tokens": n_answer} | rest, separators=(",", ":")).encode()
            for prompt, n_answer in self.prompts(salt)
        ]

    def moments(self) -> list[float]:
        """When each request is sent, in seconds from the start."""
        if self.rate is None:
            return [0.0] * self.n_requests
        draw = random.Random(f"{self.seed} moments")
        moments, now_s = [], 0.0
        for _ in range(self.n_requests):
            moments.append(now_s)
            now_s += draw.expovariate(self.rate)
        return moments
