"""A query and its candidates with their labels: what a reranker learns from, and is judged by.

Groups come from the runs that searches log (`llm_decoder.search.run_file`), or from plain JSONL, a group a line:

    {"query": "...", "candidates": ["...", "..."], "labels": [1, 0]}       "documents" is another word for candidates
    {"query": "...", "documents": ["...", "..."], "label": 0}              label: the place of the right one

A label is a grade from 0 (wrong) to 1 (right), or null. In a run it stands on the line of its candidate, where it may
also be a side of a pair, {"pair": id, "side": "preferred" | "rejected"}: a pair is a group of two.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_decoder.errors import ConfigError, LLMDecoderError, MalformedFileError
from llm_decoder.search.run_file import SearchRun, read_runs

__all__ = ["Group", "group_line", "read_groups", "read_texts", "split_by_query"]


@dataclass(frozen=True)
class Group:
    """candidates and labels have one length, 2 or more for a group that teaches something. labels: grades from 0 to 1,
    None = not labelled. beam_scores: length-normalised log probabilities, where the search told them."""

    query: str
    candidates: tuple[str, ...]
    labels: tuple[float | None, ...]
    beam_scores: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """The same for groups that ask the same: it does not depend on the labels."""
        text = json.dumps([self.query, *self.candidates])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def is_labelled(self) -> bool:
        return all(label is not None for label in self.labels)

    @property
    def grades(self) -> tuple[float, ...]:
        """The labels of a group that is labelled."""
        return tuple(label for label in self.labels if label is not None)

    @property
    def has_order(self) -> bool:
        """Whether one candidate is better than another: without that there is nothing to rank."""
        return self.is_labelled and len(set(self.labels)) > 1

    def labelled_part(self) -> Group:
        """Without the candidates that have no label."""
        chosen = [index for index, label in enumerate(self.labels) if label is not None]
        scores = self.beam_scores
        return Group(
            self.query,
            tuple(self.candidates[index] for index in chosen),
            tuple(self.labels[index] for index in chosen),
            None if scores is None else tuple(scores[index] for index in chosen),
        )

    def with_labels(self, labels: Sequence[float | None]) -> Group:
        """Raises ValueError unless there is a grade from 0 to 1, or None, for each candidate."""
        if len(labels) != len(self.candidates):
            raise ValueError(f"need a label for each of {len(self.candidates)} candidates, got {len(labels)}")
        return replace(self, labels=tuple(_grade(label) for label in labels))


def _grade(label: Any) -> float | None:
    if label is None:
        return None
    if isinstance(label, (bool, int, float)) and math.isfinite(label) and 0 <= label <= 1:
        return float(label)
    raise ValueError(f"a label must be a number from 0 (wrong) to 1 (right), got {label!r:.40}")


def group_line(group: Group) -> str:
    """The group as a line of JSONL, with its line feed. `read_groups` reads it back."""
    value: dict[str, Any] = {"query": group.query, "candidates": group.candidates, "labels": group.labels}
    if group.beam_scores is not None:
        value["beam_scores"] = group.beam_scores
    return json.dumps(value, ensure_ascii=False) + "\n"


def read_groups(path: Path, prompts: Mapping[str, str] | None = None) -> tuple[list[Group], list[LLMDecoderError]]:
    """The groups of a file of runs or of plain groups, and what was wrong with what is left out, by line.

    prompts: for runs without them, by their hash (see read_texts). A query that the search gave to its own scorer
    (SearchParams.query) goes over the prompt. Raises ConfigError where runs have no prompts and `prompts` does not have
    them either, OSError as the file system does.
    """
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        lines = list(file)
    if _holds_runs(lines):
        return _groups_of_runs(lines, path, prompts or {})
    groups: list[Group] = []
    problems: list[LLMDecoderError] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                groups.append(_group_of(_as_object(line)))
            except (ValueError, RecursionError) as error:
                problems.append(MalformedFileError(f"[{path}] line {number}: {error}; the line is left out"))
    return groups, problems


def _holds_runs(lines: Iterable[str]) -> bool:
    for line in lines:
        try:
            return "type" in _as_object(line)
        except (ValueError, RecursionError):
            continue
    return False


def _as_object(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError("need a JSON object")
    return value


def _group_of(value: dict[str, Any]) -> Group:
    names = [name for name in ("candidates", "documents") if name in value]
    if len(names) != 1:
        raise ValueError('need one of "candidates" and "documents"')
    candidates = _texts(value[names[0]], names[0])
    query = _text(value.get("query"), "query")
    if "labels" in value and "label" in value:
        raise ValueError('need one of "labels" and "label", got both')
    labels = value.get("labels", [None] * len(candidates))
    if "label" in value:
        right = value["label"]
        if not isinstance(right, int) or isinstance(right, bool) or not 0 <= right < len(candidates):
            raise ValueError(
                f'"label" must be the place of the right one, 0 to {len(candidates) - 1}, got {right!r:.40}'
            )
        labels = [float(index == right) for index in range(len(candidates))]
    if not isinstance(labels, list):
        raise ValueError('"labels" must be a list')
    scores = value.get("beam_scores")
    if scores is not None and (not isinstance(scores, list) or len(scores) != len(candidates)):
        raise ValueError(f'"beam_scores" must be a list of {len(candidates)} numbers')
    group = Group(query, candidates, (None,) * len(candidates), _scores(scores))
    return group.with_labels(labels)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'"{name}" must be a text')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f'"{name}" must be text in UTF-8') from None
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{name}" must be a list of texts')
    return tuple(_text(item, name) for item in value)


def _scores(values: Sequence[Any] | None) -> tuple[float, ...] | None:
    """None unless all are there: a baseline needs every candidate's."""
    if values is None or any(not isinstance(value, (int, float)) or not math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)


