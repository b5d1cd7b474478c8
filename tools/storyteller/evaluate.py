"""How good is an exported model? Held-out perplexity in float32, and samples."""

import argparse
import math
import os
from collections import defaultdict

import torch
import torch.nn.functional as F
from chat import plain_story
from corpus import group
from data import load_stories
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Tell me a story about a dog and a red ball.",
    'Write a bedtime story called "The Sleepy Moon".',
    "Tell me a story about a girl named Mia and a big tree.",
    "Hello",
    "Who are you?",
]


@torch.no_grad()
def story_loss(model, ids):
    """Returns (sum of the losses in nats, number of predicted tokens) of one document.

    `ids` is int64 of shape (1, tokens) and starts with the begin token.
    """
    logits = model(ids).logits[0, :-1].float()
    return F.cross_entropy(logits, ids[0, 1:], reduction="sum").item(), ids.shape[1] - 1


def perplexities(model, tokenizer, stories):
    """Returns {group: (perplexity per token, bits per character, tokens)} and the same for "all"."""
    totals = defaultdict(lambda: [0.0, 0, 0])
    for story in stories:
        ids = tokenizer(plain_story(story.text), return_tensors="pt").input_ids
        if ids.shape[1] > model.config.max_position_embeddings:
            continue
        loss, count = story_loss(model, ids)
        for name in (group(story), "all"):
            totals[name] = [a + b for a, b in zip(totals[name], (loss, count, len(story.text)), strict=True)]
    return {
        name: (math.exp(loss / count), loss / math.log(2) / characters, count)
        for name, (loss, count, characters) in totals.items()
    }


@torch.no_grad()
def sample(model, tokenizer, prompt, seed):
    """Returns the answer to `prompt` with the model's own sampling settings and `seed`."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    torch.manual_seed(seed)
    out = model.generate(**ids)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def main():
    """Prints perplexities when --data is given, then samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder written by export.py")
    parser.add_argument("--data", help="folder with the .jsonl.xz files; without it only samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompt", action="append", help="may be given more than once")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.data:
        _, held_out = load_stories(args.data)
        for name, (perplexity, bits, count) in perplexities(model, tokenizer, held_out).items():
            print(f"{name}: perplexity {perplexity:.3f}, {bits:.3f} bits per character, {count} tokens")
    for prompt in args.prompt or PROMPTS:
        print(f"\n> {prompt} (seed {args.seed})\n{sample(model, tokenizer, prompt, args.seed)}")


if __name__ == "__main__":
    main()
