"""Flags mirror the library: same names, and flag over environment over settings over default."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from cli_fakes import FakeLLM, Program

from llm_decoder.cli._options import DEFAULT_MAX_TOKENS, ModelOptions, SamplingOptions, parse_size
from llm_decoder.cli.main import main
from llm_decoder.errors import InvalidRequestError
from llm_decoder.sampling import SamplingParams
from llm_decoder.structured import StructuredOutputs


def names_of(group: type) -> set[str]:
    return {field.name for field in dataclasses.fields(group)}


def test_every_field_of_sampling_params_is_a_flag() -> None:
    assert names_of(SamplingOptions) == names_of(SamplingParams)


def test_every_parameter_of_llm_is_a_flag() -> None:
    from llm_decoder.llm import LLM

    only_for_programs = {"progress", "sampling_defaults"}
    parameters = set(inspect.signature(LLM).parameters) - only_for_programs
    parameters = parameters - {"config_dir"} | {"config"}  # the flag reads all five files
    assert parameters <= names_of(ModelOptions) | names_of(SamplingOptions)


def test_the_flag_has_the_field_s_name_with_dashes(cli: Program) -> None:
    ran = cli("generate", "--help")
    for name in names_of(ModelOptions) | names_of(SamplingOptions):
        assert f"--{name.replace('_', '-')}" in ran.out


def test_sampling_flags_reach_the_request(cli: Program) -> None:
    flags = {
        "--max-tokens": "7",
        "--min-tokens": "2",
        "--temperature": "0.5",
        "--top-k": "3",
        "--top-p": "0.9",
        "--min-p": "0.1",
        "--repetition-penalty": "1.1",
        "--presence-penalty": "0.2",
        "--frequency-penalty": "0.3",
        "--allowed-token-ids": "1,2",
        "--bad-token-ids": "3",
        "--seed": "11",
        "--stop-token-ids": "4, 5",
        "--logprobs": "2",
        "--prompt-logprobs": "1",
        "--cache-salt": "mine",
        "--structured-outputs": '{"regex": "[0-9]+"}',
    }
    arguments = [word for pair in flags.items() for word in pair]
    arguments += ["--logit-bias", "6=-5", "--logit-bias", "7=2.5", "--bad-words", "no", "--stop", "a", "--stop", "b"]
    arguments += ["--ignore-eos", "--include-stop-str-in-output", "--no-skip-special-tokens"]
    assert cli("generate", "Hello", *arguments).code == 0
    assert cli.llm.asked[0][1] == SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={6: -5.0, 7: 2.5},
        allowed_token_ids=(1, 2),
        bad_token_ids=(3,),
        bad_words=("no",),
        seed=11,
        stop=("a", "b"),
        stop_token_ids=(4, 5),
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        logprobs=2,
        prompt_logprobs=1,
        cache_salt="mine",
        structured_outputs={"regex": "[0-9]+"},
    )


def test_a_file_may_hold_the_form_of_the_answer(cli: Program, tmp_path: Path) -> None:
    file = tmp_path / "form.json"
    file.write_text('{"choice": ["yes", "nö"]}', encoding="utf-8")
    assert cli("generate", "Hello", "--structured-outputs", f"@{file}").code == 0
    assert cli.llm.asked[0][1].structured_outputs == StructuredOutputs(choice=["yes", "nö"])


def test_what_is_not_given_is_left_to_the_model(cli: Program) -> None:
    cli("generate", "Hello")
    assert cli.llm.asked[0][1] == SamplingParams(max_tokens=DEFAULT_MAX_TOKENS)


def test_min_tokens_alone_may_exceed_the_default_of_max_tokens(cli: Program) -> None:
    assert cli("generate", "Hello", "--min-tokens", "2000").code == 0
    assert cli.llm.asked[0][1].max_tokens == 2000


def test_model_flags_reach_the_engine(cli: Program) -> None:
    sizes = ("--kv-cache-bytes", "2MiB", "--kv-tier-bytes", "0")
    cli("generate", "Hello", "-m", "some/model", *sizes, "--threads", "3", "--dtype", "float32")
    assert cli.opened[0].engine_arguments() == {
        "model": "some/model",
        "kv_cache_bytes": 2 << 20,
        "kv_tier_bytes": 0,
        "threads": 3,
        "dtype": "float32",
    }


def test_the_environment_stands_in_for_a_flag_and_the_flag_wins(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_MAX_TOKENS", "5")
    monkeypatch.setenv("LLM_DECODER_MODEL", "from/environment")
    monkeypatch.setenv("LLM_DECODER_IGNORE_EOS", "1")
    cli("generate", "Hello", "--model", "from/flag")
    params = cli.llm.asked[0][1]
    assert (params.max_tokens, params.ignore_eos) == (5, True)
    assert cli.opened[0].model == "from/flag"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--n", "1000000000"),
        ("--max-tokens", "many"),
        ("--logit-bias", "6"),
        ("--allowed-token-ids", "1;2"),
        ("--stop-token-ids", "-3"),
        ("--kv-cache-bytes", "lots"),
        ("--kv-tier-bytes", "-1"),
        ("--threads", "0"),
        ("--device", "gpu"),
        ("--quantization", "int2"),
        ("--dtype", "float8"),
        ("--kv-cache-dtype", "fp4"),
        ("--page-size", "17"),
        ("--max-model-len", "0"),
        ("--isa", "foo"),
        ("--max-num-seqs", "0"),
        ("--max-tokens-per-step", "0"),
        ("--max-requests", "0"),
        ("--chat-template", "no/such/file.jinja"),
        ("--stop-token-ids", "99999"),
        ("--allowed-token-ids", "100"),
        ("--bad-token-ids", "1,100"),
        ("--logit-bias", "100=1"),
        ("--structured-outputs", "[0-9]+"),
        ("--structured-outputs", "[1]"),
        ("--structured-outputs", "{}"),
        ("--structured-outputs", "@no/such/file.json"),
        ("--no-such-flag", "1"),
    ],
)
def test_a_bad_value_is_a_usage_error_that_names_the_flag(cli: Program, flag: str, value: str) -> None:
    ran = cli("generate", "Hello", f"{flag}={value}")
    assert (ran.code, ran.out) == (2, "")
    assert flag in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("verb", ["chat", "batch", "stream"])
@pytest.mark.parametrize("value", [("--threads", "0"), ("--stop-token-ids", "100")])
def test_a_bad_value_is_a_usage_error_of_every_verb_that_has_the_flag(
    cli: Program, verb: str, value: tuple[str, str]
) -> None:
    ran = cli(verb, *value, stdin="Hello\n")
    assert (ran.code, ran.out) == (2, "")
    assert value[0] in ran.err


@pytest.mark.parametrize(("name", "value"), [("THREADS", "0"), ("CPU_ISA", "foo"), ("PAGE_SIZE", "17")])
def test_a_variable_with_a_bad_value_is_as_wrong_as_its_flag(
    cli: Program, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LLM_DECODER_{name}", value)
    assert cli("generate", "Hello").code == 2


def test_what_only_the_loaded_model_can_refuse_is_a_usage_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hello", "--max-model-len", "2000000"]) == 2
    assert "--max-model-len" in capsys.readouterr().err


def test_a_chat_template_that_does_not_compile_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hello", "--chat-template", "{% if %}"]) == 2
    assert "--chat-template" in capsys.readouterr().err


def test_a_field_that_the_engine_refuses_is_told_by_its_flag(cli: Program) -> None:
    class Refusing(FakeLLM):
        def stream(self, prompt: Any, params: SamplingParams) -> Any:
            raise InvalidRequestError("[min_tokens] cannot be", param="min_tokens")

    cli.llm = Refusing()
    ran = cli("generate", "Hello", "--min-tokens", "3")
    assert ran.code == 2
    assert "--min-tokens" in ran.err


def test_a_conversion_of_nothing_is_a_usage_error(cli: Program, tmp_path: Path) -> None:
    ran = cli("convert", "storyteller", str(tmp_path / "weights"), "--no-float", "--no-int8")
    assert (ran.code, ran.out) == (2, "")
    assert "--no-float" in ran.err


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1000", 1000), ("2K", 2048), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("1TB", 1 << 40), ("1_000", 1000)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "G", "1X", "nan", "inf", "1e30T"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)


VERBS = ("generate", "chat", "batch", "stream", "convert", "list", "show", "devices", "bench", "cache")


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb in VERBS), ("cache", "ls"), ("cache", "clear")])
def test_help_of_every_verb_is_on_standard_output(cli: Program, arguments: tuple[str, ...]) -> None:
    ran = cli(*arguments, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert " ".join(("Usage: llm-decoder", *arguments)) in ran.out


def test_help_names_every_verb(cli: Program) -> None:
    ran = cli("--help")
    assert all(f"\n  {verb} " in ran.out for verb in VERBS)


def test_an_unknown_verb_is_a_usage_error(cli: Program) -> None:
    ran = cli("frobnicate")
    assert ran.code == 2
    assert "frobnicate" in ran.err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["cache", "--help"], ["--version"], ["batch", "--nonsense"]]
)
def test_help_version_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from llm_decoder.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'huggingface_hub', 'safetensors', 'prompt_toolkit', 'pydantic'}; "
        "found = heavy & {name.split('.')[0] for name in sys.modules}; assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shell_completion_offers_the_verbs(tmp_path: Path) -> None:
    environment = os.environ | {
        "_LLM_DECODER_COMPLETE": "complete_bash",
        "COMP_WORDS": "llm-decoder ",
        "COMP_CWORD": "1",
    }
    command = [sys.executable, "-m", "llm_decoder"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert set(VERBS) <= set(done.stdout.split())


@pytest.mark.parametrize(("text", "stop"), [("The end", ("The end",)), ('["The end", "Bye"]', ("The end", "Bye"))])
def test_the_environment_gives_a_repeatable_flag_as_a_text_or_a_json_list(
    cli: Program, monkeypatch: pytest.MonkeyPatch, text: str, stop: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LLM_DECODER_STOP", text)
    cli("generate", "Hello")
    assert cli.llm.asked[0][1].stop == stop
