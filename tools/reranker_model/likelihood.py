"""How likely does the embedded model find the candidates? Adds that to the held-out groups of the second task.

There the likelihood is that of the query after the candidate, as language models are asked to rank passages (Sachan et
al. 2022, "Improving passage retrieval with zero-shot question generation").
"""

import argparse
from dataclasses import replace

from groups import read_groups, write_groups

from llm_decoder import LLM

_LONGEST = 640  # tokens of a candidate that are read


def mean_logprob(llm, before, after):
    """Returns the mean log probability, in nats, of the token ids `after` that follow the ids `before`."""
    return round(float(llm.score([*before, *after])[-len(after) :].mean()), 5)


def with_logprobs(llm, group):
    """Returns `group` with the likelihood of its query after each of its candidates."""
    asked = llm.tokenizer.encode("\n\n" + group.query)[1:]
    logprobs = [mean_logprob(llm, llm.tokenizer.encode(text)[:_LONGEST], asked) for text in group.texts]
    return replace(group, logprobs=logprobs)


def main():
    """Reads the held-out groups of --groups and writes them with likelihoods to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", required=True, help="JSON Lines file written by pairs.py")
    parser.add_argument("--out", required=True, help="JSON Lines file of held-out groups")
    args = parser.parse_args()
    with LLM() as llm:
        print(f"{write_groups(args.out, (with_logprobs(llm, g) for g in read_groups(args.groups, 'held_out')))} groups")


if __name__ == "__main__":
    main()
