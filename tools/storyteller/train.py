"""Trains the storyteller until a deadline; goes on from the last checkpoint after a stop."""

import argparse
import os
import signal
import time
from datetime import datetime
from pathlib import Path

import schedule
import torch
from batches import Batches
from corpus import STAGES, answer_mask, documents, encode
from data import load_smalltalk, load_stories
from model import Config, Llama
from optimizer import make_optimizers
from tokenizers import Tokenizer

CHECKPOINT_SECONDS = 300
LOG_STEPS = 10
KEPT = (0.64, 0.73, 0.82)  # fractions of the time whose checkpoints are kept, for the export to average


def training_batches(data, tokenizer, size):
    """Returns the `Batches` of the training stories in the folder `data`."""
    stories, _ = load_stories(data)
    pools = encode(documents(stories, load_smalltalk(data)), tokenizer, Config().max_position_embeddings)
    pools = {name: [(ids, answer_mask(ids, tokenizer)) for ids in docs] for name, docs in pools.items()}
    for name, docs in pools.items():
        print(f"pool {name}: {len(docs)} documents, {sum(len(d) for d, _ in docs)} tokens", flush=True)
    return Batches(pools, size)


class Run:
    """The state of a training: network, optimizers, data position, counters."""

    def __init__(self, batches, peak, weight_decay, deadline):
        torch.manual_seed(1)
        self.model = Llama(Config())
        self.optimizers = make_optimizers(self.model, peak, weight_decay)
        self.batches, self.peak, self.deadline = batches, peak, deadline
        self.start, self.step, self.tokens, self.busy = time.time(), 0, 0, 0.0

    def save(self, path):
        """Writes everything needed to go on; the old file stays until the new one is whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "batches": self.batches.state(),
            "counters": (self.start, self.step, self.tokens, self.busy),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path):
        """Goes on from the checkpoint `path`."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.batches.restore(state["batches"])
        self.start, self.step, self.tokens, self.busy = state["counters"]

    def begin_round(self):
        """Starts the schedule anew, warmup first; weights, data position and token count stay."""
        self.start, self.step = time.time(), 0

    def advance(self):
        """Makes one step; returns its loss in nats per token."""
        began = time.time()
        fraction = schedule.progress(self.start, self.deadline)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(self.peak, fraction, self.step)
        batch = self.batches.next(STAGES[schedule.stage(fraction)])
        loss = self.model(torch.from_numpy(batch.inputs), batch.lengths, torch.from_numpy(batch.targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += len(batch.inputs)
        self.busy += time.time() - began
        return loss.item()


def train(run, checkpoint):
    """Steps until the deadline or SIGTERM and prints progress; writes `checkpoint` now and then.

    At the times of KEPT it is also written to a file of its own.
    """
    losses, mark, saved, stops = [], (run.tokens, run.busy), time.time(), []
    to_keep = [fraction for fraction in KEPT if fraction > schedule.progress(run.start, run.deadline)]
    signal.signal(signal.SIGTERM, lambda *_: stops.append(True))
    while time.time() < run.deadline and not stops:
        losses.append(run.advance())
        if run.step % LOG_STEPS == 0:
            speed = (run.tokens - mark[0]) / (run.busy - mark[1])
            done = 100 * schedule.progress(run.start, run.deadline)
            print(
                f"step {run.step} {done:.1f}% loss {sum(losses) / len(losses):.3f} "
                f"tokens {run.tokens} at {speed:.0f}/s",
                flush=True,
            )
            losses, mark = [], (run.tokens, run.busy)
        if to_keep and schedule.progress(run.start, run.deadline) >= to_keep[0]:
            run.save(checkpoint.with_stem(f"{checkpoint.stem}-{100 * to_keep.pop(0):.0f}"))
        if time.time() - saved > CHECKPOINT_SECONDS:
            run.save(checkpoint)
            saved = time.time()
    run.save(checkpoint)
    print(f"stopped: {run.step} steps, {run.tokens} tokens, {run.busy / 60:.1f} minutes", flush=True)


def main():
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with the .jsonl.xz files")
    parser.add_argument("--tokenizer", required=True, help="folder with tokenizer.json")
    parser.add_argument("--run", required=True, help="folder for the checkpoint")
    parser.add_argument("--until", required=True, help="end of the training, ISO time with zone")
    parser.add_argument("--from", dest="earlier", help="checkpoint of an earlier run to begin a new round from")
    parser.add_argument("--batch", type=int, default=5120, help="tokens in a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    tokenizer = Tokenizer.from_file(str(Path(args.tokenizer) / "tokenizer.json"))
    batches = training_batches(args.data, tokenizer, args.batch)
    run = Run(batches, args.lr, args.weight_decay, datetime.fromisoformat(args.until).timestamp())
    checkpoint = Path(args.run) / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        run.load(checkpoint)
    elif args.earlier:
        run.load(args.earlier)
        run.begin_round()
    train(run, checkpoint)


if __name__ == "__main__":
    main()
