"""Trains the reranker on groups until a deadline: the right candidate of a group against its others."""

import argparse
import time
from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np
import storyteller  # noqa: F401
import torch
import torch.nn.functional as F
from embeddings import token_vectors
from groups import STORIES, read_groups
from network import logits, make_config, make_model
from optimizer import Muon
from rows import batches, collate, encode
from schedule import progress, rate
from text import stable_number
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

LOG_STEPS = 25
SAVE_STEPS = 200
_DEVELOPMENT_PERCENT = 2  # documents of the training split that choices are made on
# In the first part of the time only short groups are read: many comparisons a token, until the network compares at all.
_EARLY, _SHORT = 0.12, 56  # fraction of the time, tokens of a group's longest row
_ALONE = 0.2  # weight of the loss of candidates by themselves
_STORIES = 0.6  # part of a step's tokens after that which are of stories
# Part of a source's groups that is read where that is not all: long passages cost more than they teach.
_PARTS = {"boolq": 0.6, "fairytaleqa": 0.25, "turns": 0.7, "tldr": 0.6, "disfl": 0.6, "continuation": 0.8}


def is_development(group):
    """True for the groups that are kept from the training to choose settings on."""
    return stable_number("development" + group.document) % 100 < _DEVELOPMENT_PERCENT


def scores(model, groups):
    """Returns a list of float tensors [n_candidates], one for each of the encoded `groups`."""
    ids, types, mask, counts = collate(groups)
    return torch.split(logits(model, ids, types, mask), counts)


def loss_of(model, groups):
    """Returns the mean cross-entropy of the right candidate in its group, in nats, and a little of that of each alone.

    The order in a group fixes scores only up to a number for each query. The second part asks whether a candidate is
    right by itself, so that its score means the same whatever stands beside it.
    """
    losses = []
    for own, group in zip(scores(model, groups), groups, strict=True):
        right = torch.zeros_like(own)
        right[group.gold] = 1
        alone = F.binary_cross_entropy_with_logits(own, right)
        losses.append(F.cross_entropy(own[None], torch.tensor([group.gold])) + _ALONE * alone)
    return torch.stack(losses).mean()


@torch.no_grad()
def accuracies(model, named):
    """Returns {name: (share of groups whose right candidate is first, n_groups)} of {name: encoded groups}."""
    result = {}
    for name, groups in named.items():
        rng = np.random.default_rng(1)
        right = sum(
            int(s.argmax()) == g.gold
            for b in batches(groups, 16384, rng)
            for s, g in zip(scores(model, b), b, strict=True)
        )
        result[name] = (right / len(groups), len(groups))
    return result


def optimizers(model, peak):
    """Returns [(optimizer, peak learning rate)]: Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layer." in n]
    tables = [p for n, p in model.named_parameters() if "embeddings" in n and p.ndim == 2]
    taken = {id(p) for p in matrices + tables}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        (Muon(matrices, lr=peak, weight_decay=0.01), peak),
        (torch.optim.AdamW(others, lr=peak / 2, betas=(0.9, 0.98), weight_decay=0.0), peak / 2),
        (torch.optim.AdamW(tables, lr=peak / 4, betas=(0.9, 0.98), weight_decay=0.0), peak / 4),
    ]


def endless(groups, size, rng):
    """Yields batches of `groups` forever."""
    while True:
        yield from batches(groups, size, rng)


def is_read(group):
    """True for the groups that are trained on."""
    number = stable_number("part" + group.query + group.texts[0]) % 1000
    return not is_development(group) and number < 1000 * _PARTS.get(group.source, 1)


def save(model, path):
    """Writes the weights; the old file stays until the new one is whole."""
    partial = Path(path).with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(path)


def train(model, tasks, named, deadline, peak, size, out, early):
    """Trains `model` on the encoded groups of both `tasks` until `deadline` (seconds since the epoch).

    `out` holds its weights; `early` says whether it begins with short groups.
    """
    moved = optimizers(model, peak)
    start, tokens, seen, running = time.time(), 0, 0, 0.0
    rng = np.random.default_rng(1)
    short = [endless([g for g in tasks[0] + tasks[1] if g.longest <= _SHORT], size, rng)]
    sizes = (size * _STORIES, size * (1 - _STORIES))
    both = [endless(own, part, rng) for own, part in zip(tasks, sizes, strict=True)]
    for step in count():
        done = progress(start, deadline)
        if done >= 1:
            break
        drawn = [next(stream) for stream in (short if early and done < _EARLY else both)]
        losses = [loss_of(model, batch) for batch in drawn]
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, top in moved:
            for group in optimizer.param_groups:
                group["lr"] = rate(top, done, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(ids) for batch in drawn for g in batch for ids in g.ids)
        seen += sum(map(len, drawn))
        loss = sum(losses).item() / len(losses)
        running = loss if step == 0 else 0.98 * running + 0.02 * loss
        if step % LOG_STEPS == 0:
            print(
                f"{time.time() - start:6.0f} s step {step} groups {seen} tokens {tokens} loss {running:.4f}", flush=True
            )
        if step % SAVE_STEPS == SAVE_STEPS - 1:
            save(model, out)
            report(model, named)
    save(model, out)
    report(model, named)
    print(f"{step} steps, {seen} groups of {len(tasks[0]) + len(tasks[1])}, {tokens} tokens", flush=True)


def report(model, named):
    """Prints how often the right candidate is first, by source."""
    found = accuracies(model, named)
    mean = np.mean([share for share, _ in found.values()])
    print(
        f"first {mean:.3f}: " + ", ".join(f"{n} {share:.3f} of {n_groups}" for n, (share, n_groups) in found.items()),
        flush=True,
    )


def by_source(groups, most):
    """Returns {source: groups} with at most `most` groups of each."""
    named = {}
    for g in groups:
        if len(named.setdefault(g.source, [])) < most:
            named[g.source].append(g)
    return named


def main():
    """Writes the weights at the deadline to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", required=True, nargs="+", help="JSON Lines files of groups")
    parser.add_argument("--tokenizer", required=True, help="folder written by vocabulary.py")
    parser.add_argument("--out", required=True, help="file for the weights (torch)")
    parser.add_argument("--from", dest="start", help="weights of an earlier run, where another round begins")
    parser.add_argument("--until", required=True, help="when the training ends, ISO 8601 with time zone")
    parser.add_argument("--peak", type=float, default=0.004, help="highest learning rate")
    parser.add_argument("--tokens", type=int, default=10240, help="padded tokens of a step")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(Path(args.tokenizer) / "tokenizer.json"))
    groups = [g for path in args.groups for g in read_groups(path, "train")]
    named = {n: encode(own, tokenizer) for n, own in by_source(filter(is_development, groups), 150).items()}
    read = [[g for g in groups if is_read(g) and (g.source in STORIES) == stories] for stories in (True, False)]
    tasks = [encode(own, tokenizer) for own in read]
    if args.start:
        model = BertForSequenceClassification(make_config())
        model.load_state_dict(torch.load(args.start, weights_only=True))
    else:
        rows = [g.ids[g.gold] for own in tasks for g in own]
        model = make_model(token_vectors(rows, tokenizer.get_vocab_size(), make_config().hidden_size))
    print(f"{len(tasks[0])} groups of stories, {len(tasks[1])} of questions", flush=True)
    deadline = datetime.fromisoformat(args.until).timestamp()
    train(model, tasks, named, deadline, args.peak, args.tokens, args.out, early=not args.start)


if __name__ == "__main__":
    main()
