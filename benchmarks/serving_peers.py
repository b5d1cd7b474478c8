r"""Servers under the same load in turn, ours and its peers', and our engine without a server.

    python benchmarks/serving_peers.py servers.toml --out benchmarks/results/NAME.json
    python benchmarks/serving_table.py benchmarks/results/NAME.json --plot docs/serving.png

benchmarks/peers/example_servers.toml shows what a servers file says. Every server is started once and stopped while
another is measured; in each round every server gets the same prompts, other ones than in the rounds before. The load is
`llm-decoder bench serve`, a program of its own beside the server; a server whose token counts are not what was asked
for has failed. A sample waits until the machine is quiet, and says what others took of it meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from against_peers import commit, rotated, scrubbed
from machine import cpu_time, describe, foreign_cores, wait_until_quiet

from llm_decoder.cli._workload import Workload, parse_lengths

HERE = Path(__file__).parent
_TICKS_S = os.sysconf("SC_CLK_TCK")
_START_S = 300.0
_END_S = 20.0
_LOAD_S = 600.0


@dataclass(frozen=True)
class Work:
    """A load, as the flags of bench serve have it."""

    concurrency: int
    n_requests: int
    prompt: str = "128"
    answer: str = "64"
    on_engine: bool = False  # our engine does it without a server too

    def flags(self, seed: int) -> list[str]:
        lengths = ["--prompt-len", self.prompt, "--gen-len", self.answer]
        return [*lengths, "--requests", str(self.n_requests), "--seed", str(seed)]


WORK = {
    "clients1": Work(1, 5),
    "clients4": Work(4, 10),
    "clients8": Work(8, 20),
    "clients16": Work(16, 36),
    "clients32": Work(32, 128, on_engine=True),
    "mixed32": Work(32, 40, prompt="128,128,2048", on_engine=True),
}
# Longest prompts first would meet cold code: a short load goes ahead of everything.
WARM_UP = Work(4, 4, answer="16")


class ServerFailedError(Exception):
    """A server did not start, or did not do what it was asked."""


@dataclass(frozen=True)
class Participant:
    """One [[server]] table. {port} in its command is where it listens."""

    name: str
    command: list[str]
    bits: int
    env: dict[str, str] = field(default_factory=dict)
    ours: bool = False
    version: str = ""
    model: str | None = None  # what it wants its model to be called in a request; None = it is asked
    engine: list[str] = field(default_factory=list)  # of ours: flags of benchmarks/peers/engine_batch.py
    skip: list[str] = field(default_factory=list)  # loads that would take it too long


class Server:
    """A server and its processes, stopped unless it is measured."""

    def __init__(self, who: Participant, threads: int, log: Path) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        started_s = time.perf_counter()
        env = os.environ | {"OMP_NUM_THREADS": str(threads)} | who.env
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [word.replace("{port}", str(self.port)) for word in who.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - started_s

    def _wait_until_ready(self) -> None:
        end_s = time.perf_counter() + _START_S
        while self._process.poll() is None and time.perf_counter() < end_s:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5.0):
                return
            time.sleep(0.2)
        raise ServerFailedError(f"it did not start: {self.said()}")

    def said(self) -> str:
        return self._log.read_bytes()[-400:].decode(errors="replace")

    def cpu_s(self) -> float:
        """Processor time of all its processes."""
        return sum(int(words[11]) + int(words[12]) for _, words in self._members()) / _TICKS_S

    def memory_mib(self) -> float:
        pages = sum(int(words[21]) for _, words in self._members())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _members(self) -> Iterator[tuple[int, list[str]]]:
        """(process id, fields of its stat from the third on) of its session."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                words = path.read_text().rpartition(")")[2].split()
                if int(words[3]) == self._process.pid:
                    yield int(path.parent.name), words

    def signal(self, number: signal.Signals) -> None:
        for pid, _ in list(self._members()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self.signal(signal.SIGKILL)
        self._process.wait()


class Suite:
    """All servers, and what was measured of them so far: results[load][participant] = samples, one a round."""

    def __init__(self, participants: list[Participant], threads: int, quiet_s: float) -> None:
        self._participants = participants
        self._threads, self._quiet_s = threads, quiet_s
        self._servers: dict[str, Server] = {}
        self._failed: dict[str, str] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="serving_peers_"))
        self._results: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._started_s = time.perf_counter()

    def start(self) -> None:
        for who in self._participants:
            try:
                server = Server(who, self._threads, self._folder / f"{who.name.replace(' ', '_')}.log")
                self._servers[who.name] = server
                took_s = self._load(who, server, WARM_UP, seed=10_000)["wall_s"]
                server.signal(signal.SIGSTOP)
            except ServerFailedError as error:
                self._drop(who.name, str(error))
                continue
            print(f"{who.name}: started in {server.start_s:.1f} s, warm after {took_s:.1f} s", flush=True)

    def _drop(self, name: str, why: str) -> None:
        self._failed[name] = scrubbed(why)
        print(f"{name}: {why}", flush=True)
        if name in self._servers:
            self._servers.pop(name).close()

    def close(self) -> None:
        for server in self._servers.values():
            server.close()

    def measure(self, names: list[str], number: int) -> None:
        """One round: every load on every server; who begins moves on by one each round."""
        for at, name in enumerate(names):
            for who in rotated(self._participants, number):
                if who.name in self._servers and name not in who.skip:
                    self._sample(who, name, seed=100 * number + at + 1)
                if WORK[name].on_engine and who.engine:
                    self._note(name, f"{who.name}, engine alone", self._engine(who, WORK[name], 100 * number + at + 1))

    def _sample(self, who: Participant, name: str, seed: int) -> None:
        server = self._servers[who.name]
        wait_until_quiet(self._quiet_s)
        server.signal(signal.SIGCONT)
        try:
            sample = self._load(who, server, WORK[name], seed)
        except ServerFailedError as error:
            self._drop(who.name, f"{name}: {error}")
            return
        server.signal(signal.SIGSTOP)
        self._note(name, who.name, sample)

    def _load(self, who: Participant, server: Server, work: Work, seed: int) -> dict[str, Any]:
        """What bench serve saw. Raises ServerFailedError when the server did not do all that was asked."""
        report = self._folder / "load.json"
        command = [sys.executable, "-m", "llm_decoder", "bench", "serve", "--url", server.url, "--warmup", "0"]
        command += ["--concurrency", str(work.concurrency), *work.flags(seed), "--output", str(report)]
        command += ["--model", who.model] if who.model is not None else []
        before, server_s, own_s = cpu_time(), server.cpu_s(), _children_cpu_s()
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_S, check=False)
        after, server_s, own_s = cpu_time(), server.cpu_s() - server_s, _children_cpu_s() - own_s
        if done.returncode != 0:
            raise ServerFailedError(f"bench serve: {done.stderr.strip()[-300:]} {done.stdout[-300:]} {server.said()}")
        record = json.loads(report.read_text())
        shown = record["figures"]
        _check_counts(shown, record["requests"], work, seed)
        return sample_of(shown) | {
            "server_cpu_s": server_s,
            "server_memory_mib": server.memory_mib(),
            "foreign_cores": foreign_cores(before, after, server_s + own_s),
        }

    def _engine(self, who: Participant, work: Work, seed: int) -> dict[str, Any]:
        """Our engine with all requests of a load at once, in a process for it alone."""
        wait_until_quiet(self._quiet_s)
        command = [who.command[0], str(HERE / "peers" / "engine_batch.py"), *who.engine]
        command += ["--threads", str(self._threads), "--sequences", str(work.concurrency), *work.flags(seed)]
        env = os.environ | {"OMP_NUM_THREADS": str(self._threads)} | who.env
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_LOAD_S, check=False)
        if done.returncode != 0:
            sys.exit(f"{who.name}: the engine alone failed: {done.stderr[-800:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _note(self, load: str, name: str, sample: dict[str, Any]) -> None:
        sample = {key: rounded(value) for key, value in sample.items()}
        self._results.setdefault(load, {}).setdefault(name, []).append(sample)
        first = f", first token p99 {1e3 * sample['ttft_p99_s']:.0f} ms" if "ttft_p99_s" in sample else ""
        between = (
            f", between p50 {1e3 * sample['itl_p50_s']:.1f} p99 {1e3 * sample['itl_p99_s']:.1f} ms" if first else ""
        )
        print(f"{load:10} {name:28} {sample['total_tokens_s']:8.1f} tokens/s{first}{between}", flush=True)

    def report(self) -> dict[str, Any]:
        return {
            "date": time.strftime("%Y-%m-%d"),
            "machine": describe(),
            "threads": self._threads,
            "command": scrubbed(" ".join(["python", *sys.argv])),
            "commit": commit(),
            "took_s": round(time.perf_counter() - self._started_s),
            "loads": {name: asdict(WORK[name]) for name in self._results},
            "participants": {
                who.name: {
                    "bits": who.bits,
                    "ours": who.ours,
                    "version": who.version,
                    "command": scrubbed(" ".join(who.command)),
                    "start_s": rounded(self._servers[who.name].start_s) if who.name in self._servers else None,
                    "failed": self._failed.get(who.name),
                }
                for who in self._participants
            },
            "results": self._results,
        }


def sample_of(figures: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a report of bench serve. Times in seconds, rates a second."""
    first, between = figures["time_to_first_token_s"], figures["inter_token_latency_s"]
    return {
        "wall_s": figures["wall_s"],
        "total_tokens_s": figures["total_tokens_per_s"],
        "answer_tokens_s": figures["answer_tokens_per_s"],
        "ttft_p50_s": first["p50"],
        "ttft_p99_s": first["p99"],
        "itl_p50_s": between["p50"],
        "itl_p99_s": between["p99"],
        "n_cached_tokens": figures["n_cached_tokens"],
        "n_errors": figures["n_requests"] - figures["n_good"],
        "load_cpu_s": figures["own_cpu_s"],
    }


def _check_counts(figures: dict[str, Any], requests: list[dict[str, Any]], work: Work, seed: int) -> None:
    """Raises ServerFailedError unless every prompt was taken as it was sent and every answer is as long as asked."""
    if figures["errors"]:
        raise ServerFailedError(f"requests failed: {figures['errors']}")
    lengths = parse_lengths(work.prompt, "--prompt-len"), parse_lengths(work.answer, "--gen-len")
    for request, (prompt, n_answer) in zip(
        requests, Workload(work.n_requests, *lengths, seed=seed).prompts(), strict=True
    ):
        asked, counted = (len(prompt), n_answer), (request["n_prompt_tokens"], request["n_answer_tokens"])
        if asked != counted:
            raise ServerFailedError(f"need {asked} tokens of prompt and answer, got {counted} by its own count")


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def read_participants(text: str) -> list[Participant]:
    return [Participant(**table) for table in tomllib.loads(text)["server"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", type=Path, help="the servers file (TOML)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", default=",".join(WORK))
    parser.add_argument("--only", default="", help="names of participants, with commas between")
    parser.add_argument("--quiet-s", type=float, default=60.0, help="how long a sample waits for a quiet machine")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    participants = read_participants(args.servers.read_text())
    if args.only:
        participants = [who for who in participants if who.name in args.only.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    suite = Suite(participants, args.threads, args.quiet_s)
    try:
        suite.start()
        for number in range(args.rounds):
            suite.measure(args.loads.split(","), number)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(suite.report(), indent=1) + "\n")
    finally:
        suite.close()


if __name__ == "__main__":
    main()
