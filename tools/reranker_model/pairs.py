"""Makes the groups of the second task: which of these texts answers, continues or means the same as the query?

Every source gives pairs of a query and its text. The wrong candidates are hard ones (texts of the same document, or
near by BM25) and random ones, of the same split. What is split are documents: titles, stories, entities, intents.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import storyteller  # noqa: F401
from data import read_jsonl
from groups import shuffled, write_groups
from lexical import Bm25
from text import stable_number

HELD_OUT_PERCENT = 12
_NEAREST = 24  # hard candidates are drawn from so many that are nearest by BM25
_MOST = {"train": 12000, "held_out": 250}  # groups of one source
_HARD = {"train": 2, "held_out": 4}
_RANDOM = {"train": 1, "held_out": 3}
_LONGEST = 1200  # characters of a text: what the longest pair of the reranker holds


@dataclass(frozen=True)
class Pair:
    """A query and its text; pairs of one `label` are right for each other; `rivals` are hard candidates, if any."""

    document: str
    query: str
    text: str
    label: str
    rivals: tuple[str, ...] = ()


def boolq(folder):
    """Yields questions people asked a search engine with the passages that answer them."""
    for r in read_jsonl(folder / "rerank_boolq_train.jsonl.xz"):
        yield Pair(r["title"], r["question"], r["passage"], r["passage"])


def fairytale_questions(folder):
    """Yields questions on fairy tales with the section that answers; rivals: the other sections of that tale."""
    tales = {r["id"]: r["sections"] for r in read_jsonl(folder / "stories_fairytaleqa.jsonl.xz")}
    for r in read_jsonl(folder / "rerank_fairytaleqa.jsonl.xz"):
        sections, gold = tales.get(r["story"], {}), r["gold_sections"]
        if len(gold) == 1 and gold[0] in sections:
            rivals = tuple(text for key, text in sections.items() if key != gold[0])
            yield Pair(r["story"], r["question"], sections[gold[0]], r["story"] + gold[0], rivals)


def sentence_questions(folder):
    """Yields questions of SQuAD with the sentence that answers them."""
    for r in read_jsonl(folder / "rerank_squad_sentences.jsonl.xz"):
        yield Pair(r["sentence"], r["question"], r["sentence"], r["sentence"])


def faq(folder):
    """Yields questions to hotels and restaurants with their answers; rivals: the same house's other answers."""
    houses = defaultdict(list)
    for r in read_jsonl(folder / "rerank_dstc9_faq.jsonl.xz"):
        houses[f"{r['domain']} {r['entity']}"].append(r)
    for name, records in houses.items():
        for r in records:
            rivals = tuple(o["answer"] for o in records if o["question"] != r["question"])
            yield Pair(name, r["question"], r["answer"], name + r["answer"], rivals)


def disfluent(folder):
    """Yields questions as people stumble over them with the question as meant."""
    for r in read_jsonl(folder / "rerank_disfl_qa.jsonl.xz"):
        yield Pair(r["original"], r["disfluent"], r["original"], r["original"])


def intents(folder):
    """Yields pairs of requests with the same intent."""
    same = defaultdict(list)
    for r in read_jsonl(folder / "rerank_intents.jsonl.xz"):
        same[r["intent"]].append(r["text"])
    for name, texts in same.items():
        for i in range(0, len(texts) - 1, 2):
            yield Pair(name, texts[i], texts[i + 1], name)


def instructions(folder):
    """Yields instructions and short answers to them."""
    for r in read_jsonl(folder / "instruct_dolly_subset.jsonl.xz"):
        if len(r["response"]) > 20:
            yield Pair(r["instruction"], r["instruction"], r["response"], r["instruction"])


def commands(folder):
    """Yields what somebody wants to do with the command that does it."""
    for r in read_jsonl(folder / "rerank_tldr_pages.jsonl.xz"):
        if r["examples"]:
            example = r["examples"][0]
            yield Pair(r["command"], example["task"], f"{r['command']}: {r['description']}", r["command"])


def turns(folder):
    """Yields two turns of a dialogue with the turn that follows; rivals: the dialogue's other turns."""
    for name in ("chat_self_dialogue", "chat_topical", "chat_synthetic_persona"):
        for r in read_jsonl(folder / f"{name}.jsonl.xz"):
            said = [text for _, text in r["turns"]]
            if len(said) < 6:
                continue
            at = 2 + stable_number(said[0] + said[1]) % (len(said) - 3)
            rivals = tuple(t for i, t in enumerate(said) if abs(i - at) > 2)
            yield Pair(said[0] + said[1], said[at - 2] + "\n" + said[at - 1], said[at], said[at], rivals)


SOURCES = {
    "boolq": boolq,
    "fairytaleqa": fairytale_questions,
    "squad": sentence_questions,
    "faq": faq,
    "disfl": disfluent,
    "intents": intents,
    "dolly": instructions,
    "tldr": commands,
    "turns": turns,
}


def split_of(document):
    """Returns the split of everything that belongs to the document called `document`."""
    return "held_out" if stable_number("pairs" + document) % 100 < HELD_OUT_PERCENT else "train"


def unlike(pair, others, count, rng):
    """Returns `count` different texts drawn from the pairs `others`, none right for `pair`."""
    wrong = list(dict.fromkeys(o.text for o in others if o.label != pair.label and o.text != pair.text))
    return rng.sample(wrong, min(count, len(wrong)))


def groups_of(source, pairs, split, rng):
    """Yields the groups of the list `pairs`, all of one source and split."""
    nearest = Bm25([p.text for p in pairs])
    for pair in rng.sample(pairs, min(_MOST[split], len(pairs))):
        rivals = list(dict.fromkeys(t for t in pair.rivals if t != pair.text))
        if len(rivals) >= _HARD[split]:
            hard = rng.sample(rivals, _HARD[split])
        else:
            hard = unlike(pair, [pairs[i] for i in nearest.nearest(pair.query, _NEAREST)], _HARD[split], rng)
        wrong = hard + [t for t in unlike(pair, rng.sample(pairs, 40), _RANDOM[split], rng) if t not in hard]
        if len(wrong) == _HARD[split] + _RANDOM[split]:
            texts = [t[:_LONGEST] for t in (pair.text, *wrong)]
            yield shuffled(source, split, pair.document, pair.query, texts)


def main():
    """Writes the groups of all sources in --data to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with the .jsonl.xz files")
    parser.add_argument("--out", required=True, help="JSON Lines file of groups")
    args = parser.parse_args()
    groups = []
    for source, read in SOURCES.items():
        for split in ("train", "held_out"):
            rng = random.Random(source + split)
            pairs = [p for p in read(Path(args.data)) if split_of(p.document) == split]
            made = list(groups_of(source, pairs, split, rng))
            groups += made
            print(f"{source} {split}: {len(made)} groups", flush=True)
    write_groups(args.out, groups)


if __name__ == "__main__":
    main()
