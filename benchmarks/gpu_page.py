"""What make gpu-e2e has found as the GPU part of docs/performance.md.

python benchmarks/gpu_page.py benchmarks/results/gpu_e2e.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import table

LEAST_SHARE_OF_READS = 0.8  # one answer, bfloat16
LEAST_INT4_GAIN = 2.5
LEAST_TIMES_TRANSFORMERS = 5.0  # 64 answers
LEAST_SHARE_OF_PEAK = 0.6  # prompt of 4096
MOST_WAITING = 0.05
MOST_FIRST_TOKEN_S = 0.06  # prompt of 2048
_CHECKS = {
    "judges": "judge-",
    "soaks": "soak-",
    "compute-sanitizer": ("memcheck-", "racecheck-", "initcheck-", "synccheck-"),
}

Rows = Mapping[str, Mapping[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    print(markdown(parser.parse_args().results))


def markdown(path: Path) -> str:
    """Of the rows of the sources and the device that the last run was of."""
    data = json.loads(path.read_text())
    of = data["facts"]["of"]
    rows = {name: row for name, row in data["rows"].items() if row["of"] == of}
    head = f"On {of['device']}, sources {of['sources']}."
    parts = [head, checks(rows), limits(rows), decodes(rows), first_tokens(rows), waits(rows), "\n".join(bars(rows))]
    return "\n\n".join([*(part for part in parts if part), *failures(rows)])


def checks(rows: Rows) -> str:
    lines = []
    for what, prefix in _CHECKS.items():
        found = [row for name, row in rows.items() if name.startswith(prefix)]
        skipped = [row["skipped"] for row in found if "skipped" in row]
        n_failed = sum("failed" in row for row in found)
        if found:
            told = f"- {what}: {len(found) - n_failed - len(skipped)} passed, {n_failed} failed"
            lines.append(told + (f", {len(skipped)} skipped ({skipped[0]})" if skipped else ""))
    shares = [row["worst_share_of_bound"] for row in rows.values() if "worst_share_of_bound" in row]
    if shares:
        lines.append(f"- the largest error of logits is {max(shares):.0%} of what is allowed")
    return "\n".join(lines)


def limits(rows: Rows) -> str:
    row = good(rows, "bench-limits")
    if row is None:
        return ""
    return (
        f"The machine reads {row['read_gb_per_s']:.0f} GB/s, copies {row['copy_gb_per_s']:.0f} GB/s (read and written) "
        f"and makes {row['bf16_tflops']:.0f} TFLOP/s of bf16 products of random numbers."
    )


def decodes(rows: Rows) -> str:
    """tokens/s by participant and how many answers are written at once."""
    found = sized(rows, "decode")
    sizes = sorted({size for _, size in found})
    out = [["tokens/s", *(f"{size} at once" for size in sizes), "share of the limit, 1 at once"]]
    for name in dict.fromkeys(name for name, _ in found):
        cells = [table.figure(found[name, size]["tokens_per_s"]) if (name, size) in found else "-" for size in sizes]
        share = share_of_reads(rows, name)
        out.append([name, *cells, "-" if share is None else f"{share:.0%}"])
    return table.table(out, left=(0,)) if found else ""


def first_tokens(rows: Rows) -> str:
    found = sized(rows, "first-token")
    out = [["first token", "prompt", "ms", "tokens/s", "share of bf16 peak"]]
    for (name, size), row in found.items():
        share = share_of_peak(rows, name, size)
        shown = "-" if share is None else f"{share:.0%}"
        out.append([name, str(size), table.figure(1e3 * row["seconds"]), table.figure(size / row["seconds"]), shown])
    return table.table(out, left=(0,)) if found else ""


def waits(rows: Rows) -> str:
    found = sized(rows, "waiting")
    out = [["decode steps", "at once", "ms a step", "of it the GPU waits for the host"]]
    for (name, size), row in found.items():
        out.append([name, str(size), table.figure(row["step_us"] / 1e3), f"{row['waiting_share']:.1%}"])
    return table.table(out, left=(0,)) if found else ""


def sized(rows: Rows, kind: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    """(participant, size) -> row of what was measured."""
    found = {}
    for name, row in rows.items():
        rest, dash, size = name.removeprefix("bench-").rpartition("-")
        if name.startswith("bench-") and rest.endswith(f"-{kind}") and dash and "failed" not in row:
            found[rest.removesuffix(f"-{kind}"), int(size)] = row
    return found


def good(rows: Rows, name: str) -> Mapping[str, Any] | None:
    row = rows.get(name)
    return None if row is None or "failed" in row else row


def share_of_reads(rows: Rows, name: str) -> float | None:
    """Of the bandwidth of reads (or of copies, where that is more) that the weights of one answer's steps take."""
    row, machine = good(rows, f"bench-{name}-decode-1"), good(rows, "bench-limits")
    if row is None or machine is None or "step_bytes" not in row:
        return None
    limit = max(machine["read_gb_per_s"], machine["copy_gb_per_s"]) * 1e9
    return float(row["tokens_per_s"] * row["step_bytes"] / limit)


