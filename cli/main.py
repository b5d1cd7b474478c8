"""The command line program `llm-decoder`: one file a verb. What is heavy is imported inside the verbs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from llm_decoder.cli._output import complain
from llm_decoder.cli._verb import EXIT_ERROR, EXIT_INTERRUPTED, Command, forget_stdout, verb
from llm_decoder.cli.batch import batch
from llm_decoder.cli.bench import bench
from llm_decoder.cli.bench_serve import bench_serve
from llm_decoder.cli.cache import clear_cache, list_cache
from llm_decoder.cli.chat import chat
from llm_decoder.cli.convert import convert
from llm_decoder.cli.devices import devices
from llm_decoder.cli.doctor import doctor
from llm_decoder.cli.evaluate_reranker import rerank_eval
from llm_decoder.cli.finetune_reranker import finetune_reranker
from llm_decoder.cli.generate import generate
from llm_decoder.cli.label import label
from llm_decoder.cli.models_list import list_models, show_model
from llm_decoder.cli.rerank import rerank
from llm_decoder.cli.search import search
from llm_decoder.cli.serve import serve
from llm_decoder.cli.stream import stream
from llm_decoder.cli.tree import tree
from llm_decoder.cli.web import web

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}


def _make_app(help: str | None = None, *, completion: bool = False, no_args_is_help: bool = True) -> typer.Typer:
    return typer.Typer(
        help=help,
        no_args_is_help=no_args_is_help,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=HELP_FLAGS,
    )


app = _make_app(
    "Runs language models on this machine: text, chat and batches from INT8 weights and one paged KV cache.",
    completion=True,
)
VERBS: dict[str, Callable[..., int | None]] = {
    "generate": generate,
    "chat": chat,
    "batch": batch,
    "stream": stream,
    "search": search,
    "tree": tree,
    "serve": serve,
    "rerank": rerank,
    "label": label,
    "rerank-eval": rerank_eval,
    "finetune-reranker": finetune_reranker,
    "convert": convert,
    "list": list_models,
    "show": show_model,
    "devices": devices,
    "doctor": doctor,
    "web": web,
}
for name, function in VERBS.items():
    app.command(name, cls=Command)(verb(function))
cache_app = _make_app("Quantised weights kept on disk.")
cache_app.command("ls")(verb(list_cache))
cache_app.command("clear")(verb(clear_cache))
bench_app = _make_app(no_args_is_help=False)
bench_app.callback(invoke_without_command=True, help=bench.__doc__)(verb(bench))
bench_app.command("serve", cls=Command)(verb(bench_serve))
GROUPS = {"bench": bench_app, "cache": cache_app}
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _show_version(asked: bool) -> None:
    if asked:
        import llm_decoder

        typer.echo(f"llm-decoder {llm_decoder.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Flags that stand before the verb."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the program on `arguments` (None: those of the process) and returns its exit code.

    0 done, 1 an error that standard error names, 2 wrong usage, 130 Ctrl-C.
    """
    for name in ("stdout", "stderr"):  # closed by the caller: what goes there is for nobody
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A text that the terminal's encoding lacks is shown escaped; it must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:  # help that cannot be written
        code = _complain_of_stdout(error)
    else:
        code = 0
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        forget_stdout()
    except OSError as error:
        code = _complain_of_stdout(error)
    return code


def _complain_of_stdout(error: OSError) -> int:
    forget_stdout()
    complain("error", f"[stdout] {error.strerror}")
    return EXIT_ERROR


def _run(arguments: list[str]) -> None:
    """A verb is run as a program of its own: the whole one looks at its own flags first, and so imports pydantic."""
    first = arguments[0] if arguments else ""
    if first in VERBS:
        program = _make_app()
        program.command(cls=Command, context_settings=HELP_FLAGS)(verb(VERBS[first]))
    elif first in GROUPS:
        program = GROUPS[first]
    else:
        app(args=arguments, prog_name="llm-decoder")
        return
    program(args=arguments[1:], prog_name=f"llm-decoder {first}")


if __name__ == "__main__":
    sys.exit(main())
