"""llm-decoder bench serve: a server under load, from the outside."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._options import JsonFlag, ModelOptions, PlotFlag, RemoteOptions, ReportFlag
from llm_decoder.cli._output import emit_json, note, to_json
from llm_decoder.cli._verb import EXIT_ERROR, EXIT_OK
from llm_decoder.cli._workload import FIRST_TOKEN, Workload, parse_lengths
from llm_decoder.cli.bench import check_files, machine

if TYPE_CHECKING:
    from llm_decoder.cli._load import Load
    from llm_decoder.cli._own_server import OwnServer

DEFAULT_CONCURRENCY = 8
_PATH = "/v1/completions"


def bench_serve(
    *,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="Requests that are measured.")] = 64,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=f"Open requests at most [{DEFAULT_CONCURRENCY}; with --rate any]."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-3, metavar="R", help="Requests a second, at random moments (Poisson).")
    ] = None,
    prompt_len: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Tokens of a prompt: 128, 64-256, or 128,128,2048.")
    ] = "128",
    gen_len: Annotated[str, typer.Option(metavar="LENGTHS", help="Tokens of an answer, in the same way.")] = "128",
    shared_prefix: Annotated[
        int, typer.Option(min=0, metavar="N", help="So many first tokens are the same in all prompts.")
    ] = 0,
    vocab: Annotated[
        int, typer.Option(min=FIRST_TOKEN + 1, metavar="N", help="Prompts are of token ids below N.")
    ] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts, lengths and moments.")] = 0,
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Requests before, which do not count.")] = 4,
    timeout_s: Annotated[float, typer.Option(min=0.1, metavar="S", help="For a request, then it has failed.")] = 600.0,
    plot: PlotFlag = None,
    output: ReportFlag = None,
    as_json: JsonFlag = False,
    remote: RemoteOptions,
    model: ModelOptions,
    context: typer.Context,
) -> int:
    """Put a load on a server and measure what its clients see: times to the first token and between tokens, tokens a
    second, errors.

    With --url any server of the OpenAI API, with --model one of our own that is started for it. Prompts go to
    /v1/completions as token ids; answers are greedy and never end early.
    """
    check_files(plot, output)
    lengths = parse_lengths(prompt_len, "--prompt-len"), parse_lengths(gen_len, "--gen-len")
    if shared_prefix >= lengths[0].low:
        message = f"need fewer tokens than the shortest prompt, {lengths[0].low}, got {shared_prefix}"
        raise typer.BadParameter(message, param_hint="--shared-prefix")
    if rate is None and concurrency is None:
        concurrency = DEFAULT_CONCURRENCY
    workload = Workload(requests, *lengths, shared_prefix, vocab, rate, seed)
    with _server(remote, model, context) as (url, own):
        name = _model_name(url, remote, model, context)
        workload = dataclasses.replace(workload, model=name)
        if warmup:
            note(f"warming up: {warmup} requests")
            ahead = dataclasses.replace(workload, n_requests=warmup, rate=None)
            _run(url, remote.key, ahead, concurrency, timeout_s, salt=" warm-up")
        cpu_s = None if own is None else own.cpu_s()
        load = _run(url, remote.key, workload, concurrency, timeout_s)
        server_cpu_s = None if own is None or cpu_s is None else (own.cpu_s() or cpu_s) - cpu_s
    return _report(url, workload, concurrency, load, server_cpu_s, plot, output, as_json)


@contextlib.contextmanager
def _server(
    remote: RemoteOptions, model: ModelOptions, context: typer.Context
) -> Iterator[tuple[str, OwnServer | None]]:
    if remote.url is not None:
        yield remote.checked_url(), None
        return
    from llm_decoder.cli._own_server import own_server

    with own_server(model) as server:
        yield server.url, server


def _model_name(url: str, remote: RemoteOptions, model: ModelOptions, context: typer.Context) -> str | None:
    """What the server calls its model; it is there when this returns."""
    from llm_decoder.cli._remote import RemoteLLM

    given = None if remote.url is None else _open.given_model(model, context)
    with RemoteLLM(url, remote.key, given) as server:
        return server.name


def _run(
    url: str, key: str | None, workload: Workload, concurrency: int | None, timeout_s: float, salt: str = ""
) -> Load:
    from llm_decoder.cli._exchange import Address, post_request
    from llm_decoder.cli._load import run_load

    address = Address.of(url)
    requests = [post_request(address, _PATH, body, key) for body in workload.bodies(salt)]
    return run_load(address, requests, workload.moments(), concurrency=concurrency, timeout_s=timeout_s)


def _report(
    url: str,
    workload: Workload,
    concurrency: int | None,
    load: Load,
    server_cpu_s: float | None,
    plot: Path | None,
    output: Path | None,
    as_json: bool,
) -> int:
    from llm_decoder.cli._load_report import emit_load, figures

    shown = figures(load, server_cpu_s)
    title = _title(url, workload, concurrency)
    if output is not None or as_json:
        asked: dict[str, Any] = {"url": url, "concurrency": concurrency, **dataclasses.asdict(workload)}
        record = {"workload": asked, "figures": shown, "machine": machine(), "requests": load.outcomes}
        if output is not None:
            output.write_text(to_json(record) + "\n", encoding="utf-8")
        if as_json:
            emit_json(record)
    if plot is not None:
        from llm_decoder.cli._load_plot import write_load_plot

        write_load_plot(plot, title, load)
    if not as_json:
        emit_load(title, shown)
    return EXIT_OK if shown["n_good"] else EXIT_ERROR


def _title(url: str, workload: Workload, concurrency: int | None) -> str:
    load = f"{workload.rate:g} requests/s at random" if workload.rate is not None else ""
    at_once = f"{concurrency} at once" if concurrency is not None else ""
    lengths = f"prompts of {workload.prompt} tokens, answers of {workload.answer}"
    what = workload.model or "a model"
    return f"{what} at {url}: {', '.join(part for part in (load, at_once, lengths) if part)}"
