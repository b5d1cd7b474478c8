"""docs/security.md names tests: each is there, by this name, and each row has one or says why it needs none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| advisory ")]


def names_of_tests() -> set[str]:
    """Of every file here, without importing one."""
    trees = [ast.parse(path.read_text()) for path in TESTS.rglob("test_*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert named - names_of_tests() == set()


def test_every_row_has_a_test_or_says_why_it_does_not_apply() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        assert row.count(" | ") == 3, row
        assert ("`test_" in row) != ("does not apply: " in row), row


def test_every_advisory_is_linked() -> None:
    unlinked = re.sub(r"\[[^\]]*\]\([^)]*\)", "", PAGE)
    assert re.findall(r"CVE-\d|GHSA-", unlinked) == []
