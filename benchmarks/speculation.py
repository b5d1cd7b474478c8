"""Tokens/s with and without tokens guessed ahead, in turn, on text that repeats and on text that does not.

    python benchmarks/speculation.py MODEL_DIR --tokens 200 --repeat 3

`itself`: a model's own greedy answer, asked for again with prompt and answer twice in the prompt; random models repeat
themselves a lot. The other columns are texts of this repository, for models that could not write them: everything is
computed and drawn as always, then the text's next token is put in the place of the drawn one. So what is guessed right
is what would be with a model that writes this text. edit: a source file with a name changed; code: the second half of a
file, after its first; summary: the first sentences of the paragraphs in the prompt; new: stories after another story.

Prints JSON: medians of tokens/s after the first token, their ratio, and the share of drafts that were right.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

from llm_decoder import LLM, SamplingParams

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", nargs="?", help="default: the embedded model")
    parser.add_argument("--tokens", type=int, default=200, help="of an answer")
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of a prompt, at most")
    parser.add_argument("--sequences", type=int, default=1, help="requests at a time")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speculative-tokens", type=int, default=15)
    parser.add_argument("--texts", nargs="*", default=["itself", "edit", "code", "summary", "new"])
    args = parser.parse_args()
    options: dict[str, Any] = {"threads": args.threads, "kv_cache_bytes": 256 << 20}
    with (
        LLM(args.model_dir, speculation="none", **options) as plain,
        LLM(args.model_dir, speculative_tokens=args.speculative_tokens, **options) as ahead,
    ):
        report = {"model": plain.name, "arguments": vars(args)}
        players = {"plain": Player(plain), "ahead": Player(ahead)}
        for name in args.texts:
            room = min(args.prompt, plain.max_model_len - args.tokens - args.sequences)
            if name == "itself":
                prompt, script = itself(plain, room, args.tokens), None
            else:
                prompt, script = texts(plain, name, room, args.tokens)
            report[name] = compare(players, prompt, script, args)
    print(json.dumps(report, indent=1))


class Player:
    """An LLM that can be made to draw the tokens of a script."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.script: list[int] | None = None
        llm._engine.call(self._watch)

    def _watch(self, backend: Any) -> None:
        sample = backend.sample

        def draw(rows: Any, params: Any, n_top: int) -> Any:
            tokens, *scores = sample(rows, params, n_top)
            if self.script is not None:
                tokens[:] = [self.script[position] for position in params["position"].tolist()]
            return tokens, *scores

        backend.sample = draw

    def run(self, prompt: list[int], script: list[int] | None, args: argparse.Namespace) -> list[Any]:
        self.script = script
        n_tokens = args.tokens if script is None else len(script)
        params = SamplingParams(max_tokens=n_tokens, temperature=args.temperature, seed=0, ignore_eos=True)
        # Another first token each, so that no request has the prompt of another.
        prompts = [[2 + i, *prompt] for i in range(args.sequences)]
        return [output.metrics for output in self.llm.generate(prompts, params)]


def compare(players: dict[str, Player], prompt: list[int], script: list[int] | None, args: Any) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in players}
    metrics: list[Any] = []
    for turn in range(1 + args.repeat):
        for name, player in players.items():
            metrics = player.run(prompt, script, args)
            if turn:  # the first one warms up, and leaves the prompt in the cache
                rates[name].append(sum(metric.tokens_per_s for metric in metrics))
    plain, ahead = (statistics.median(values) for values in rates.values())
    n_drafted = sum(metric.n_drafted_tokens for metric in metrics)
    n_accepted = sum(metric.n_accepted_tokens for metric in metrics)
    return {
        "prompt": len(prompt),
        "plain": round(plain, 1),
        "ahead": round(ahead, 1),
        "ratio": round(ahead / plain, 2),
        "drafted": n_drafted,
        "accepted": n_accepted,
        "accepted_share_of_answer": round(n_accepted / sum(metric.n_generated_tokens for metric in metrics), 2),
        "runs": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
    }


def itself(llm: LLM, room: int, n_tokens: int) -> list[int]:
    prompt = llm.tokenizer.encode("Once upon a time there was a house by the sea, and in it lived")
    n_tokens = min(n_tokens, (room - 3 * len(prompt)) // 2)
    params = SamplingParams(max_tokens=n_tokens, temperature=0.0, ignore_eos=True)
    answer = llm.generate([prompt], params)[0].outputs[0].token_ids
    return (prompt + answer) * 2 + prompt


def texts(llm: LLM, name: str, room: int, n_tokens: int) -> tuple[list[int], list[int]]:
    """(prompt, answer): what is continued needs its end, what is edited its beginning."""
    if name == "summary":
        n_paragraphs = 1
        while len(llm.tokenizer.encode(_summary(n_paragraphs + 1)[0])) <= room:
            n_paragraphs += 1
        before, after = _summary(n_paragraphs)  # of what the prompt holds, and nothing else
    else:
        before, after = TEXTS[name]()
    prompt, script = llm.tokenizer.encode(before), llm.tokenizer.encode(after)
    return prompt[-room:] if name in ("code", "new") else prompt[:room], script[:n_tokens]


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _edit() -> tuple[str, str]:
    source = _read("python/llm_decoder/kv_pool.py")
    return source, source.replace("group", "part")


def _code() -> tuple[str, str]:
    source = _read("python/llm_decoder/async_llm.py")
    cut = source.index("    async def stream(")
    return source[:cut], source[cut:]


def _summary(n_paragraphs: int) -> tuple[str, str]:
    paragraphs = _read("docs/kernels.md").split("\n\n")[:n_paragraphs]
    told = [part.replace("\n", " ") for part in paragraphs if part[:1].isalpha()]
    return "\n\n".join(paragraphs), " ".join(re.split(r"(?<=\.) ", part)[0] for part in told)


def _new() -> tuple[str, str]:
    first, _, others = _read("tests/e2e/held_out_stories.txt").partition("\n")
    return first, others


TEXTS = {"edit": _edit, "code": _code, "new": _new}

if __name__ == "__main__":
    main()
