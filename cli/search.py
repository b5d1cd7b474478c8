"""llm-decoder search: the best answers to a prompt, their scores, and what was looked at to find them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, QuietFlag, SamplingOptions, SearchOptions
from llm_decoder.cli._output import describe_speed, emit_json, note, plain
from llm_decoder.cli._stream import follow, read_stdin

if TYPE_CHECKING:
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput
    from llm_decoder.prompts import Prompt
    from llm_decoder.search.params import SearchParams


def search(
    *,
    text: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The same, as a flag.", metavar="TEXT")] = None,
    in_chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message, put into the model's chat template.")
    ] = False,
    live: Annotated[bool, typer.Option("--live", help="Show the search as it goes.")] = False,
    tree: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What was looked at, as .png, .svg, .pdf, .html or .jsonl. Repeatable."),
    ] = None,
    runs: Annotated[Path | None, typer.Option(metavar="FILE", help="Append it to this file of runs (.jsonl).")] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write the prompt into these files, not only its hash.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    search: SearchOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Find the best answers to a prompt: by beams, as the best of several samples, or step by step.

    llm-decoder search "Once upon a time" --width 8 --n 3 --max-tokens 40 --tree tree.html

    The answers go to standard output as a table, the best first.
    """
    from llm_decoder.cli._candidates import emit_candidates

    if (text is None) == (prompt is None):
        raise typer.BadParameter("give one prompt, as argument or as --prompt; - reads standard input")
    files = list(tree or ())
    check_files(files, runs)
    params = _open.search_params(sampling, search, model, in_chat=in_chat)
    words = text if prompt is None else prompt
    words = read_stdin() if words == "-" else words
    assert words is not None
    asked: Prompt = [{"role": "user", "content": words}] if in_chat else words
    with _open.open_for(model, params) as llm:
        output = _search(llm, asked, params, live=live)
        if as_json:
            emit_json(plain_output(output))
        else:
            emit_candidates(output)
        if files or runs is not None:
            # In a chat the prompt is what the user has said, not what the template made of it.
            write_files(llm, replace(output, prompt=words), params, files, runs, log_prompt=log_prompts)
    if not quiet:
        note(describe_speed(output))


def _search(llm: LLM, prompt: Prompt, params: SearchParams, *, live: bool) -> RequestOutput:
    if not live:
        # A list of messages or of token ids is one prompt.
        return llm.search(prompt, params)[0]
    from llm_decoder.cli._frontier import showing

    with showing(llm.tokenizer) as show:
        return follow(llm.stream_search(prompt, params), show)


def check_files(trees: list[Path], runs: Path | None) -> None:
    """Raises typer.BadParameter, or ConfigError, for files that could not be written when the search is over."""
    from llm_decoder.reranker.tree_picture import SUFFIXES, check_picture

    for name, file in (*(("--tree", path) for path in trees), *([("--runs", runs)] if runs else [])):
        known = (".jsonl",) if name == "--runs" else (*SUFFIXES, ".jsonl")
        if file.suffix.lower() not in known:
            raise typer.BadParameter(f"need a file that ends in {', '.join(known)}, got {file}", param_hint=name)
        if not file.parent.is_dir():
            raise typer.BadParameter(f"need a file in a folder that is there, got {file}", param_hint=name)
        if file.suffix.lower() != ".jsonl":
            check_picture(file)


def plain_output(output: RequestOutput) -> dict[str, Any]:
    """The output without its tree, which has files of its own."""
    values: dict[str, Any] = plain(output)
    values.pop("tree", None)
    return values


def write_files(
    llm: LLM,
    output: RequestOutput,
    params: SearchParams,
    trees: list[Path],
    runs: Path | None,
    *,
    log_prompt: bool,
) -> None:
    """Raises OSError."""
    from llm_decoder.reranker.tree_picture import write_picture
    from llm_decoder.search.run_file import read_runs, run_lines

    lines = list(run_lines(output, params, model=llm.name, tokenizer=llm.tokenizer, log_prompt=log_prompt))
    (run,), _ = read_runs(lines, "search")
    for path in trees:
        if path.suffix.lower() == ".jsonl":
            path.write_text("".join(lines), encoding="utf-8")
        else:
            write_picture(run, path)
    if runs is not None:
        # One write, so that searches that end together do not mix their lines.
        with runs.open("ab", buffering=0) as file:
            file.write("".join(lines).encode())
