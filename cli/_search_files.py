"""Searches kept in files: as pictures, and as runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.cli._stream import Events
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput
    from llm_decoder.search.params import SearchParams
    from llm_decoder.search.run_file import SearchRun

RUNS = ".jsonl"


def check_file(path: Path, suffixes: Collection[str]) -> str | None:
    """What is wrong with a file to be written, None where nothing is. Raises ConfigError where what draws it is not
    installed."""
    from llm_decoder.reranker.tree_picture import check_picture

    if path.suffix.lower() not in suffixes:
        return f"need a file that ends in {', '.join(suffixes)}, got {path}"
    if not path.parent.is_dir():
        return f"need a file in a folder that is there, got {path}"
    if path.suffix.lower() != RUNS:
        check_picture(path)
    return None


def tree_suffixes() -> tuple[str, ...]:
    """What files of one search end in."""
    from llm_decoder.reranker.tree_picture import SUFFIXES

    return (*SUFFIXES, RUNS)


def run_of(
    llm: LLM | RemoteLLM, events: Events, output: RequestOutput, params: SearchParams, *, log_prompt: bool = False
) -> SearchRun:
    """A search that is over. events: those that `output` came with; of a server they have the texts of the nodes."""
    from llm_decoder.cli._remote_search import RemoteSearch
    from llm_decoder.search.run_file import node_texts, recorded

    if isinstance(events, RemoteSearch):
        texts = events.texts
    elif output.tree is None:
        texts = {}
    else:
        texts = node_texts(output.tree, cast("LLM", llm).tokenizer, output.prompt_token_ids)
    return recorded(output, params, model=llm.name or "", texts=texts, log_prompt=log_prompt)


def write_tree(run: SearchRun, path: Path) -> None:
    """By what its name ends in. Raises OSError."""
    from llm_decoder.reranker.tree_picture import write_picture

    if path.suffix.lower() == RUNS:
        path.write_text("".join(run.lines()), encoding="utf-8")
    else:
        write_picture(run, path)


def append_run(run: SearchRun, path: Path) -> None:
    """Raises OSError."""
    # One write, so that searches that end together do not mix their lines.
    with path.open("ab", buffering=0) as file:
        file.write("".join(run.lines()).encode())
