"""docs/ops.md tells of every call, every argument and every result of llm_decoder.ops."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from llm_decoder import ops

PAGE = (Path(__file__).parents[2] / "docs/ops.md").read_text()
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)
FUNCTIONS = [name for name in ops.__all__ if not inspect.isclass(getattr(ops, name))]
CLASSES = [name for name in ops.__all__ if name not in FUNCTIONS]
OF_PAGED_ATTENTION = {"options"}  # what paged_attention_csr hands on


def names(text: str, word: str) -> bool:
    """In its heading or in code, where it is no part of another word."""
    code = text.partition("\n")[0] + " ".join(re.findall(r"```.*?```|`[^`]+`", text, flags=re.S))
    return re.search(rf"\b{word}\b", code) is not None


@pytest.mark.parametrize("call", FUNCTIONS)
def test_every_argument_of_a_call_is_in_its_section(call: str) -> None:
    section = [text for text in SECTIONS if names(text, call)]
    assert section, f"docs/ops.md says nothing of {call}"
    arguments = set(inspect.signature(getattr(ops, call)).parameters) - OF_PAGED_ATTENTION
    missing = [name for name in arguments if not any(names(text, name) for text in (INTRODUCTION, *section))]
    assert not missing, f"the section of {call} says nothing of {', '.join(missing)}"


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_and_its_fields_are_there(name: str) -> None:
    fields = getattr(getattr(ops, name), "_fields", ())
    assert [word for word in (name, *fields) if not names(PAGE, word)] == []
