"""Result files of against_peers.py as the Markdown tables of docs/performance.md, and as one picture.

python benchmarks/table.py benchmarks/results/*.json --plot docs/performance.png
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

LABELS = {
    "prefill512": "prefill, 512 tokens",
    "prefill2048": "prefill, 2048 tokens",
    "ttft128": "first token of a 128-token prompt, s",
    "decode128": "decode, context 128",
    "decode2048": "decode, context 2048",
    "decode8192": "decode, context 8192",
    "decode32768": "decode, context 32768",
    "batch8": "8 sequences, context 128",
    "batch16": "16 sequences, context 128",
    "batch64": "64 sequences, context 128",
    "shared2048x8": "8 sequences, common prefix of 2048",
    "separate2048x8": "8 sequences of 2048, nothing common",
    "start": "process start to first token, s",
    **{
        f"search{n_prompt}x{n_beams}": f"{'greedy' if n_beams == 1 else f'{n_beams} beams'}, {n_prompt} + 64 tokens, s"
        for n_prompt in (128, 2048)
        for n_beams in (1, 4, 8, 16)
    },
}
SLOWEST_SHOWN = 1 / 20  # of the best peer's speed: who is slower would squeeze all others together
LOWER_IS_BETTER = ("first_token", "search", "start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plot", type=Path, help="where to write the picture, a PNG")
    args = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in args.results]
    print("\n\n".join(markdown(report) for report in reports))
    if args.plot:
        plot(reports, args.plot)


def markdown(report: dict[str, Any]) -> str:
    """Three tables of one result file: ratios, every engine's figures, what was measured how."""
    machine = report["machine"]
    head = (
        f"### {report['shape']['name']}\n\n{machine['cpu']}, {report['threads']} threads, {report['date']}, "
        f"commit {report['commit']}. tokens/s unless a column says seconds; medians."
    )
    return "\n\n".join([head, ratio_table(report), engine_table(report), facts_table(report)])


def ratio_table(report: dict[str, Any]) -> str:
    """A row a column: ours beside the best peer of the same weight bits, the best of any, and the machine."""
    same, any_bits = ["best peer, same bits", "its", "ratio"], ["best peer of all", "its", "ratio"]
    rows = [["column", "engine", "ours", *same, *any_bits, "share of the limit"]]
    for column in report["results"]:
        for name in ours(report):
            result = report["results"][column].get(name, {})
            if "median" not in result:
                continue
            bits = report["participants"][name]["bits"]
            rows.append(
                [
                    LABELS[column],
                    name,
                    figure(result["median"]),
                    *beside(report, column, result["median"], best_peer(report, column, bits)),
                    *beside(report, column, result["median"], best_peer(report, column, None)),
                    share_of_limit(report, column, name),
                ]
            )
    return table(rows, left=(0, 1, 3, 6))


def engine_table(report: dict[str, Any]) -> str:
    """A row an engine, a column a column: median (lowest-highest, samples)."""
    columns = list(report["results"])
    rows = [["engine", *columns]]
    for name in report["participants"]:
        cells = [spread(report["results"][column].get(name, {})) for column in columns]
        rows.append([name, *cells])
    notes = [
        f"- {name}, {column}: {result['absent']}"
        for column, results in report["results"].items()
        for name, result in results.items()
        if "absent" in result
    ]
    memory = [
        f"- {name}: {figure(middle(result, 'anonymous_mib'))} MiB anonymous at its first token"
        for name, result in report["results"].get("start", {}).items()
        if "median" in result
    ]
    return "\n\n".join(part for part in (table(rows, left=(0,)), "\n".join(notes), "\n".join(memory)) if part)


def facts_table(report: dict[str, Any]) -> str:
    rows = [["engine", "weight bits", "versions", "configuration"]]
    for name, facts in report["participants"].items():
        rows.append([name, str(facts["bits"]), facts.get("versions", "-"), facts.get("config", "-")])
    return table(rows, left=(0, 2, 3))


def ours(report: dict[str, Any]) -> list[str]:
    return [name for name, facts in report["participants"].items() if facts["ours"]]


def best_peer(report: dict[str, Any], column: str, bits: int | None) -> str | None:
    """The peer with the best median of a column, among those of these weight bits; None when none has one."""
    medians = {
        name: result["median"]
        for name, result in report["results"].get(column, {}).items()
        if "median" in result
        and not report["participants"][name]["ours"]
        and bits in (None, report["participants"][name]["bits"])
    }
    if not medians:
        return None
    return (min if lower_is_better(report, column) else max)(medians, key=lambda name: medians[name])


def ratio(report: dict[str, Any], column: str, value: float, other: float) -> float:
    """How much better value is than other: above 1 is better, also where lower is."""
    return other / value if lower_is_better(report, column) else value / other


def lower_is_better(report: dict[str, Any], column: str) -> bool:
    return report["columns"][column]["value"] in LOWER_IS_BETTER


def beside(report: dict[str, Any], column: str, value: float, peer: str | None) -> list[str]:
    """Cells: the peer, its median, our ratio to it."""
    if peer is None:
        return ["-", "-", "-"]
    other = report["results"][column][peer]["median"]
    return [peer, figure(other), f"{ratio(report, column, value, other):.2f}"]


