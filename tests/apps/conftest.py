"""The command line on a fake LLM."""

from __future__ import annotations

import io
import os
import sys

import pytest
from cli_fakes import FakeLLM, Program, Ran

from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions, SamplingDefaults
from llm_decoder.cli.main import main


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLM_DECODER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """`cli("generate", "Hello")` runs the program; `cli.llm` is what it talked to, `cli.opened` the options it had."""

    def run(*arguments: str, stdin: str | bytes = "") -> Ran:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    program = Program(FakeLLM(), run)

    def open_fake(options: ModelOptions, sampling: SamplingDefaults | None = None) -> FakeLLM:
        options.engine_arguments()
        program.opened.append(options)
        return program.llm

    monkeypatch.setattr(_open, "open_llm", open_fake)
    return program
