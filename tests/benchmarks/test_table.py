"""Result files as Markdown: which peer is compared, which way a ratio goes, what is said of the absent."""

from __future__ import annotations

from typing import Any

import table


def report() -> dict[str, Any]:
    def result(*values: float) -> dict[str, Any]:
        samples = [{"value": value, "read_gb_s": 30.0, "int8_gops": 1500.0} for value in values]
        return {"median": sorted(values)[len(values) // 2], "samples": samples}

    def facts(bits: int, ours: bool = False) -> dict[str, Any]:
        return {
            "bits": bits,
            "layer_bits": bits,
            "output_bits": bits,
            "ours": ours,
            "versions": "1",
            "config": "as it comes",
        }

    return {
        "date": "2026-01-01",
        "commit": "abc",
        "shape": {"name": "small", "n_layer_weights": 90_000_000, "n_output_weights": 10_000_000},
        "threads": 2,
        "machine": {"cpu": "a CPU"},
        "columns": {
            "decode128": {"value": "decode", "n_prompt": 128, "n_sequences": 1},
            "ttft128": {"value": "first_token", "n_prompt": 128, "n_sequences": 1},
        },
        "participants": {"ours int8": facts(8, ours=True), "p8": facts(8), "q8": facts(8), "p4": facts(4)},
        "results": {
            "decode128": {
                "ours int8": result(190.0, 200.0, 210.0),
                "p8": result(100.0),
                "q8": {"absent": "out of memory"},
                "p4": result(160.0),
            },
            "ttft128": {"ours int8": result(0.05), "p8": result(0.1), "q8": result(0.2)},
        },
    }


def test_the_best_peer_is_sought_among_the_same_weight_bits_and_among_all() -> None:
    assert table.best_peer(report(), "decode128", 8) == "p8"
    assert table.best_peer(report(), "decode128", None) == "p4"
    assert table.best_peer(report(), "decode128", 2) is None


def test_where_lower_is_better_the_best_is_the_lowest_and_ratios_turn_round() -> None:
    assert table.best_peer(report(), "ttft128", 8) == "p8"
    assert table.ratio(report(), "ttft128", 0.05, 0.1) == 2.0
    assert table.ratio(report(), "decode128", 200.0, 100.0) == 2.0


def test_the_ratio_table_has_a_row_a_column_of_ours() -> None:
    lines = table.ratio_table(report()).splitlines()
    assert lines[2] == (
        "| decode, context 128 | ours int8 | 200 | p8 | 100 | 2.00 | p4 | 160 | 1.25 | 67% of 30 GB/s |"
    )
    assert lines[3].startswith("| first token of a 128-token prompt, s | ours int8 | 0.0500 | p8 | 0.100 | 2.00 |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_share_counts_each_weight_once_a_step_and_two_operations_a_row() -> None:
    assert table.share_of_limit(report(), "decode128", "ours int8") == "67% of 30 GB/s"  # 200 x 0.1 GB
    assert table.share_of_limit(report(), "ttft128", "ours int8") == "31% of 1500 GOPS"  # 2560 x 2 x 0.09 G


def test_a_column_that_was_not_measured_has_no_best_peer() -> None:
    assert table.best_peer(report(), "prefill512", None) is None


def test_the_engine_table_tells_spread_samples_and_why_one_is_absent() -> None:
    text = table.engine_table(report())
    assert "| ours int8 | **200** (190-210, 3) | **0.0500** (0.0500-0.0500, 1) |" in text
    assert "- q8, decode128: out of memory" in text


def test_figures_have_three_significant_digits() -> None:
    assert [table.figure(value) for value in (1234.5, 99.94, 12.345, 0.12345, float("nan"))] == [
        "1234",
        "99.9",
        "12.3",
        "0.123",
        "-",
    ]