def middle(result: dict[str, Any], key: str) -> float:
    """Median of one of a result's probes."""
    values = sorted(sample[key] for sample in result["samples"] if key in sample)
    return values[len(values) // 2] if values else math.nan


def share_of_limit(report: dict[str, Any], column: str, name: str) -> str:
    """What the products alone reach of the limits probed beside the samples: "81 % of 27 GB/s", or "of 1480 GOPS".

    Each step reads every weight once and computes two operations a weight and row; keys and values are not counted.
    The greater of the two shares is told.
    """
    facts, shape, result = report["columns"][column], report["shape"], report["results"][column][name]
    if facts["value"] in ("search", "start"):
        return "-"
    bits = report["participants"][name]
    n_weights, n_bits, rows_s = (
        shape["n_layer_weights"],
        shape["n_layer_weights"] * bits["layer_bits"],
        result["median"],
    )
    if facts["value"] == "decode":
        n_weights += shape["n_output_weights"]
        n_bits += shape["n_output_weights"] * bits["output_bits"]
        steps_s = rows_s / facts["n_sequences"]
    else:
        rows_s = facts["n_prompt"] / rows_s if facts["value"] == "first_token" else rows_s
        steps_s = rows_s / facts["n_prompt"]
    read_gb_s, int8_gops = middle(result, "read_gb_s"), middle(result, "int8_gops")
    read = steps_s * n_bits / 8e9 / read_gb_s
    computed = rows_s * n_weights * 2e-9 / int8_gops
    return f"{read:.0%} of {read_gb_s:.0f} GB/s" if read > computed else f"{computed:.0%} of {int8_gops:.0f} GOPS"


def spread(result: dict[str, Any]) -> str:
    if "median" not in result:
        return "-"
    values = [sample["value"] for sample in result["samples"]]
    return f"**{figure(result['median'])}** ({figure(min(values))}-{figure(max(values))}, {len(values)})"


def figure(value: float) -> str:
    """Three significant figures, whole numbers from 100 on."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Markdown; the first row is the head, columns other than those in `left` are numbers."""
    rule = ["---" if i in left else "---:" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def plot(reports: list[dict[str, Any]], path: Path) -> None:
    """A panel a file: each engine's speed in each column as a multiple of the best peer's there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for report in reports for name in report["participants"]))
    looks = dict(zip(names, marks(names, {name for report in reports for name in ours(report)}), strict=True))
    shown = [column for column in LABELS if any(best_peer(report, column, None) for report in reports)]
    canvas, panels = pyplot.subplots(
        1, len(reports), figsize=(4.4 * len(reports) + 1.6, 4.8), sharey=True, squeeze=False
    )
    for panel, report in zip(panels[0], reports, strict=True):
        for name in report["participants"]:
            points = [
                (times, y) for y, column in enumerate(shown) if (times := times_the_best_peer(report, column, name))
            ]
            panel.scatter([x for x, _ in points], [y for _, y in points], label=name, **looks[name])
        panel.axvline(1.0, color="0.5", linewidth=1, zorder=1)
        panel.set_xscale("log", base=2)
        panel.set_xlim(left=max(panel.get_xlim()[0], SLOWEST_SHOWN))
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.set_title(f"{report['shape']['name']}, {report['threads']} threads", fontsize=10)
        panel.set_xlabel("speed, best peer of the row = 1", fontsize=9)
        panel.grid(color="0.92", zorder=0)
        panel.tick_params(labelsize=8)
    panels[0][0].set_yticks(range(len(shown)), [LABELS[column].removesuffix(", s") for column in shown])
    panels[0][0].invert_yaxis()
    shown_once = {
        label: dot for panel in panels[0] for dot, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    canvas.legend(
        list(shown_once.values()),
        list(shown_once),
        loc="lower center",
        ncols=2 * len(reports) + 1,
        fontsize=8,
        frameon=False,
    )
    canvas.tight_layout(rect=(0, 0.1, 1, 1))
    canvas.savefig(path, dpi=110)


def times_the_best_peer(report: dict[str, Any], column: str, name: str) -> float | None:
    """How many times as fast as the best peer of any bits an engine is in a column; None where either is absent."""
    best = best_peer(report, column, None)
    result = report["results"].get(column, {}).get(name, {})
    if best is None or "median" not in result:
        return None
    return ratio(report, column, result["median"], report["results"][column][best]["median"])


def marks(names: list[str], mine: set[str]) -> list[dict[str, Any]]:
    """How each engine is drawn: ours as large diamonds, peers as discs in muted colours."""
    strong = iter(["#c0262d", "#1f4e9c", "#7a1fa2", "#00695c"])
    muted = iter(["#8c6d31", "#d9a441", "#2e8b8b", "#7fcdbb", "#7a7a7a", "#b07aa1", "#59a14f", "#bcbd22"])
    return [
        {"s": 60, "marker": "D", "color": next(strong), "zorder": 3}
        if name in mine
        else {"s": 34, "marker": "o", "color": next(muted), "zorder": 2}
        for name in names
    ]


if __name__ == "__main__":
    main()
