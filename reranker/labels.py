"""Who says which candidate is right: a rule, or a person.

A rule is any callable `rule(query, candidate)` that returns a grade from 0 to 1, True or False, or None for what it
cannot tell. A person goes through the groups one after the other; each is in the file before the next one is shown.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from llm_decoder.errors import ConfigError
from llm_decoder.reranker.groups import Group, group_line, read_groups

__all__ = [
    "RULES",
    "LabelFile",
    "Rule",
    "contains",
    "exact_match",
    "label_by_rule",
    "regex",
]

Rule = Callable[[str, str], float | bool | None]


def exact_match(answers: str | Mapping[str, str]) -> Rule:
    """The candidate is the answer, but for space around both. answers: one for all queries, or one a query."""
    return lambda query, candidate: _with_answer(answers, query, lambda answer: candidate.strip() == answer.strip())


def contains(answers: str | Mapping[str, str]) -> Rule:
    """The answer is somewhere in the candidate, in capitals or not."""
    return lambda query, candidate: _with_answer(
        answers, query, lambda answer: answer.casefold() in candidate.casefold()
    )


def regex(answers: str | Mapping[str, str]) -> Rule:
    """The regular expression (Python's) matches somewhere in the candidate. Raises ConfigError when it is none."""
    patterns = {"": answers} if isinstance(answers, str) else dict(answers)
    compiled = {}
    for query, pattern in patterns.items():
        try:
            compiled[query] = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"[rule] need a regular expression, got {pattern!r:.100}: {error}") from error

    def rule(query: str, candidate: str) -> bool | None:
        pattern = compiled.get("" if isinstance(answers, str) else query)
        return None if pattern is None else pattern.search(candidate) is not None

    return rule


RULES: Mapping[str, Callable[[str | Mapping[str, str]], Rule]] = {
    "exact": exact_match,
    "contains": contains,
    "regex": regex,
}


def _with_answer(answers: str | Mapping[str, str], query: str, judge: Callable[[str], bool]) -> bool | None:
    answer = answers if isinstance(answers, str) else answers.get(query)
    return None if answer is None else judge(answer)


def label_by_rule(groups: Iterable[Group], rule: Rule) -> list[Group]:
    """The groups with the rule's labels in place of their own. Raises ConfigError for a grade outside of 0 to 1."""
    labelled = []
    for group in groups:
        try:
            labelled.append(group.with_labels([rule(group.query, candidate) for candidate in group.candidates]))
        except ValueError as error:
            raise ConfigError(f"[rule] {error}, for the query {group.query!r:.60}") from error
    return labelled


class LabelFile:
    """A file of groups that a person labels: what is in it is done, what is added is on the disk at once.

    A torn last line, as a kill leaves it, is cut. Raises ConfigError when another process writes the file or when it
    holds something else, OSError as the file system does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._cut_torn_line()
            groups, problems = read_groups(path)
            if problems:
                raise ConfigError(f"{problems[0]}; mend that line, or name another file for the labels")
        except BaseException:
            self._file.close()
            raise
        self.done = {group.key for group in groups}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def rest(self, groups: Iterable[Group]) -> list[Group]:
        """Those that are not in the file, each once."""
        return list({group.key: group for group in groups if group.key not in self.done}.values())

    def add(self, group: Group) -> None:
        rest = memoryview(group_line(group).encode())
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self.done.add(group.key)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"[{self.path}] another process writes it; wait for it or name another file") from None

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
