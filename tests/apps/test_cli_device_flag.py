"""--device on every verb that runs a model: from a flag, the environment or a settings file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from cli_fakes import Program

from llm_decoder import backends
from llm_decoder.cli import _open
from llm_decoder.cli.bench import bench
from llm_decoder.cli.bench_serve import bench_serve
from llm_decoder.cli.main import VERBS, main
from llm_decoder.errors import BackendError

RUNS_A_MODEL = {"generate", "chat", "batch", "stream", "search", "serve", "web"}


def test_every_verb_that_runs_a_model_takes_the_options_of_one() -> None:
    takes = {
        name
        for name, verb in VERBS.items()
        if "ModelOptions" in {parameter.annotation for parameter in inspect.signature(verb).parameters.values()}
    }
    assert takes == RUNS_A_MODEL
    for verb in (bench, bench_serve):
        assert inspect.signature(verb).parameters["model"].annotation == "ModelOptions"


@pytest.mark.parametrize("verb", [*sorted(RUNS_A_MODEL), "doctor", "rerank"])
def test_its_help_has_the_flag(cli: Program, verb: str) -> None:
    assert "--device NAME" in cli(verb, "--help").out


def test_a_flag_goes_over_the_variable_over_the_settings(
    cli: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runtime_config.yaml").write_text("device: cuda:2\n")
    settings = ("--config", str(tmp_path))

    def wanted(*arguments: str) -> str:
        assert cli("generate", "Once", *settings, *arguments).code == 0
        device: str = _open.engine_arguments(cli.opened[-1])["device"]
        return device

    assert wanted() == "cuda:2"
    monkeypatch.setenv("LLM_DECODER_DEVICE", "cuda:1")
    assert wanted() == "cuda:1"
    assert wanted("--device", "cuda") == "cuda"


def test_a_gpu_that_is_not_there_is_an_error_of_one_line_that_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise BackendError("this build has no CUDA extension")

    monkeypatch.setattr(backends, "load_cuda", none)
    assert main(["generate", "Once", "--device", "cuda"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: [device] cuda cannot be used: this build has no CUDA extension; use device='cpu'"


def test_a_name_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Once", "--device", "gpu"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--device" in said
    assert "must be auto, cpu, cuda, or cuda:1 and so on, got 'gpu'" in said
