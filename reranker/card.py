"""The README card of a finetuned reranker: what it learnt from, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_decoder.reranker.evaluate import Evaluation, Interval
from llm_decoder.reranker.metrics import METRICS

__all__ = ["write_card"]


def write_card(folder: Path, base: str, params: Mapping[str, Any], n_learnt: int, evaluation: Evaluation) -> None:
    """Writes README.md into the folder. base: the name of the model that it was finetuned from."""
    settings = ", ".join(f"{name} {value}" for name, value in params.items() if value is not None)
    lines = [
        "---",
        "pipeline_tag: text-ranking",
        "tags: [cross-encoder, reranker]",
        "---",
        "",
        f"# {folder.name}",
        "",
        f"A cross-encoder with one label, finetuned from {base} on {n_learnt} groups of candidates: {settings}.",
        "",
        f"On {evaluation.n_groups} groups of {evaluation.n_queries} queries that were held out, with 95 % intervals "
        "(bootstrap over queries); the differences are paired.",
        "",
        *_table(evaluation),
        "",
        "```python",
        "from llm_decoder import LLM, SearchParams",
        "",
        f'llm = LLM(reranker="path/to/{folder.name}")',
        'llm.search("...", SearchParams(scorer="reranker"))',
        "```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(evaluation: Evaluation) -> list[str]:
    heads = [f"ndcg@{evaluation.k}" if metric == "ndcg" else metric for metric in METRICS]
    first = evaluation.scorers[0].name
    rows = [(figures.name, figures) for figures in evaluation.scorers]
    rows += [(f"{first} - {figures.name}", figures) for figures in evaluation.differences]
    return [
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
        *(
            f"| {name} | {' | '.join(_cell(getattr(figures, metric)) for metric in METRICS)} |"
            for name, figures in rows
        ),
    ]


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
