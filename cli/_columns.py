"""What bench measures: columns, each a prompt or a batch of answers run through the engine with its steps profiled, and
held against the floor of its steps."""

from __future__ import annotations

import random
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from llm_decoder.backends import StepTimes
    from llm_decoder.cli._output import Progress
    from llm_decoder.llm import LLM
    from llm_decoder.roofline import Limits, Work

DEFAULT_COLUMNS = "prefill512,prefill2048,decode128,decode2048,batch8,batch16"
BATCH_CONTEXT = 128
HINT = "--columns"
_NAME = re.compile(r"(?:(?P<kind>prefill|decode)(?P<length>\d{1,8})|batch(?P<size>\d{1,5})(?:@(?P<context>\d{1,8}))?)")


@dataclass(frozen=True)
class Column:
    """prefill: the tokens of one prompt, n_prompt of them. Otherwise: tokens generated behind prompts of n_prompt, by
    n_sequences answers together."""

    name: str
    n_prompt: int
    n_sequences: int = 1
    is_prefill: bool = False

    def n_tokens(self, gen_len: int) -> int:
        """Tokens that each of its sequences comes to have."""
        return self.n_prompt + self.n_generated(gen_len)

    def n_generated(self, gen_len: int) -> int:
        """One more than is measured: what follows a step counts as its time, and nothing follows the last."""
        return 2 if self.is_prefill else gen_len + 2


@dataclass(frozen=True)
class Part:
    """A part of what was measured: seconds, the share of all of it, and of its own limit, where it has one."""

    seconds: float
    time_share: float
    limit_share: float | None


@dataclass(frozen=True)
class ColumnResult:
    """One column. runs: tokens/s of each; the rest is of the median one. seconds and work are of the whole prompt
    for prefill, of a step otherwise. share: of the limit, floor_tokens_per_s is all of it; bound: by what."""

    name: str
    n_prompt: int
    n_sequences: int
    is_prefill: bool
    n_steps: int
    tokens_per_s: float
    runs: tuple[float, ...]
    floor_tokens_per_s: float
    share: float
    bound: str
    limits: Limits
    seconds: float
    work: Work
    parts: dict[str, Part]


def parse_columns(text: str) -> list[Column]:
    """ "prefill512,decode128,batch8,batch8@512" -> columns. Raises typer.BadParameter."""
    columns = [_parse_column(name.strip()) for name in text.split(",")]
    if len({column.name for column in columns}) < len(columns):
        raise typer.BadParameter(f"need each column once, got {text!r}", param_hint=HINT)
    return columns


def _parse_column(name: str) -> Column:
    match = _NAME.fullmatch(name)
    column = None
    if match and match["kind"]:
        column = Column(name, int(match["length"]), is_prefill=match["kind"] == "prefill")
    elif match:
        column = Column(name, int(match["context"] or BATCH_CONTEXT), int(match["size"]))
    if column is None or min(column.n_prompt, column.n_sequences) < 1 or (column.is_prefill and column.n_prompt < 2):
        wanted = "need prefillN, decodeN, batchB or batchB@N, N tokens of prompt, B sequences"
        raise typer.BadParameter(f"{wanted}, such as {DEFAULT_COLUMNS}; got {name!r}", param_hint=HINT)
    return column


def columns_that_fit(columns: Sequence[Column], gen_len: int, max_model_len: int) -> list[Column]:
    return [column for column in columns if column.n_tokens(gen_len) <= max_model_len]


def check_columns(columns: Sequence[Column], gen_len: int, max_model_len: int) -> None:
    """Raises typer.BadParameter for a column that the model's context does not hold."""
    for column in columns:
        n_tokens = column.n_tokens(gen_len)
        if n_tokens > max_model_len:
            message = f"{column.name} comes to {n_tokens} tokens, the context has {max_model_len}; name shorter ones"
            raise typer.BadParameter(message, param_hint=HINT)


def measure_columns(
    llm: LLM,
    columns: Sequence[Column],
    *,
    gen_len: int,
    repeat: int,
    measure_limits: Callable[[], Limits],
    bar: Progress,
) -> Iterator[ColumnResult]:
    """Each column in turn: one run that warms up, then `repeat`. The machine's limits are measured before the first and
    behind each; a column is held against the better of its two neighbours."""
    draw = random.Random(0)
    before = measure_limits()
    for column in columns:
        prompts = [_prompt(llm, draw, column.n_prompt) for _ in range(column.n_sequences)]
        samples = []
        for index in range(1 + repeat):
            if column.is_prefill:  # a new one each time, so that no cached prefix helps; to decode, one may help
                prompts = [_prompt(llm, draw, column.n_prompt)]
            sample = _run(llm, column, prompts, gen_len)
            if index:
                samples.append(sample)
            bar.advance(1, sum(map(len, prompts)) + column.n_sequences * gen_len)
        behind = measure_limits()
        yield _result(llm, column, samples, before.best_of(behind))
        before = behind


