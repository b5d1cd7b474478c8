"""Logs as groups: what is read from runs and plain lines, what is left out and told, and which queries are held out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.groups import Group, group_line, read_groups, read_texts, split_by_query


def written(tmp_path: Path, *values: object) -> Path:
    path = tmp_path / "lines.jsonl"
    lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def run(number: int = 1, **fields: object) -> dict[str, object]:
    return {"type": "run", "schema": 1, "id": f"run-{number}", "prompt_hash": f"hash-{number}", **fields}


def candidate(text: str, score: float | None = -1.0, **fields: object) -> dict[str, object]:
    return {"type": "candidate", "leaf": 1, "text": text, "beam_score": score, **fields}


def test_a_run_with_labels_is_a_group(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        run(prompt="Once"),
        candidate("a", -0.5, label=1),
        candidate("b", -0.7, label=0.25),
        candidate("c", -0.9),
    )
    groups, problems = read_groups(path)
    assert problems == []
    assert groups == [Group("Once", ("a", "b", "c"), (1.0, 0.25, None), (-0.5, -0.7, -0.9))]
    assert groups[0].labelled_part() == Group("Once", ("a", "b"), (1.0, 0.25), (-0.5, -0.7))


def test_each_pair_of_a_run_is_a_group_of_two(tmp_path: Path) -> None:
    def side(pair: int, side: str) -> dict[str, object]:
        return {"pair": pair, "side": side}

    path = written(
        tmp_path,
        run(prompt="Once"),
        candidate("a", label=side(1, "rejected")),
        candidate("b", label=side(2, "preferred")),
        candidate("c", label=side(1, "preferred")),
        candidate("d", label=side(2, "rejected")),
    )
    groups, problems = read_groups(path)
    assert problems == []
    assert [(group.candidates, group.labels) for group in groups] == [(("c", "a"), (1, 0)), (("b", "d"), (1, 0))]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"pair": 1, "side": "preferred"}, "pair 1 has no rejected"),
        ({"pair": 1, "side": "best"}, 'must be {"pair"'),
        ({"pair": [], "side": "rejected"}, 'must be {"pair"'),
        (1.5, "a number from 0"),
        ("good", "a number from 0"),
    ],
)
def test_a_run_with_a_bad_label_is_left_out_by_its_number(tmp_path: Path, label: object, reason: str) -> None:
    good = [candidate("a", label=1), candidate("b", label=0)]
    path = written(tmp_path, run(1, prompt="Once"), candidate("a", label=label), run(2, prompt="Twice"), *good)
    groups, problems = read_groups(path)
    assert [group.query for group in groups] == ["Twice"]
    (problem,) = problems
    assert "run 1" in str(problem)
    assert reason in str(problem)


def test_a_pair_has_two_sides_and_no_more(tmp_path: Path) -> None:
    sides = [{"pair": 1, "side": side} for side in ("preferred", "rejected", "rejected")]
    path = written(tmp_path, run(prompt="Once"), *(candidate("a", label=side) for side in sides))
    groups, (problem,) = read_groups(path)
    assert groups == []
    assert "pair 1 has two rejected candidates" in str(problem)


def test_a_run_whose_scorer_had_a_query_of_its_own_is_about_that(tmp_path: Path) -> None:
    path = written(tmp_path, run(prompt="<user> Hi", params={"query": "Hi"}), candidate("a"), candidate("b"))
    assert [group.query for group in read_groups(path)[0]] == ["Hi"]


def test_runs_without_prompts_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path = written(tmp_path, run(1), candidate("a"), run(2, prompt="Twice"), candidate("b"))
    with pytest.raises(ConfigError, match=r"1 of 2 without; log with --log-prompts, or give --prompts"):
        read_groups(path)


def test_runs_without_prompts_are_joined_with_a_file_of_them(tmp_path: Path) -> None:
    known = tmp_path / "prompts.jsonl"
    known.write_text('{"prompt_hash": "hash-1", "prompt": "Once"}\n{}\n')
    prompts, problems = read_texts(known, "prompt_hash", "prompt")
    assert [str(problem) for problem in problems] == [
        f'[{known}] line 2: "prompt" must be a text; the line is left out'
    ]
    path = written(tmp_path, run(1), candidate("a"), candidate("b"))
    assert [group.query for group in read_groups(path, prompts)[0]] == ["Once"]


def test_plain_lines_are_groups_too(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"query": "q", "documents": ["a", "b"], "labels": [0.5, None]},
        {"query": "q", "candidates": ["a", "b", "c"], "label": 2},
        {"query": "q", "candidates": ["a", "b"], "beam_scores": [-1, -2]},
        {"query": "q", "candidates": ["a", "b"], "beam_scores": [-1, None]},
    )
    groups, problems = read_groups(path)
    assert problems == []
    assert groups == [
        Group("q", ("a", "b"), (0.5, None)),
        Group("q", ("a", "b", "c"), (0, 0, 1)),
        Group("q", ("a", "b"), (None, None), (-1, -2)),
        Group("q", ("a", "b"), (None, None)),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, "recursion|Expecting"),
        ("[]", "need a JSON object"),
        ('{"query": "q"}', 'one of "candidates" and "documents"'),
        ('{"query": "q", "candidates": ["a"], "documents": ["a"]}', 'one of "candidates" and "documents"'),
        ('{"query": "q", "candidates": []}', '"candidates" must be a list of texts'),
        ('{"query": "q", "candidates": [1]}', '"candidates" must be a text'),
        ('{"candidates": ["a"]}', '"query" must be a text'),
        ('{"query": "\\ud800", "candidates": ["a"]}', '"query" must be text in UTF-8'),
        ('{"query": "q", "candidates": ["a", "b"], "labels": [1]}', "a label for each of 2 candidates, got 1"),
        ('{"query": "q", "candidates": ["a", "b"], "labels": [1, NaN]}', "from 0"),
        ('{"query": "q", "candidates": ["a", "b"], "labels": 1}', '"labels" must be a list'),
        ('{"query": "q", "candidates": ["a", "b"], "label": 2}', "0 to 1, got 2"),
        ('{"query": "q", "candidates": ["a", "b"], "label": true}', "0 to 1, got True"),
        ('{"query": "q", "candidates": ["a", "b"], "label": 0, "labels": [1, 0]}', "got both"),
        ('{"query": "q", "candidates": ["a", "b"], "beam_scores": [1]}', "a list of 2 numbers"),
    ],
)
def test_a_bad_line_is_told_by_its_number_and_the_rest_is_kept(tmp_path: Path, line: str, reason: str) -> None:
    good = {"query": "q", "candidates": ["a", "b"], "label": 0}
    groups, problems = read_groups(written(tmp_path, good, line, good))
    assert len(groups) == 2
    (problem,) = problems
    assert "lines.jsonl] line 2: " in str(problem)
    assert re.search(reason, str(problem))


def test_bytes_that_are_no_utf8_spoil_their_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"query": "\xff", "candidates": ["a"]}\n{"query": "q", "candidates": ["a"]}\n')
    groups, problems = read_groups(path)
    assert len(groups) == len(problems) == 1


def test_a_group_that_is_written_is_read_back(tmp_path: Path) -> None:
    group = Group('é"\n\u2028', ("a", "b"), (0.5, None), (-1.0, -2.0))
    assert read_groups(written(tmp_path, group_line(group).removesuffix("\n")))[0] == [group]


def test_only_labels_that_differ_are_an_order() -> None:
    assert Group("q", ("a", "b"), (1, 0)).has_order
    assert not Group("q", ("a", "b"), (1, 1)).has_order
    assert not Group("q", ("a", "b"), (1, None)).has_order


def test_no_query_is_on_both_sides_whatever_the_order_of_the_groups() -> None:
    groups = [Group(f"query {number % 20}", ("a", "b"), (1, 0)) for number in range(100)]
    learnt, held_out = split_by_query(groups, 0.2, seed=3)
    assert len({group.query for group in held_out}) == 4
    assert not {group.query for group in learnt} & {group.query for group in held_out}
    assert len(learnt) + len(held_out) == 100
    again = split_by_query(groups[::-1], 0.2, seed=3)
    assert {group.query for group in again[1]} == {group.query for group in held_out}
    other = split_by_query(groups, 0.2, seed=4)
    assert {group.query for group in other[1]} != {group.query for group in held_out}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
def test_both_sides_have_a_query_whatever_the_share(share: float) -> None:
    learnt, held_out = split_by_query([Group(query, ("a", "b"), (1, 0)) for query in "abc"], share, seed=0)
    assert learnt
    assert held_out


def test_a_single_query_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="need two different queries"):
        split_by_query([Group("q", ("a", "b"), (1, 0))] * 5, 0.2, seed=0)
