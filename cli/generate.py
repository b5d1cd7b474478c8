"""llm-decoder generate: text that goes on from a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, QuietFlag, RemoteOptions, SamplingOptions
from llm_decoder.cli._output import describe_speed, emit_json, emit_line, emit_text, note
from llm_decoder.cli._stream import follow_text, read_stdin

if TYPE_CHECKING:
    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.llm import LLM
    from llm_decoder.outputs import RequestOutput
    from llm_decoder.sampling import SamplingParams


def generate(
    *,
    text: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; - reads standard input.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The same, as a flag.", metavar="TEXT")] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt before the answer.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    remote: RemoteOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    context: typer.Context,
) -> None:
    """Go on from a prompt. The text streams to standard output, its speed goes to standard error.

    llm-decoder generate "Once upon a time" --max-tokens 100 --temperature 0.7

    With --url a server of the OpenAI API answers, and no model is loaded here.
    """
    if (text is None) == (prompt is None):
        raise typer.BadParameter("give one prompt, as argument or as --prompt; - reads standard input")
    prompt = text if prompt is None else prompt
    params = _open.sampling_params(sampling, model)
    prompt = read_stdin() if prompt == "-" else prompt
    assert prompt is not None
    with _open.open_either(model, params, remote, context) as llm:
        if as_json:
            output = llm.generate(prompt, params)[0]
            emit_json(output)
        else:
            output = _write(llm, prompt, params, echo=echo)
    if not quiet:
        note(describe_speed(output))


def _write(llm: LLM | RemoteLLM, prompt: str, params: SamplingParams, *, echo: bool) -> RequestOutput:
    if params.n == 1:
        if echo:
            emit_text(prompt)
        return follow_text(llm.stream(prompt, params))
    output = llm.generate(prompt, params)[0]
    for completion in output.outputs:
        if completion.index:
            emit_line("---")
        emit_text((prompt if echo else "") + completion.text + "\n")
    return output
