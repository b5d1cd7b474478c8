"""llm-decoder stream: one text, event by event."""

from __future__ import annotations

import json
import random
from typing import Annotated

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions, QuietFlag, SamplingOptions
from llm_decoder.cli._output import describe_speed, emit_json, emit_text, note
from llm_decoder.cli._stream import follow, follow_text, read_stdin, samples_path


def stream(
    *,
    text: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The same, as a flag.", metavar="TEXT")] = None,
    echo: Annotated[bool, typer.Option(help="Print the prompt before the answer.")] = True,
    as_json: Annotated[bool, typer.Option("--json", "--jsonl", help="Print events, a JSON object a line.")] = False,
    quiet: QuietFlag = False,
    model: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Stream a text, or a sample story.

    Without a prompt: a story from one of the packaged beginnings.
    """
    if text is not None and prompt is not None:
        raise typer.BadParameter("give one prompt, as argument or as --prompt; - reads standard input")
    prompt = text if prompt is None else prompt
    params = _open.sampling_params(sampling, model)
    if params.n != 1 and not as_json:
        raise typer.BadParameter("one text is streamed; more need --json", param_hint="--n")
    if prompt is None:
        prompt = sample_prompt(params.seed)
    elif prompt == "-":
        prompt = read_stdin()
    with _open.open_for(model, params) as llm:
        events = llm.stream(prompt, params)
        if as_json:
            output = follow(events, emit_json)
        else:
            if echo:
                emit_text(prompt)
            output = follow_text(events)
    if not quiet:
        note(describe_speed(output))


def sample_prompt(seed: int | None) -> str:
    """One of the packaged beginnings of a story; the same for the same seed."""
    lines = samples_path().read_text(encoding="utf-8").splitlines()
    beginnings = [record["prompt"] for record in map(json.loads, lines) if "prompt" in record]
    return random.Random(seed).choice(beginnings)
