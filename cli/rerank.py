"""llm-decoder rerank: documents in the order in which they answer a query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_decoder.cli._batch_lines import read_lines
from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import complain, emit_json, emit_table, progress, without_controls
from llm_decoder.cli._stream import stdin

HINT = "DOCUMENTS"


def rerank(
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What the documents should answer.")],
    documents: Annotated[
        list[str], typer.Argument(metavar="DOCUMENTS", help="A file with one a line, - for standard input, or texts.")
    ],
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="LLM_DECODER_RERANKER",
            show_envvar=False,
            help="The cross-encoder [the embedded one].",
        ),
    ] = None,
    top_n: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the best N [all].")] = None,
    quantization: Annotated[str, typer.Option(metavar="NAME", help="Of the cross-encoder: int8 or none.")] = "int8",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that compute [one a physical core].")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank documents by how well they answer a query, the best first.

    A file has a document a line; where the first line begins with {, each is JSON with a "text". Scores are in 0..1.
    """
    from llm_decoder import CrossEncoder
    from llm_decoder.embedded import embedded_reranker

    texts = _documents(documents)
    encoder = CrossEncoder(
        embedded_reranker() if reranker is None else reranker, quantization=quantization, threads=threads
    )
    with progress("documents", len(texts)) as bar:
        ranked = encoder.rank(
            query, texts, top_n, activation="sigmoid", progress=lambda n_done, n_total: bar.advance(n_done - bar.n_done)
        )
    if encoder.n_truncated:
        complain("warning", f"{encoder.n_truncated} pairs were longer than {encoder.max_length} tokens and were cut")
    if as_json:
        results = [{"index": hit.index, "relevance_score": hit.score, "text": texts[hit.index]} for hit in ranked]
        emit_json({"model": encoder.name, "results": results, "n_truncated": encoder.n_truncated})
    else:
        rows = [(f"{hit.score:.4f}", str(hit.index), _on_a_line(texts[hit.index])) for hit in ranked]
        emit_table(("SCORE", "INDEX", "DOCUMENT"), rows)


def _documents(given: list[str]) -> list[str]:
    """Texts as they are, or the lines of the one file. Raises typer.BadParameter."""
    if len(given) > 1:
        return given
    if given == ["-"]:
        lines = [line.text for line in read_lines(stdin().buffer)]
    else:
        path = Path(given[0])
        if not path.is_file():
            message = f"need a file, - or several documents, got {given[0]!r:.100}, which is no file"
            raise typer.BadParameter(message, param_hint=HINT)
        with path.open("rb") as file:
            lines = [line.text for line in read_lines(file)]
    if not lines:
        raise typer.BadParameter(f"need a document a line, got none in {given[0]!r:.100}", param_hint=HINT)
    return [_text(number, line) for number, line in enumerate(lines, 1)] if lines[0].startswith("{") else lines


def _text(number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        message = f'document {number}: need a JSON object with a "text", got {line[:60]!r}'
        raise typer.BadParameter(message, param_hint=HINT)
    return text


def _on_a_line(text: str) -> str:
    return without_controls(" ".join(text.split()))
