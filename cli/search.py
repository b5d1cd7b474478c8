"""llm-decoder search: the best answers to a prompt, their scores, and what was looked at to find them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, QuietFlag, RemoteOptions, SamplingOptions, SearchOptions
from llm_decoder.cli._output import describe_speed, emit_json, note
from llm_decoder.cli._search_files import RUNS, append_run, check_file, run_of, tree_suffixes, write_tree
from llm_decoder.cli._stream import follow, read_stdin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.cli._stream import Events
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput, StreamEvent
    from llm_decoder.prompts import Prompt
    from llm_decoder.search.frontier import LiveBeam


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
    remote: RemoteOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    context: typer.Context,
) -> None:
    """Find the best answers to a prompt: by beams, as the best of several samples, or step by step.

    llm-decoder search "Once upon a time" --width 8 --n 3 --max-tokens 40 --tree tree.html

    The answers go to standard output as a table, the best first. With --url a server of this project searches, and no
    model is loaded here.
    """
    from llm_decoder.cli._candidates import emit_candidates, plain_output

    if (text is None) == (prompt is None):
        raise typer.BadParameter("give one prompt, as argument or as --prompt; - reads standard input")
    files = list(tree or ())
    check_files(files, runs)
    if remote.url is not None and ":" in (search.scorer or ""):
        message = (
            f"a function of yours cannot run on a server, got {search.scorer}; name logprob, reranker or likelihood"
        )
        raise typer.BadParameter(message, param_hint="--scorer")
    params = _open.search_params(sampling, search, model, in_chat=in_chat)
    words = text if prompt is None else prompt
    words = read_stdin() if words == "-" else words
    assert words is not None
    asked: Prompt = words
    if in_chat:
        # A model that is loaded here puts the system message in front by itself.
        system = [{"role": "system", "content": model.system}] if remote.url is not None and model.system else []
        asked = [*system, {"role": "user", "content": words}]
    with _open.open_either(model, params, remote, context) as llm:
        events = llm.stream_search(asked, params)
        output = _follow(llm, events, live=live)
        if as_json:
            emit_json(plain_output(output))
        else:
            emit_candidates(output)
        if files or runs is not None:
            # In a chat the prompt is what the user has said, not what the template made of it.
            run = run_of(llm, events, replace(output, prompt=words), params, log_prompt=log_prompts)
            for path in files:
                write_tree(run, path)
            if runs is not None:
                append_run(run, runs)
    if not quiet:
        note(describe_speed(output))


def _follow(llm: LLM | RemoteLLM, events: Events, *, live: bool) -> RequestOutput:
    if not live:
        return follow(events, lambda event: None)
    from llm_decoder.cli._search_view import showing

    beams_after = _live_beams(llm, events)
    with showing() as show:
        return follow(events, lambda event: show(event, beams_after(event)))


def _live_beams(llm: LLM | RemoteLLM, events: Events) -> Callable[[StreamEvent], Sequence[LiveBeam]]:
    """After each event; a server tells them."""
    from llm_decoder.cli._remote_search import RemoteSearch
    from llm_decoder.search.frontier import Frontier

    if isinstance(events, RemoteSearch):
        return lambda event: events.live
    frontier = Frontier(cast("LLM", llm).tokenizer)

    def beams(event: StreamEvent) -> Sequence[LiveBeam]:
        frontier.take(event)
        return frontier.live

    return beams


def check_files(trees: list[Path], runs: Path | None) -> None:
    """Raises typer.BadParameter, or ConfigError, for files that could not be written when the search is over."""
    for name, path in (*(("--tree", path) for path in trees), *([("--runs", runs)] if runs else [])):
        problem = check_file(path, (RUNS,) if name == "--runs" else tree_suffixes())
        if problem is not None:
            raise typer.BadParameter(problem, param_hint=name)
