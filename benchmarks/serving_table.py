"""A result file of serving_peers.py as the Markdown of docs/performance.md, and as one picture.

python benchmarks/serving_table.py benchmarks/results/serving-llama-135m.json --plot docs/serving.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from table import table

ALONE = ", engine alone"
LABELS = {
    "clients1": "1 client, prompts of 128",
    "clients4": "4 clients, prompts of 128",
    "clients8": "8 clients, prompts of 128",
    "clients16": "16 clients, prompts of 128",
    "clients32": "32 clients, prompts of 128",
    "mixed32": "32 clients, every third prompt of 2048",
}
CURVE = ("clients1", "clients4", "clients8", "clients16", "clients32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    args = parser.parse_args()
    report = json.loads(args.results.read_text())
    print(markdown(report))
    if args.plot:
        plot(report, args.plot)


def markdown(report: dict[str, Any]) -> str:
    """Three tables: what each server did under each load, ours beside the engine alone, and every point of a peer
    beside the best of ours that is no later."""
    head = (
        f"{report['machine']['cpu']}, {report['threads']} threads, {report['date']}, commit {report['commit']}. "
        "Medians of the rounds (lowest-highest)."
    )
    return "\n\n".join([head, loads_table(report), engine_table(report), points_table(report), servers_table(report)])


def loads_table(report: dict[str, Any]) -> str:
    rows = [
        ["load", "server", "tokens/s", "generated/s", "first token p50, p99, ms", "between p50, p99, ms", "p99/p50"]
    ]
    for load in report["results"]:
        for name in report["participants"]:
            if samples := report["results"][load].get(name):
                first, between = times(samples, "ttft"), times(samples, "itl")
                stretch = median(samples, "itl_p99_s") / median(samples, "itl_p50_s")
                tokens = (ranged(samples, "total_tokens_s"), f"{median(samples, 'answer_tokens_s'):.0f}")
                rows.append([LABELS[load], name, *tokens, first, between, f"{stretch:.1f}"])
    return table(rows, left=(0, 1))


def engine_table(report: dict[str, Any]) -> str:
    """Ours under load as a share of the same engine with the same requests at once and no server: of each round, then
    the median."""
    rows = [["load", "server", "tokens/s", "engine alone", "share", "share without the load's own time"]]
    for load, results in report["results"].items():
        for name in report["participants"]:
            if alone := results.get(name + ALONE):
                pairs = list(zip(results[name], alone, strict=False))
                bare = [sample["total_tokens_s"] / other["total_tokens_s"] for sample, other in pairs]
                freed = [
                    share * sample["wall_s"] / (sample["wall_s"] - sample["load_cpu_s"] / report["threads"])
                    for share, (sample, _) in zip(bare, pairs, strict=True)
                ]
                rows.append(
                    [
                        LABELS[load],
                        name,
                        ranged(results[name], "total_tokens_s"),
                        ranged(alone, "total_tokens_s"),
                        f"{statistics.median(bare):.1%}",
                        f"{statistics.median(freed):.1%}",
                    ]
                )
    return table(rows, left=(0, 1))


def points_table(report: dict[str, Any]) -> str:
    """Each point of a peer's curve: the most that ours of no more bits gives with a first token no later."""
    rows = [["peer", "clients", "tokens/s", "first token p99, ms", "ours, no later", "clients", "tokens/s", "ratio"]]
    participants = report["participants"]
    for name, facts in participants.items():
        rivals = [other for other, own in participants.items() if own["ours"] and own["bits"] <= facts["bits"]]
        for load, tokens_s, ttft_s in () if facts["ours"] else curve(report, name):
            in_time = [
                (point[1], rival, point[0]) for rival in rivals for point in curve(report, rival) if point[2] <= ttft_s
            ]
            best = max(in_time, default=None)
            ours = ("none", "", "", "") if best is None else beside(best, tokens_s)
            rows.append([name, clients(load), f"{tokens_s:.0f}", f"{1e3 * ttft_s:.0f}", *ours])
    return table(rows, left=(0, 4))


def beside(best: tuple[float, str, str], tokens_s: float) -> tuple[str, str, str, str]:
    ours_s, name, load = best
    return name, clients(load), f"{ours_s:.0f}", f"{ours_s / tokens_s:.2f}"


def curve(report: dict[str, Any], name: str) -> list[tuple[str, float, float]]:
    """(load, tokens/s, p99 of the time to first token in seconds) of each number of clients; medians."""
    results = report["results"]
    return [
        (load, median(results[load][name], "total_tokens_s"), median(results[load][name], "ttft_p99_s"))
        for load in CURVE
        if load in results and name in results[load]
    ]


def servers_table(report: dict[str, Any]) -> str:
    rows = [["server", "started", "version"]]
    for name, facts in report["participants"].items():
        started = facts["failed"] or f"`{facts['command']}`"
        rows.append([name, started, facts["version"]])
    return table(rows, left=(0, 1, 2))


def clients(load: str) -> str:
    return load.removeprefix("clients")


def median(samples: list[dict[str, float]], key: str) -> float:
    return statistics.median(sample[key] for sample in samples)


def ranged(samples: list[dict[str, float]], key: str) -> str:
    values = [sample[key] for sample in samples]
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


def times(samples: list[dict[str, float]], kind: str) -> str:
    return ", ".join(f"{1e3 * median(samples, f'{kind}_{percentile}_s'):.4g}" for percentile in ("p50", "p99"))


def plot(report: dict[str, Any], path: Path) -> None:
    """Left: throughput against the p99 of the first token, a line a server; right: the gaps of the mixed load."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(12, 5), facecolor="white")
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, facts in report["participants"].items():
        if points := curve(report, name):
            style = {"linewidth": 2.5, "marker": "o"} if facts["ours"] else {"linewidth": 1.2, "marker": "s"}
            curves.plot([1e3 * point[2] for point in points], [point[1] for point in points], label=name, **style)
            for load, tokens_s, ttft_s in points:
                curves.annotate(clients(load), (1e3 * ttft_s, tokens_s), (4, 5), textcoords="offset points", fontsize=7)
    curves.set_xscale("log")
    curves.xaxis.set_minor_formatter(NullFormatter())
    curves.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    curves.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    curves.set_xlabel("p99 time to first token, ms (numbers: clients)")
    curves.set_ylabel("tokens a second, prompts and answers")
    curves.legend(fontsize=8)
    mixed = report["results"].get("mixed32", {})
    names = [name for name in report["participants"] if name in mixed]
    for at, name in enumerate(names):
        middle, late = (1e3 * median(mixed[name], f"itl_{percentile}_s") for percentile in ("p50", "p99"))
        bars.barh(at, late, color="#c9d6e8")
        bars.barh(at, middle, color="#2f6db5")
        bars.text(late, at, f" {late / middle:.1f} x", va="center", fontsize=8)
    bars.set_yticks(range(len(names)), names)
    bars.invert_yaxis()
    bars.set_xscale("log")
    bars.set_xlabel("between tokens, ms: median and p99,\n32 clients, every third prompt of 2048")
    for axes in (curves, bars):
        axes.grid(True, color="#e7e9ee", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
