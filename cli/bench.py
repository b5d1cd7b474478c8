"""llm-decoder bench: what a model reaches of this machine's limits, and where the time of a step goes."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli import _open
from llm_decoder.cli._columns import (
    BATCH_CONTEXT,
    DEFAULT_COLUMNS,
    HINT,
    Column,
    ColumnResult,
    check_columns,
    columns_that_fit,
    measure_columns,
    parse_columns,
)
from llm_decoder.cli._options import JsonFlag, ModelOptions, PlotFlag, ReportFlag
from llm_decoder.cli._output import emit_json, note, progress, to_json
from llm_decoder.cli._roofline_table import emit_report
from llm_decoder.cpu_topology import cpu_name, last_cache_bytes, usable_cores

if TYPE_CHECKING:
    from llm_decoder.roofline import Limits

LIMIT_ROUNDS = 5


def bench(
    *,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,...", help=f"What to measure [{DEFAULT_COLUMNS}, what fits].")
    ] = None,
    prompt_len: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Columns prefillN, decodeN and a batch behind N tokens.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, metavar="B", help="The same with a batch of B [8].")] = None,
    gen_len: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of a column that decodes.")] = 32,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Runs; the median counts. One more warms up.")] = 3,
    plot: PlotFlag = None,
    output: ReportFlag = None,
    as_json: JsonFlag = False,
    model: ModelOptions,
    context: typer.Context,
) -> None:
    """Measure tokens a second, hold them against what this machine can do, show where the time goes.

    The limits are memory bandwidth and the peak of multiply-adds with the same threads and kernels, measured beside
    each column. Columns: prefillN computes a prompt of N tokens; decodeN generates behind N tokens; batchB generates B
    answers together, behind 128 tokens or, as batchB@N, behind N. `bench serve` measures a server instead.
    """
    if context.invoked_subcommand is not None:
        return
    wanted = _wanted_columns(columns, prompt_len, batch)
    if model.speculation not in (None, "none"):
        message = f"need none, so that a step computes what its column says, got {model.speculation}; leave it out"
        raise typer.BadParameter(message, param_hint="--speculation")
    if model.device not in (None, "auto", "cpu"):
        message = (
            f"need cpu, whose limits it measures, got {model.device}; use --device cpu, or `bench serve`, which "
            "measures a server on any device"
        )
        raise typer.BadParameter(message, param_hint="--device")
    model = dataclasses.replace(model, speculation="none", device="cpu")
    check_files(plot, output)
    started = time.perf_counter()
    with _open.open_llm(model) as llm:
        load_s = time.perf_counter() - started
        chosen = _choose(wanted, gen_len, llm.max_model_len)
        backend = llm.stats()["backend"]
        measure_limits = limits_probe(backend["threads"], backend["isa"])
        with progress("runs", len(chosen) * (1 + repeat)) as bar:
            results = list(
                measure_columns(llm, chosen, gen_len=gen_len, repeat=repeat, measure_limits=measure_limits, bar=bar)
            )
        report = Report(
            llm.name, gen_len, repeat, load_s, _best([result.limits for result in results]), results, backend
        )
    if output is not None:
        output.write_text(to_json(report.record()) + "\n", encoding="utf-8")
    if plot is not None:
        from llm_decoder.cli._roofline_plot import write_plot

        write_plot(plot, report.title, report.limits, results)
    if any((part.limit_share or 0.0) > 1.0 for result in results for part in result.parts.values()):
        note("more than 100% is no mistake: those weights or pages lie in a cache, which is faster than memory")
    if as_json:
        emit_json(report.record())
    else:
        emit_report(report.title, report.limits, results)


@dataclass(frozen=True)
class Report:
    """What bench found. limits: the best that was measured beside any column."""

    model: str
    gen_len: int
    repeat: int
    load_s: float
    limits: Limits
    columns: list[ColumnResult]
    engine: dict[str, Any]

    @property
    def title(self) -> str:
        engine = self.engine
        threads = "1 thread" if engine["threads"] == 1 else f"{engine['threads']} threads"
        name = Path(self.model).name if Path(self.model).is_absolute() else self.model
        what = f"{name}, {engine['layout']} weights, {engine['kv_cache_dtype']} KV"
        return f"{what}: {threads} of {cpu_name()}, {engine['isa']}"

    def record(self) -> dict[str, Any]:
        """As JSON has it. Sizes in bytes, times in seconds, limits a second."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"machine": machine()}


def check_files(plot: Path | None, output: Path | None) -> None:
    """Raises typer.BadParameter, or ConfigError, for files that could not be written when all is measured."""
    for name, file in (("--plot", plot), ("--output", output)):
        if file is not None and not file.parent.is_dir():
            raise typer.BadParameter(f"need a file in a folder that is there, got {file}", param_hint=name)
    if plot is not None:
        from llm_decoder.cli._roofline_plot import check_plot

        check_plot(plot)


def machine() -> dict[str, Any]:
    """The machine and the programs, as a report has them."""
    import platform

    import llm_decoder

    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "last_cache_bytes": last_cache_bytes(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "llm_decoder": llm_decoder.__version__,
    }


def limits_probe(threads: int, isa: str) -> Callable[[], Limits]:
    """Measures the machine's limits, each the best of a few short rounds, whenever it is called."""
    from llm_decoder.backends import open_limits
    from llm_decoder.roofline import Limits

    machine = open_limits(threads, isa)
    return lambda: Limits(
        machine.read_bytes_per_s(LIMIT_ROUNDS),
        machine.int8_ops_per_s(LIMIT_ROUNDS),
        machine.f32_ops_per_s(LIMIT_ROUNDS),
    )


def _wanted_columns(columns: str | None, prompt_len: int | None, batch: int | None) -> list[Column] | None:
    """What the flags ask for; None = the default ones. Raises typer.BadParameter."""
    if columns is not None:
        if prompt_len is not None or batch is not None:
            raise typer.BadParameter("need either columns or --prompt-len and --batch, got both", param_hint=HINT)
        return parse_columns(columns)
    if prompt_len is None and batch is None:
        return None
    length = prompt_len or BATCH_CONTEXT
    return parse_columns(f"prefill{length},decode{length},batch{batch or 8}@{length}")


def _choose(wanted: list[Column] | None, gen_len: int, max_model_len: int) -> list[Column]:
    """Raises typer.BadParameter when a column that was asked for, or every default one, is too long for the context."""
    columns = parse_columns(DEFAULT_COLUMNS) if wanted is None else wanted
    fitting = columns_that_fit(columns, gen_len, max_model_len)
    if wanted is None and fitting:
        left_out = [column.name for column in columns if column not in fitting]
        if left_out:
            note(f"left out {', '.join(left_out)}: longer than the context of {max_model_len} tokens")
        return fitting
    check_columns(columns, gen_len, max_model_len)
    return columns


def _best(limits: list[Limits]) -> Limits:
    return functools.reduce(lambda one, other: one.best_of(other), limits)
