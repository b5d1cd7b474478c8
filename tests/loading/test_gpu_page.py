"""docs/gpu.md quotes messages that there are, and tells of every variable and option as the others do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from llm_decoder import LLM
from llm_decoder.fit import GPU_RESERVE_BYTES
from llm_decoder.models import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
SOURCES = [path for room in ("python", "attention", "decoder") for path in (ROOT / room).rglob("*")]


def source_text() -> str:
    """Of Python and C++, with literals that stand side by side as one, and no line breaks."""
    texts = (path.read_text(encoding="utf-8") for path in SOURCES if path.suffix in (".py", ".cpp", ".h"))
    return re.sub(r'"\s*f?"', "", " ".join(" ".join(texts).split()))


def messages() -> list[str]:
    table = PAGE.partition("| message | what to do |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, re.M)


def test_every_message_is_one_that_is_said() -> None:
    said = source_text()
    assert len(messages()) > 12
    for message in messages():
        for part in message.split("…"):
            assert part.strip(" ,") in said, message


def test_every_variable_is_told_with_the_others() -> None:
    environment = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"LLM_DECODER_[A-Z_]*[A-Z]", PAGE))
    assert len(named) > 4
    assert {name for name in named if name not in environment} == set()


def test_every_option_is_one_of_the_llm() -> None:
    parameters = inspect.signature(LLM.__init__).parameters
    named = set(re.findall(r"`([a-z_]+)=", PAGE)) | set(re.findall(r"`((?:kv|max)_\w+)`", PAGE))
    assert {"device", "dtype", "quantization", "kv_cache_dtype", "kv_cache_bytes"} <= named
    assert named - set(parameters) == set()


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_every_family_is_named(name: str) -> None:
    assert name in PAGE
    assert name.lower() in FAMILIES
    assert len(FAMILIES) == 4


def test_the_reserve_is_the_one_that_is_kept() -> None:
    assert f"| reserve | {GPU_RESERVE_BYTES >> 30} GiB" in PAGE


def test_nobody_is_told_that_it_was_measured() -> None:
    assert "**Nothing of this has been measured on a device yet.**" in PAGE
