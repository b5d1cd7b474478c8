"""Makes the groups of the first task: which of these texts is the story's own, which did the embedded model write?

A story is cut after some tokens. What follows is the right candidate; the wrong ones are samples of the embedded model
from the same place (or from a request for that story), of exactly as many tokens, so that length tells nothing.
"""

import argparse
import random
from dataclasses import dataclass

import storyteller  # noqa: F401
from chat import ASSISTANT, END, USER
from groups import shuffled, write_groups
from likelihood import mean_logprob
from prompts import request_for
from stories import load_tales
from text import stable_number
from tokenizers import Tokenizer

from llm_decoder import LLM, SamplingParams
from llm_decoder.embedded import embedded_model

_CONTEXT = (10, 96)  # least and most tokens of a beginning
_LENGTH = (16, 56)  # least and most tokens of a candidate
_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
_CUTS = {"train": 2, "held_out": 4}  # beginnings of a story; one request is made beside them
_WRONG = {"train": 3, "held_out": 7}
_CHUNK = 256  # groups that are sampled together


@dataclass(frozen=True)
class Cut:
    """A place in a story: what the model reads (token ids), what the reranker reads, what follows (token ids)."""

    source: str
    split: str
    document: str
    prompt: list[int]
    query: str
    follows: list[int]
    temperature: float


def cuts(tale, nouns, tokenizer, rng):
    """Yields the `Cut`s of the story `tale`."""
    begin = tokenizer.encode("").ids
    ids = tokenizer.encode(tale.text, add_special_tokens=False).ids
    name = f"{stable_number(tale.text):016x}"
    for _ in range(_CUTS[tale.split]):
        at, length = rng.randint(*_CONTEXT), rng.randint(*_LENGTH)
        if at + length < len(ids):
            query = tokenizer.decode(ids[:at]).strip()
            yield Cut("continuation", tale.split, name, begin + ids[:at], query, ids[at : at + length], _warmth(rng))
    length = rng.randint(*_LENGTH)
    request = request_for(tale.text, nouns, rng, tale.title)
    prompt = tokenizer.encode(f"{USER}\n{request}{END}\n{ASSISTANT}\n").ids
    if length < len(ids):
        yield Cut("answer", tale.split, name, prompt, request, ids[:length], _warmth(rng))


def _warmth(rng):
    return rng.choice(_TEMPERATURES)


def sampled(llm, tokenizer, chunk):
    """Yields the groups of the `Cut`s in `chunk`; a cut where a sample ended early, or came twice, makes none."""
    params = [
        SamplingParams(
            n=_WRONG[c.split], max_tokens=len(c.follows), temperature=c.temperature, top_p=1.0, seed=len(c.query)
        )
        for c in chunk
    ]
    for cut, output in zip(chunk, llm.generate([c.prompt for c in chunk], params), strict=True):
        answers = [o.token_ids for o in output.outputs if len(o.token_ids) == len(cut.follows)]
        texts = [tokenizer.decode(list(ids)).strip() for ids in [cut.follows, *answers]]
        if len(set(texts)) == 1 + _WRONG[cut.split]:
            told = [cut.follows, *answers] if cut.split == "held_out" else []
            logprobs = [mean_logprob(llm, cut.prompt, list(ids)) for ids in told]
            yield shuffled(cut.source, cut.split, cut.document, cut.query, texts, logprobs or None)


def main():
    """Writes the groups of all stories of --data to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with the .jsonl.xz files")
    parser.add_argument("--out", required=True, help="JSON Lines file of groups")
    parser.add_argument("--split", choices=sorted(_CUTS), required=True)
    args = parser.parse_args()
    rng = random.Random(1)
    tales, nouns = load_tales(args.data)
    tales = [t for t in tales if t.split == args.split]
    rng.shuffle(tales)
    tokenizer = Tokenizer.from_file(str(embedded_model() / "tokenizer.json"))
    places = [cut for tale in tales for cut in cuts(tale, nouns, tokenizer, rng)]
    print(f"{len(tales)} stories, {len(places)} cuts", flush=True)
    with LLM() as llm:
        chunks = [places[i : i + _CHUNK] for i in range(0, len(places), _CHUNK)]
        count = write_groups(args.out, (g for chunk in chunks for g in sampled(llm, tokenizer, chunk)))
    print(f"{count} groups")


if __name__ == "__main__":
    main()
