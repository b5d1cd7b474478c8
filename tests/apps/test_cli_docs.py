"""docs/cli.md and docs/environment.md leave nothing out and invent nothing."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from cli_fakes import Program

from llm_decoder.cli._options import ModelOptions, RemoteOptions, SamplingOptions, SearchOptions, ServerOptions
from llm_decoder.cli.main import GROUPS, VERBS

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
FINETUNING = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
ENVIRONMENT = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"LLM_DECODER_[A-Z0-9_]*[A-Z0-9]")


def documented() -> set[str]:
    return set(VARIABLE.findall(ENVIRONMENT))


def test_the_variable_of_every_flag_is_documented() -> None:
    groups = (ModelOptions, RemoteOptions, SamplingOptions, SearchOptions, ServerOptions)
    names = {f"LLM_DECODER_{field.name.upper()}" for group in groups for field in dataclasses.fields(group)}
    names = names - {"LLM_DECODER_ISA"} | {"LLM_DECODER_CPU_ISA", "LLM_DECODER_DEBUG"}
    assert names <= documented()


def test_every_variable_that_the_package_names_is_documented() -> None:
    folders = ("python/llm_decoder", "config", "cli", "decoder", "kv_cache", "attention_cpu")
    sources = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".h")
    ]
    quoted = re.compile(rf"[\"']({VARIABLE.pattern})[\"']")  # macros of C++ and words of docstrings are no variables
    named = {name for path in sources for name in quoted.findall(path.read_text(encoding="utf-8"))}
    assert named >= {"LLM_DECODER_CPU_ISA", "LLM_DECODER_CACHE_DIR"}
    assert named <= documented()


def test_every_verb_is_told_by_an_example() -> None:
    commands = {line.split("llm-decoder ")[1].split()[0] for line in CLI.splitlines() if "llm-decoder " in line}
    assert set(VERBS) | set(GROUPS) <= commands


@pytest.mark.parametrize(
    "line",
    [line for line in re.findall(r"^llm-decoder .*", CLI + FINETUNING, re.M) if "--install-completion" not in line],
)
def test_the_flags_of_every_example_are_known(cli: Program, line: str) -> None:
    command = line.split(" #")[0].split("|")[0].split(">")[0]
    verb, *arguments = shlex.split(command)[1:]
    verbs = [verb, arguments[0]] if verb == "cache" or arguments[:1] == ["serve"] else [verb]
    known = cli(*verbs, "--help").out
    flags = [argument for argument in arguments if argument.startswith("--")]
    assert all(re.search(rf"{re.escape(flag)}\b", known) for flag in flags)
