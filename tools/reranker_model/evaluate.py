"""How often does a reranker find the right candidate of held-out groups, beside simpler ways to choose?

Prints a table for each task and writes the figures as JSON: the share of groups whose right candidate is first, the
mean reciprocal rank, NDCG@10, and by how much the reranker is better than each other way, with 95 % intervals.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from groups import STORIES, read_groups
from lexical import Bm25, overlap
from measures import interval, quality

MEASURES = ("first", "mrr", "ndcg@10")


def core_scores(folder, groups, quantization):
    """Returns the scores of each group's candidates as this engine computes them."""
    from llm_decoder import CrossEncoder

    model = CrossEncoder(folder, quantization=quantization)
    return [model.score(g.query, g.texts) for g in groups]


def torch_scores(folder, groups):
    """Returns the scores of each group's candidates as transformers computes them, in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    result = []
    with torch.no_grad():
        for g in groups:
            rows = tokenizer([g.query] * len(g.texts), g.texts, padding=True, truncation=True, return_tensors="pt")
            result.append(model(**rows).logits[:, 0].numpy())
    return result


def bm25_scores(groups):
    """Returns the BM25 scores of each group's candidates; words are counted over all candidates of the source."""
    texts = defaultdict(list)
    for g in groups:
        texts[g.source] += g.texts
    found = {source: Bm25(own) for source, own in texts.items()}
    place, result = defaultdict(int), []
    for g in groups:
        at = place[g.source]
        result.append(found[g.source].scores(g.query)[at : at + len(g.texts)])
        place[g.source] += len(g.texts)
    return result


def rivals_of(groups):
    """Returns {name: scores of each group's candidates} of the ways to choose without a reranker."""
    return {
        "log probability": [g.logprobs for g in groups],
        "least log probability": [[-x for x in g.logprobs] for g in groups],
        "longest": [[len(t) for t in g.texts] for g in groups],
        "shortest": [[-len(t) for t in g.texts] for g in groups],
        "word overlap": [[overlap(g.query, t) for t in g.texts] for g in groups],
        "BM25": bm25_scores(groups),
        "chance": [[0.0] * len(g.texts) for g in groups],
    }


def table(groups, ways, reranker):
    """Returns {way: {measure: mean, "gain": {measure: [mean, low, high]}}}: the gain of the reranker over that way."""
    golds = [g.gold for g in groups]
    found = {n: np.array([quality(s, at) for s, at in zip(all_, golds, strict=True)]) for n, all_ in ways.items()}
    documents = [g.document for g in groups]
    rows = {}
    for name, values in found.items():
        rows[name] = dict(zip(MEASURES, values.mean(0).round(4).tolist(), strict=True))
        if name != reranker:
            gains = found[reranker] - values
            rows[name]["gain"] = {
                m: [round(float(gains[:, i].mean()), 4), *(round(x, 4) for x in interval(gains[:, i], documents))]
                for i, m in enumerate(MEASURES)
            }
    return {"groups": len(groups), "documents": len(set(documents)), "ways": rows}


def shown(name, figures):
    """Returns the Markdown table of the `figures` of one task."""
    lines = [
        f"{name}: {figures['groups']} groups of {figures['documents']} documents",
        "",
        "| chosen by | first | MRR | NDCG@10 | reranker is first more often by (95 %) |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for way, row in figures["ways"].items():
        gain = "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["gain"]["first"]) if "gain" in row else ""
        lines.append(f"| {way} | {row['first']:.3f} | {row['mrr']:.3f} | {row['ndcg@10']:.3f} | {gain} |")
    return "\n".join(lines) + "\n"


def measured(folder, groups, others, reranker):
    """Returns {task: figures} and {source: figures} of `groups`; `others` are (name, function) of further rerankers."""
    result = {}
    tasks = {
        "stories": [g for g in groups if g.source in STORIES],
        "questions": [g for g in groups if g.source not in STORIES],
    }
    for task, own in tasks.items():
        if own:
            ways = {name: score(folder, own) for name, score in [reranker, *others]}
            ways["both, alpha 0.5"] = [
                0.5 * np.asarray(s) + 0.5 * np.asarray(g.logprobs) for s, g in zip(ways[reranker[0]], own, strict=True)
            ]
            ways |= rivals_of(own)
            result[task] = table(own, ways, reranker[0])
            for source in dict.fromkeys(g.source for g in own):
                kept = [i for i, g in enumerate(own) if g.source == source]
                part = {n: [all_[i] for i in kept] for n, all_ in ways.items()}
                result[source] = table([own[i] for i in kept], part, reranker[0])
    return result


def main():
    """Measures the reranker in --model on the held-out groups of --groups."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of the reranker")
    parser.add_argument("--groups", required=True, nargs="+", help="JSON Lines files of held-out groups with logprobs")
    parser.add_argument("--out", required=True, help="JSON file for the figures")
    parser.add_argument("--torch", action="store_true", help="scores of transformers, not of this engine")
    args = parser.parse_args()
    groups = [g for path in args.groups for g in read_groups(path, "held_out")]
    if args.torch:
        reranker, others = ("reranker, float32 (transformers)", torch_scores), []
    else:
        reranker = ("reranker, int8", lambda folder, own: core_scores(folder, own, "int8"))
        others = [("reranker, float32", lambda folder, own: core_scores(folder, own, "none"))]
    figures = measured(args.model, groups, others, reranker)
    Path(args.out).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for name, own in figures.items():
        print(shown(name, own))


if __name__ == "__main__":
    main()