def share_of_peak(rows: Rows, name: str, size: int) -> float | None:
    row, machine = good(rows, f"bench-{name}-first-token-{size}"), good(rows, "bench-limits")
    if row is None or machine is None:
        return None
    return float(row["flops"] / row["seconds"] / 1e12 / machine["bf16_tflops"])


def ratio(rows: Rows, one: str, other: str) -> float | None:
    a, b = good(rows, one), good(rows, other)
    return None if a is None or b is None else float(a["tokens_per_s"] / b["tokens_per_s"])


def bars(rows: Rows) -> Iterator[str]:
    """What was promised of the rows that are there, and whether it is kept."""

    def say(text: str, got: float | None, is_kept: bool) -> Iterator[str]:
        if got is not None:
            yield f"- {text}: {'kept' if is_kept else 'MISSED'}"

    share = share_of_reads(rows, "bfloat16")
    yield from say(
        f"one answer in bfloat16 at {share or 0:.0%} of the bandwidth of reads, {LEAST_SHARE_OF_READS:.0%} promised",
        share,
        (share or 0) >= LEAST_SHARE_OF_READS,
    )
    gain = ratio(rows, "bench-int4-decode-1", "bench-bfloat16-decode-1")
    yield from say(
        f"int4 {gain or 0:.2f} times as fast as bfloat16, {LEAST_INT4_GAIN} promised",
        gain,
        (gain or 0) >= LEAST_INT4_GAIN,
    )
    times = ratio(rows, "bench-bfloat16-decode-64", "bench-transformers-decode-64")
    yield from say(
        f"64 answers {times or 0:.1f} times as fast as transformers, {LEAST_TIMES_TRANSFORMERS:.0f} promised",
        times,
        (times or 0) >= LEAST_TIMES_TRANSFORMERS,
    )
    peak = share_of_peak(rows, "bfloat16", 4096)
    yield from say(
        f"a prompt of 4096 at {peak or 0:.0%} of the bf16 peak, {LEAST_SHARE_OF_PEAK:.0%} promised",
        peak,
        (peak or 0) >= LEAST_SHARE_OF_PEAK,
    )
    first = good(rows, "bench-bfloat16-first-token-2048")
    seconds = None if first is None else first["seconds"]
    yield from say(
        f"first token of a prompt of 2048 after {1e3 * (seconds or 0):.0f} ms, {1e3 * MOST_FIRST_TOKEN_S:.0f} promised",
        seconds,
        (seconds or 0) <= MOST_FIRST_TOKEN_S,
    )
    for (name, size), row in sized(rows, "waiting").items():
        yield from say(
            f"{name}, {size} at once: the GPU waits {row['waiting_share']:.1%} of a step, {MOST_WAITING:.0%} allowed",
            row["waiting_share"],
            row["waiting_share"] <= MOST_WAITING,
        )


def failures(rows: Rows) -> list[str]:
    lines = [f"- {name} failed: {str(row['failed']).splitlines()[0]}" for name, row in rows.items() if "failed" in row]
    return ["\n".join(lines)] if lines else []


if __name__ == "__main__":
    main()
