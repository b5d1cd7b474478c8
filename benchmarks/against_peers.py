r"""Ours and every peer on the same shapes, in turn, with the machine's limits probed beside each sample.

    python benchmarks/against_peers.py peers.toml --shape llama-1b --out benchmarks/results/NAME.json
    python benchmarks/table.py benchmarks/results/NAME.json

benchmarks/peers/example.toml shows what a peers file says and how each peer is installed. Every engine is loaded once,
by a driver of benchmarks/peers/ in the engine's own interpreter, and stopped while another is measured. A sample waits
until the machine is quiet and is repeated when others used, or the host stole, more than a tenth of a core meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import (
    QUIET_CORES,
    CpuTime,
    cpu_time,
    describe,
    foreign_cores,
    probe_limits,
    process_cpu_s,
    wait_until_quiet,
)
from peer_worker import PeerWorker, WorkerFailedError, time_start

HERE = Path(__file__).parent
N_TRIES = 3


@dataclass(frozen=True)
class Column:
    """What is measured. value: "prefill" (prompt tokens/s), "first_token" (s), "decode" (tokens/s of all sequences),
    "search" (s from a prompt to the best of n_beams answers, 1 = greedy), "start" (s from process start to the first
    token)."""

    value: str
    n_prompt: int
    n_generate: int = 1
    n_sequences: int = 1
    n_shared: int = 0
    n_beams: int = 0
    on_request: bool = False  # measured only for participants that name it under `also`

    @property
    def lower_is_better(self) -> bool:
        return self.value in ("first_token", "search", "start")

    def request(self, seed: int) -> dict[str, Any]:
        """Decode columns come with the same prompts each time, so that their prefill is paid once."""
        reuse = self.value == "decode"
        return {
            "n_prompt": self.n_prompt,
            "n_generate": self.n_generate,
            "n_sequences": self.n_sequences,
            "n_shared": self.n_shared,
            "n_beams": self.n_beams,
            "seed": self.n_prompt * 1000 + self.n_sequences + self.n_shared if reuse else seed,
            "reuse": reuse,
        }

    def pick(self, answer: dict[str, Any]) -> float:
        if self.value == "decode":
            return answer["decode_tokens_s"]
        if self.value == "search":
            return answer["search_s"]
        return answer["first_token_s"] if self.lower_is_better else self.n_prompt / answer["first_token_s"]


COLUMNS = {
    "prefill512": Column("prefill", 512),
    "prefill2048": Column("prefill", 2048),
    "ttft128": Column("first_token", 128),
    "decode128": Column("decode", 128, n_generate=64),
    "decode2048": Column("decode", 2048, n_generate=48),
    "decode8192": Column("decode", 8192, n_generate=32),
    "decode32768": Column("decode", 32768, n_generate=16, on_request=True),
    "batch8": Column("decode", 128, n_generate=32, n_sequences=8),
    "batch16": Column("decode", 128, n_generate=32, n_sequences=16),
    "batch64": Column("decode", 128, n_generate=32, n_sequences=64),
    "shared2048x8": Column("decode", 2080, n_generate=32, n_sequences=8, n_shared=2048),
    "separate2048x8": Column("decode", 2080, n_generate=32, n_sequences=8, on_request=True),
    "start": Column("start", 16),
    **{
        f"search{n_prompt}x{n_beams}": Column("search", n_prompt, n_generate=64, n_beams=n_beams, on_request=True)
        for n_prompt in (128, 2048)
        for n_beams in (1, 4, 8, 16)
    },
}


@dataclass(frozen=True)
class Shape:
    """A model's numbers: weights of the layers' matrices, and of the output layer, which only sampled rows need."""

    name: str
    vocab_size: int
    n_layer_weights: int
    n_output_weights: int


@dataclass
class Participant:
    """One [[peer]] table of the peers file; {shape} in its texts is the shape that is measured."""

    name: str
    driver: str
    bits: int  # peers of the same bits are compared
    model: str
    python: str = sys.executable
    layer_bits: float = 0.0  # stored for a weight of a layer, with its share of the scales; 0 = `bits`
    output_bits: float = 0.0  # the same of the output layer
    options: dict[str, Any] = field(default_factory=dict)  # flags of the driver
    env: dict[str, str] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)  # columns measured on request
    skip: dict[str, str] = field(default_factory=dict)  # column, or "shape column" -> why not
    start_command: list[str] = field(default_factory=list)  # in place of the driver: ends after its first token

    def command(self, vocab_size: int, threads: int) -> list[str]:
        flags = {"model": self.model, "vocab-size": vocab_size, "threads": threads, **self.options}
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        return [self.python, str(HERE / "peers" / f"drive_{self.driver}.py"), *words]

    def why_not(self, column: str, shape: str) -> str | None:
        if COLUMNS[column].on_request and column not in self.also:
            return "not asked for"
        return self.skip.get(column) or self.skip.get(f"{shape} {column}")


@dataclass
class Sample:
    value: float
    took_s: float  # with whatever of a prompt had to be computed first
    foreign_cores: float
    stolen_cores: float
    read_gb_s: float = 0.0
    int8_gops: float = 0.0
    anonymous_mib: float | None = None

    @property
    def lost_cores(self) -> float:
        """To others on the machine, and to others of its host."""
        return self.foreign_cores + self.stolen_cores


def sample_of(
    value: float, before: CpuTime, after: CpuTime, own_s: float, anonymous_mib: float | None = None
) -> Sample:
    took_s = after.wall_s - before.wall_s
    stolen = (after.stolen_s - before.stolen_s) / took_s
    return Sample(value, took_s, foreign_cores(before, after, own_s), stolen, anonymous_mib=anonymous_mib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", type=Path, help="the peers file (TOML)")
    parser.add_argument("--shape", required=True, help="a name under [shapes] of the peers file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--only", default="", help="names of participants, with commas between")
    parser.add_argument("--quantization", help="measure ours at this one alone, in place of those in the peers file")
    parser.add_argument("--slow-s", type=float, default=60.0, help="who takes longer for a sample gives only one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    shape, participants = read_peers(args.peers.read_text(), args.shape)
    if args.only:
        participants = [p for p in participants if p.name in args.only.split(",")]
    if args.quantization:
        participants = [p for p in participants if p.driver != "ours" or p.options["quantization"] == args.quantization]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    suite = Suite(participants, shape, args.threads, args.repeat, args.slow_s)
    try:
        suite.load()
        for name in args.columns.split(","):
            suite.measure(name)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(suite.report(), indent=1) + "\n")
    finally:
        suite.close()


def read_peers(text: str, name: str) -> tuple[Shape, list[Participant]]:
    """The shape of that name, and the participants with it in place of {shape}."""
    tables = tomllib.loads(text)
    peers = json.loads(json.dumps(tables["peer"]).replace("{shape}", name))
    return Shape(name, **tables["shapes"][name]), [Participant(**peer) for peer in peers]


class Suite:
    """All participants, and what was measured of them so far: results[column][participant]."""

    def __init__(self, participants: list[Participant], shape: Shape, threads: int, repeat: int, slow_s: float) -> None:
        self._participants = participants
        self._shape, self._threads = shape, threads
        self._repeat, self._slow_s = repeat, slow_s
        self._workers: dict[str, PeerWorker] = {}
        self._absent: dict[str, str] = {}  # participants that are out, and why
        self._facts: dict[str, dict[str, Any]] = {}
        self._logs = Path(tempfile.mkdtemp(prefix="against_peers_"))
        self._seeds = itertools.count(1)
        self._results: dict[str, dict[str, dict[str, Any]]] = {}

    def load(self) -> None:
        for who in self._participants:
            command = who.command(self._shape.vocab_size, self._threads)
            try:
                worker = PeerWorker(command, self._env(who), self._logs / f"{who.name.replace(' ', '_')}.log")
                worker.ask(Column("prefill", 64, n_generate=4).request(next(self._seeds)))
            except WorkerFailedError as error:
                self._absent[who.name] = str(error)
                print(f"{who.name}: {error}", flush=True)
                continue
            self._workers[who.name] = worker
            self._facts[who.name] = worker.ready
            print(f"{who.name}: {worker.ready['versions']}, loaded in {worker.ready['load_s']:.1f} s", flush=True)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def measure(self, name: str) -> None:
        """One column: every participant in turn, `repeat` times; who begins moves on by one each round."""
        column = COLUMNS[name]
        results: dict[str, dict[str, Any]] = {}
        samples: dict[str, list[Sample]] = {}
        for who in self._participants:
            why = self._absent.get(who.name) or who.why_not(name, self._shape.name)
            if why is None:
                samples[who.name] = []
            elif why != "not asked for":
                results[who.name] = {"absent": why}
        done: set[str] = set()
        for step in range(-1, self._repeat):  # the step before the first is not recorded: caches, and long prefills
            names = [who for who in self._participants if who.name in samples]
            for who in rotated(names, max(step, 0)):
                if who.name in done or (step < 0 and column.value == "start"):
                    continue
                try:
                    sample = self._sample(who, column, record=step >= 0)
                    if step >= 0:
                        samples[who.name].append(sample)
                        if sample.took_s > self._slow_s:
                            done.add(who.name)
                except WorkerFailedError as error:
                    done.add(who.name)
                    results[who.name] = {"absent": str(error)}
                    del samples[who.name]
        for who_name, taken in samples.items():
            results[who_name] = {
                "median": statistics.median(sample.value for sample in taken),
                "samples": [rounded(asdict(sample)) for sample in taken],
            }
        self._results[name] = results
        print(column_lines(name, column, results), flush=True)

    def _sample(self, who: Participant, column: Column, record: bool) -> Sample:
        """The quietest of up to N_TRIES; what was lost to others is written down with it."""
        best: Sample | None = None
        for _ in range(N_TRIES if record else 1):
            if record:
                wait_until_quiet()
            sample = self._start(who) if column.value == "start" else self._ask(who, column)
            if best is None or sample.lost_cores < best.lost_cores:
                best = sample
            if sample.lost_cores < QUIET_CORES:
                break
        assert best
        if record:
            best.read_gb_s, best.int8_gops = probe_limits(self._threads)
        return best

    def _ask(self, who: Participant, column: Column) -> Sample:
        worker = self._workers[who.name]
        before, own = cpu_time(), worker.cpu_s()
        answer = worker.ask(column.request(next(self._seeds)))
        return sample_of(column.pick(answer), before, cpu_time(), worker.cpu_s() - own)

    def _start(self, who: Participant) -> Sample:
        command = who.start_command or who.command(self._shape.vocab_size, self._threads)
        request = None if who.start_command else COLUMNS["start"].request(next(self._seeds))
        before, own = cpu_time(), process_cpu_s(os.getpid())
        seconds, n_bytes = time_start(command, self._env(who), request)
        after, own = cpu_time(), process_cpu_s(os.getpid()) - own
        return sample_of(seconds, before, after, own, anonymous_mib=n_bytes / 2**20)

    def _env(self, who: Participant) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self._threads), **who.env}

    def report(self) -> dict[str, Any]:
        return {
            "date": time.strftime("%Y-%m-%d"),
            "machine": describe(),
            "threads": self._threads,
            "shape": asdict(self._shape),
            "command": scrubbed(" ".join(["python", *sys.argv])),
            "commit": commit(),
            "columns": {name: asdict(COLUMNS[name]) for name in self._results},
            "participants": {
                who.name: {
                    "bits": who.bits,
                    "layer_bits": who.layer_bits or who.bits,
                    "output_bits": who.output_bits or who.bits,
                    "ours": who.driver == "ours",
                    "command": scrubbed(" ".join(who.command(self._shape.vocab_size, self._threads))),
                    "start_command": scrubbed(" ".join(who.start_command)),
                    **self._facts.get(who.name, {}),
                }
                for who in self._participants
            },
            "results": self._results,
        }


def rotated(items: list[Any], n: int) -> list[Any]:
    """The same items, beginning with the n-th."""
    n %= max(len(items), 1)
    return items[n:] + items[:n]


def rounded(sample: dict[str, float | None]) -> dict[str, float]:
    """Four significant figures, without what was not measured."""
    return {name: float(f"{value:.4g}") for name, value in sample.items() if value is not None}


def column_lines(name: str, column: Column, results: dict[str, dict[str, Any]]) -> str:
    """For the terminal: the column's participants, best first."""
    present = {who: result for who, result in results.items() if "median" in result}
    ranked = sorted(present, key=lambda who: present[who]["median"], reverse=not column.lower_is_better)
    lines = [f"{name} ({'s' if column.lower_is_better else 'tokens/s'})"]
    for who in ranked:
        values = [sample["value"] for sample in present[who]["samples"]]
        lines.append(
            f"  {who:24} {present[who]['median']:10.4g}  ({min(values):.4g} - {max(values):.4g}, {len(values)})"
            f"  others {max(sample['foreign_cores'] for sample in present[who]['samples']):.2f}"
        )
    lines += [f"  {who:24}          -  {result['absent']}" for who, result in results.items() if "absent" in result]
    return "\n".join(lines)


def scrubbed(text: str) -> str:
    """Without the folders of this machine: the last name of each absolute path stays."""
    return re.sub(r"(?<![\w.])/(?:[^\s/=,]+/)+", "", text)


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    main()
