"""Labels by rule, and the file that a person's labels go to."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.groups import Group, group_line
from llm_decoder.reranker.labels import LabelFile, contains, exact_match, label_by_rule, regex

GROUPS = [
    Group("2 + 2", ("4", " 4\n", "It is 4.", "five"), (None,) * 4, (-1.0, -2.0, -3.0, -4.0)),
    Group("capital of France", ("Paris", "paris", "London"), (1, 1, 1)),
]
ANSWERS = {"2 + 2": "4", "capital of France": "Paris"}


def labels_by(rule: object) -> list[tuple[float | None, ...]]:
    return [group.labels for group in label_by_rule(GROUPS, rule)]  # type: ignore[arg-type]


def test_an_exact_match_is_one_but_for_space_around_it() -> None:
    assert labels_by(exact_match(ANSWERS)) == [(1, 1, 0, 0), (1, 0, 0)]


def test_contains_looks_anywhere_in_capitals_or_not() -> None:
    assert labels_by(contains(ANSWERS)) == [(1, 1, 1, 0), (1, 1, 0)]


def test_a_regular_expression_is_pythons_and_matches_anywhere() -> None:
    assert labels_by(regex(r"^\W*\d\s*$")) == [(1, 1, 0, 0), (0, 0, 0)]
    assert labels_by(regex({"2 + 2": "five|4"})) == [(1, 1, 1, 1), (None, None, None)]


def test_a_bad_regular_expression_is_named() -> None:
    with pytest.raises(ConfigError, match=r"got '\(': "):
        regex("(")


def test_one_answer_goes_for_all_queries_and_a_query_without_one_has_no_labels() -> None:
    assert labels_by(contains("i")) == [(0, 0, 1, 1), (1, 1, 0)]
    assert labels_by(exact_match({"2 + 2": "five"})) == [(0, 0, 0, 1), (None, None, None)]


def test_any_callable_is_a_rule_and_all_else_of_the_group_stays() -> None:
    groups = label_by_rule(GROUPS, lambda query, candidate: min(len(candidate) / 10, 1) if query == "2 + 2" else None)
    assert groups[0] == Group("2 + 2", GROUPS[0].candidates, (0.1, 0.3, 0.8, 0.4), GROUPS[0].beam_scores)
    assert groups[1].labels == (None, None, None)


@pytest.mark.parametrize("grade", [1.1, -1, float("nan"), "yes"])
def test_a_rule_that_grades_outside_of_0_to_1_is_refused_with_the_query(grade: object) -> None:
    with pytest.raises(ConfigError, match=r"number from 0 .* for the query '2 \+ 2'"):
        labels_by(lambda query, candidate: grade)


def test_what_is_in_the_label_file_is_not_asked_again(tmp_path: Path) -> None:
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        assert labels.rest(GROUPS) == GROUPS
        labels.add(GROUPS[0].with_labels([1, 1, 0, 0]))
        assert labels.rest(GROUPS) == GROUPS[1:]
        assert (tmp_path / "labels.jsonl").read_text() == group_line(GROUPS[0].with_labels([1, 1, 0, 0]))
    with LabelFile(tmp_path / "labels.jsonl") as labels:
        assert labels.rest([*GROUPS, *GROUPS]) == GROUPS[1:]


def test_a_line_that_a_kill_has_torn_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(group_line(GROUPS[0]) + group_line(GROUPS[1])[:20])
    with LabelFile(path) as labels:
        labels.add(GROUPS[1])
    assert path.read_text() == group_line(GROUPS[0]) + group_line(GROUPS[1])


def test_a_file_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("notes\n")
    with pytest.raises(ConfigError, match=r"line 1: .*name another file"):
        LabelFile(path)
    assert path.read_text() == "notes\n"


def test_two_cannot_label_into_one_file(tmp_path: Path) -> None:
    with LabelFile(tmp_path / "labels.jsonl"), pytest.raises(ConfigError, match="another process writes it"):
        LabelFile(tmp_path / "labels.jsonl")