def _prompt(llm: LLM, draw: random.Random, n_tokens: int) -> list[int]:
    return [draw.randrange(llm.vocab_size) for _ in range(n_tokens)]


@dataclass(frozen=True)
class _Sample:
    """The steps of a run that count: tokens computed by them, seconds of each part over all of them."""

    step_tokens: tuple[int, ...]
    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def tokens_per_s(self) -> float:
        return sum(self.step_tokens) / self.seconds


def _run(llm: LLM, column: Column, prompts: list[list[int]], gen_len: int) -> _Sample:
    from llm_decoder.sampling import SamplingParams

    params = SamplingParams(max_tokens=column.n_generated(gen_len), temperature=0.0, ignore_eos=True)
    llm.start_profile()
    llm.generate(prompts, params)
    times = llm.stop_profile()
    chosen = list(_steps_that_count(times, column))[: None if column.is_prefill else gen_len]
    if not chosen:
        message = f"{column.name}: its {column.n_sequences} sequences never ran together; raise --max-num-seqs or "
        raise typer.BadParameter(message + "--kv-cache-bytes", param_hint=HINT)
    seconds = times.seconds[chosen].sum(axis=0).tolist()
    return _Sample(tuple(times.n_tokens[chosen].tolist()), dict(zip(times.parts, seconds, strict=True)))


def _steps_that_count(times: StepTimes, column: Column) -> Iterator[int]:
    """For prefill the steps that compute the prompt; otherwise those in which every sequence gets one token. The last
    step of all is never one: what follows it is not known."""
    n_done = 0
    for index, (n_tokens, n_sequences) in enumerate(zip(times.n_tokens[:-1], times.n_sequences[:-1], strict=True)):
        if column.is_prefill and n_done < column.n_prompt:
            n_done += int(n_tokens)
            yield index
        elif not column.is_prefill and n_tokens == n_sequences == column.n_sequences:
            yield index


def _result(llm: LLM, column: Column, samples: list[_Sample], limits: Limits) -> ColumnResult:
    from llm_decoder.roofline import Work, floor_s

    median = statistics.median_low([sample.tokens_per_s for sample in samples])
    sample = next(sample for sample in samples if sample.tokens_per_s == median)
    work = list(_work(llm, column, sample))
    floor = sum(floor_s(parts, limits) for parts in work)
    n_units = 1 if column.is_prefill else len(sample.step_tokens)
    floors = {name: sum(each[name].floor_s(limits) for each in work if name in each) for name in work[0] | work[-1]}
    by_part = {name: sum((each[name] for each in work if name in each), Work()) for name in floors}
    parts = {
        name: Part(seconds / n_units, seconds / sample.seconds, _share(floors.get(name), seconds))
        for name, seconds in sample.parts.items()
    }
    longest = max(floors, key=lambda name: floors[name])
    whole = sum(by_part.values(), Work())
    return ColumnResult(
        name=column.name,
        n_prompt=column.n_prompt,
        n_sequences=column.n_sequences,
        is_prefill=column.is_prefill,
        n_steps=len(sample.step_tokens),
        tokens_per_s=median,
        runs=tuple(sample.tokens_per_s for sample in samples),
        floor_tokens_per_s=sum(sample.step_tokens) / floor,
        share=floor / sample.seconds,
        bound=by_part[longest].bound(limits),
        limits=limits,
        seconds=sample.seconds / n_units,
        work=Work(whole.read_bytes // n_units, whole.int8_ops // n_units, whole.f32_ops // n_units),
        parts=parts,
    )


def _share(floor: float | None, seconds: float) -> float | None:
    return floor / seconds if floor and seconds else None


def _work(llm: LLM, column: Column, sample: _Sample) -> Iterator[dict[str, Work]]:
    """The work of each step of a sample."""
    from llm_decoder.roofline import Chunk, step_work

    assert llm.config is not None
    info: dict[str, Any] = llm.stats()["backend"]
    context = 0 if column.is_prefill else column.n_prompt
    for n_tokens in sample.step_tokens:
        n_each = n_tokens // column.n_sequences
        context += n_each
        is_whole = context >= column.n_prompt
        chunk = Chunk(n_each, context, 1 if is_whole else 0)
        yield step_work(llm.config, info["layout"], info["kv_cache_dtype"], [chunk] * column.n_sequences)
