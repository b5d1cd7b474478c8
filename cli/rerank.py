"""llm-decoder rerank: documents in the order in which they answer a query, or a file of both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli._batch_lines import Line, parse_object, read_lines
from llm_decoder.cli._options import ConfigFlag, JsonFlag
from llm_decoder.cli._output import complain, emit_json, emit_table, progress, without_controls
from llm_decoder.cli._reranker_folder import reranker_folder
from llm_decoder.cli._stream import stdin
from llm_decoder.cli._verb import EXIT_OK

if TYPE_CHECKING:
    from llm_decoder import CrossEncoder
    from llm_decoder.encoders.cross_encoder import RankedDocument

HINT = "DOCUMENTS"


def rerank(
    *,
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What the documents should answer.")] = None,
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCUMENTS", help="A file with one a line, - for standard input, or texts."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help='{"query": ..., "documents": [...]} a line, instead; - is standard input.'),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            envvar="LLM_DECODER_RERANKER",
            show_envvar=False,
            help="The cross-encoder [the settings', else the embedded one].",
        ),
    ] = None,
    top_n: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the best N [all].")] = None,
    quantization: Annotated[str, typer.Option(metavar="NAME", help="Of the cross-encoder: int8 or none.")] = "int8",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto or cpu: nothing else computes cross-encoders.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that compute [one a physical core].")
    ] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> int:
    """Rank documents by how well they answer a query, the best first.

    A file has a document a line; where the first line begins with {, each is JSON with a "text". Scores are in 0..1.
    With --batch each line has a query and its documents, and gets a line of JSON; a bad one gets an {"error": ...}, the
    others go on, and the exit code is 1.
    """
    from llm_decoder import CrossEncoder

    if device not in ("auto", "cpu"):
        message = f"need cpu, where cross-encoders are computed, got {device!r:.60}"
        raise typer.BadParameter(message, param_hint="--device")
    if batch is None and (query is None or not documents):
        raise typer.BadParameter("need a query and documents, or --batch FILE", param_hint="QUERY")
    if batch is not None and query is not None:
        raise typer.BadParameter("its lines have the queries; give no other", param_hint="--batch")
    texts = [] if batch is not None else _documents(documents or [])
    folder = reranker_folder(reranker, config)
    encoder = CrossEncoder(folder, quantization=quantization, threads=threads)
    if batch is not None:
        n_failed = _rank_lines(encoder, batch, top_n)
        _tell_what_was_cut(encoder)
        return int(n_failed > 0)
    assert query is not None
    with progress("documents", len(texts)) as bar:
        ranked = encoder.rank(
            query, texts, top_n, activation="sigmoid", progress=lambda n_done, n_total: bar.advance(n_done - bar.n_done)
        )
    _tell_what_was_cut(encoder)
    if as_json:
        emit_json({"model": encoder.name, "results": _results(ranked, texts), "n_truncated": encoder.n_truncated})
    else:
        rows = [(f"{hit.score:.4f}", str(hit.index), _on_a_line(texts[hit.index])) for hit in ranked]
        emit_table(("SCORE", "INDEX", "DOCUMENT"), rows)
    return EXIT_OK


def _results(ranked: Sequence[RankedDocument], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"index": hit.index, "relevance_score": hit.score, "text": texts[hit.index]} for hit in ranked]


def _tell_what_was_cut(encoder: CrossEncoder) -> None:
    if encoder.n_truncated:
        complain("warning", f"{encoder.n_truncated} pairs were longer than {encoder.max_length} tokens and were cut")


def _rank_lines(encoder: CrossEncoder, name: str, top_n: int | None) -> int:
    """Writes a record for each line; how many of them are errors, which standard error names as well."""
    from llm_decoder.errors import LLMDecoderError

    n_failed = 0
    with contextlib.ExitStack() as stack:
        source = stdin().buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        bar = stack.enter_context(progress("lines", None))
        for line in read_lines(source):
            record: dict[str, Any] = {"index": line.index}
            try:
                record |= _ranked_line(encoder, line, record, top_n)
            except (LLMDecoderError, UnicodeError) as error:
                n_failed += 1
                complain("warning", f"[{name}] line {line.index + 1}: {error}")
                record["error"] = {"message": str(error), "type": type(error).__name__}
            emit_json(record)
            bar.advance(1)
    return n_failed


def _ranked_line(encoder: CrossEncoder, line: Line, record: dict[str, Any], top_n: int | None) -> dict[str, Any]:
    """record: gets the line's id, which its error has too."""
    from llm_decoder.errors import InvalidRequestError

    request = parse_object(line.text)
    if "id" in request:
        record["id"] = request["id"]
    query, documents = request.get("query"), request.get("documents")
    if not isinstance(query, str) or not query:
        raise InvalidRequestError(f"[query] need a text, got {query!r:.60}", param="query")
    if not isinstance(documents, list) or not documents:
        raise InvalidRequestError(f"[documents] need a list of texts, got {documents!r:.60}", param="documents")
    texts: list[str] = []
    for number, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            need = f'need texts, or objects with a "text", got {document!r:.60}'
            raise InvalidRequestError(f"[documents[{number}]] {need}", param="documents")
        texts.append(text)
    n_cut = encoder.n_truncated
    ranked = encoder.rank(query, texts, top_n, activation="sigmoid")
    return {"model": encoder.name, "results": _results(ranked, texts), "n_truncated": encoder.n_truncated - n_cut}


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