def _groups_of_runs(
    lines: Sequence[str], path: Path, prompts: Mapping[str, str]
) -> tuple[list[Group], list[LLMDecoderError]]:
    runs, found = read_runs(lines, str(path))
    problems: list[LLMDecoderError] = [*found]
    groups: list[Group] = []
    n_unknown = 0
    for number, run in enumerate(runs, 1):
        try:
            query = _query_of(run, prompts)
            if query is None:
                n_unknown += 1
            else:
                groups += _groups_of_run(run, query)
        except ValueError as error:
            problems.append(MalformedFileError(f"[{path}] run {number}: {error}; the run is left out"))
    if n_unknown:
        raise ConfigError(
            f"[{path}] need the prompt of each run, got {n_unknown} of {len(runs)} without; log with --log-prompts, or "
            "give --prompts FILE with their prompts"
        )
    return groups, problems


def _query_of(run: SearchRun, prompts: Mapping[str, str]) -> str | None:
    params = run.header.get("params")
    given = params.get("query") if isinstance(params, dict) else None
    query = given or run.header.get("prompt") or prompts.get(str(run.header.get("prompt_hash")))
    return None if query is None else _text(query, "prompt")


def _groups_of_run(run: SearchRun, query: str) -> Iterator[Group]:
    """A group of what is graded or has no label, and one of each pair."""
    graded = []
    pairs: dict[Any, dict[str, dict[str, Any]]] = {}
    for candidate in run.candidates:
        label = candidate.get("label")
        if not isinstance(label, dict):
            graded.append(candidate)
            continue
        side, pair = label.get("side"), label.get("pair")
        if side not in ("preferred", "rejected") or not isinstance(pair, (str, int)):
            raise ValueError(
                f'a side of a pair must be {{"pair": id, "side": "preferred" or "rejected"}}, got {label!r:.60}'
            )
        sides = pairs.setdefault(pair, {})
        if side in sides:
            raise ValueError(f"pair {pair!r:.40} has two {side} candidates")
        sides[side] = candidate
    for pair, sides in pairs.items():
        if len(sides) < 2:
            raise ValueError(
                f"pair {pair!r:.40} has no {'rejected' if 'preferred' in sides else 'preferred'} candidate"
            )
    if graded:
        yield _group_of_candidates(query, graded).with_labels([candidate.get("label") for candidate in graded])
    for sides in pairs.values():
        yield _group_of_candidates(query, [sides["preferred"], sides["rejected"]]).with_labels([1, 0])


def _group_of_candidates(query: str, candidates: Sequence[Mapping[str, Any]]) -> Group:
    scores = _scores([candidate.get("beam_score") for candidate in candidates])
    texts = tuple(_text(candidate["text"], "text") for candidate in candidates)
    return Group(query, texts, (None,) * len(texts), scores)


def read_texts(path: Path, key: str, value: str) -> tuple[dict[str, str], list[LLMDecoderError]]:
    """One text by another, from JSONL of objects that have both, and what was wrong with the lines left out.

    "prompt_hash" and "prompt" of runs without prompts, "query" and "answer" of what a rule looks for.
    """
    texts: dict[str, str] = {}
    problems: list[LLMDecoderError] = []
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    found = _as_object(line)
                    texts[_text(found.get(key), key)] = _text(found.get(value), value)
                except (ValueError, RecursionError) as error:
                    problems.append(MalformedFileError(f"[{path}] line {number}: {error}; the line is left out"))
    return texts, problems


def split_by_query(groups: Sequence[Group], share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """To learn from, and to judge by: `share` of the queries, one at least, are held out, and no query is in both.
    Which ones depends on the queries and the seed alone, not on their order. Raises ConfigError for a single query.
    """

    def draw(query: str) -> bytes:
        return hashlib.sha256(f"{seed}:{query}".encode()).digest()

    queries = sorted({group.query for group in groups}, key=draw)
    if len(queries) < 2:
        raise ConfigError(
            f"[groups] need two different queries, one to learn from and one to judge by, got {len(queries)}"
        )
    held_out = set(queries[: min(max(1, round(share * len(queries))), len(queries) - 1)])
    learnt = [group for group in groups if group.query not in held_out]
    return learnt, [group for group in groups if group.query in held_out]
