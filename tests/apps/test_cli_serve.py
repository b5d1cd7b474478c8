"""llm-decoder serve: its flags, the environment and the settings files become a server's settings."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import types
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Program

import llm_decoder
from llm_decoder.cli._options import ServerOptions
from llm_decoder.cli.main import main
from llm_decoder.errors import ConfigError
from llm_decoder.serving.opening import read_keys, service_from_environment
from llm_decoder.serving.service import Service
from llm_decoder.serving.settings import ServerSettings


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """The services that would have been served; nothing is."""
    services: list[Service] = []
    server = types.SimpleNamespace(run=lambda service, page: services.append(service) or 0)
    flask = types.SimpleNamespace(serve=lambda service: services.append(service) or 0)
    page = types.SimpleNamespace(endpoints=tuple)
    named = {"llm_decoder.api.server": server, "llm_decoder.web.page": page, "llm_decoder.web.app": flask}
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: named.get(name) or real(name))
    monkeypatch.setattr("llm_decoder.serving.logs.set_up", lambda settings: None)
    return services


def test_every_setting_of_a_server_is_a_flag() -> None:
    flags = {field.name for field in dataclasses.fields(ServerOptions)}
    settings = {field.name for field in dataclasses.fields(ServerSettings)}
    assert flags - {"api_key", "api_key_file"} == settings - {"api_keys", "max_requests"}  # a flag of the model's


def test_without_flags_it_listens_to_this_machine_alone(cli: Program, served: list[Service]) -> None:
    ran = cli("serve")
    assert (ran.code, ran.err) == (0, "")
    assert served[0].settings == ServerSettings(port=8000)


def test_flags_reach_the_server(cli: Program, served: list[Service], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# people\n  one \n\ntwo\n", encoding="utf-8")
    flags = {
        "--host": "0.0.0.0",
        "--port": "81",
        "--api-key-file": str(keys),
        "--served-model-name": "mine",
        "--cors-origins": "https://a.example,https://b.example",
        "--max-requests": "7",
        "--max-prompts": "8",
        "--max-inputs": "12",
        "--max-n": "9",
        "--max-beam-width": "16",
        "--max-answer-tokens": "10",
        "--max-body-bytes": "2MiB",
        "--max-header-bytes": "8KiB",
        "--read-timeout-s": "1.5",
        "--ping-s": "2.5",
        "--drain-s": "0",
        "--resume-s": "4",
        "--log-format": "json",
    }
    arguments = [word for pair in flags.items() for word in pair]
    more = ["--allowed-hosts", "x.example", "--allowed-hosts", "y.example", "--api-key", "three", "--log-prompts"]
    more.append("--debug-kv")
    ran = cli("serve", *arguments, *more)
    assert (ran.code, ran.err) == (0, "")
    assert served[0].settings == ServerSettings(
        host="0.0.0.0",
        port=81,
        api_keys=("three", "one", "two"),
        served_model_name="mine",
        cors_origins=("https://a.example", "https://b.example"),
        allowed_hosts=("x.example", "y.example"),
        max_requests=7,
        max_prompts=8,
        max_inputs=12,
        max_n=9,
        max_beam_width=16,
        max_answer_tokens=10,
        max_body_bytes=2 << 20,
        max_header_bytes=8 << 10,
        read_timeout_s=1.5,
        ping_s=2.5,
        drain_s=0.0,
        resume_s=4.0,
        log_format="json",
        log_prompts=True,
        debug_kv=True,
    )


def test_the_engine_takes_as_many_requests_as_the_server(cli: Program, served: list[Service]) -> None:
    cli("serve")
    cli("serve", "--max-requests", "3")
    for service, n_requests in zip(served, (256, 3), strict=True):
        service.start()
        assert service.wait(60)
        assert cli.opened[-1].max_requests == n_requests


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "llm.example"])
def test_a_server_that_others_reach_without_a_key_is_warned_of(cli: Program, served: list[Service], host: str) -> None:
    ran = cli("serve", "--host", host)
    assert ran.code == 0
    assert ran.err.startswith(f"warning: [--host {host}]")
    assert "--api-key" in ran.err
    assert cli("serve", "--host", host, "--api-key", "k").err == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_is_no_danger(cli: Program, served: list[Service], host: str) -> None:
    assert cli("serve", "--host", host).err == ""


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "70000"),
        ("--log-format", "xml"),
        ("--max-n", "0"),
        ("--ping-s", "0"),
        ("--cors-origins", "app.example"),
        ("--api-key", "a\nb"),
        ("--api-key", " "),
        ("--max-body-bytes", "many"),
        ("--temperature", "-1"),
        ("--top-p", "2"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error_that_names_the_flag(
    cli: Program, served: list[Service], flag: str, value: str
) -> None:
    ran = cli("serve", flag, value)
    assert ran.code == 2
    assert flag in ran.err
    assert served == []


@pytest.fixture
def engine_arguments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What LLM was made with by the services that were started; nothing is loaded."""
    made: list[dict[str, Any]] = []
    model = types.SimpleNamespace(name="m", is_closed=False, close=lambda drain_s=0.0: None)
    monkeypatch.setattr(llm_decoder, "LLM", lambda **arguments: made.append(arguments) or model, raising=False)
    return made


@pytest.mark.parametrize("verb", ["serve", "web"])
def test_what_requests_leave_open_is_settled_by_flags_over_variables_over_files(
    served: list[Service],
    engine_arguments: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    (tmp_path / "runtime_config.yaml").write_text("temperature: 0.1\ntop_p: 0.2\ntop_k: 3\n", encoding="utf-8")
    monkeypatch.setenv("LLM_DECODER_TOP_P", "0.5")
    monkeypatch.setenv("LLM_DECODER_MIN_P", "0.25")
    more = ["--temperature", "0.75", "--seed", "9", "--generation-config", "none"]
    assert main([verb, "--config", str(tmp_path), *more]) == 0
    served[0].start()
    assert served[0].wait(60)
    (arguments,) = engine_arguments
    assert arguments["sampling_defaults"] == {"temperature": 0.75, "top_p": 0.5, "top_k": 3, "min_p": 0.25}
    assert (arguments["seed"], arguments["generation_config"]) == (9, "none")


@pytest.mark.parametrize("verb", ["serve", "web"])
def test_help_has_each_group_of_flags_under_its_title(cli: Program, verb: str) -> None:
    told = cli(verb, "--help").out
    parts = {part.partition(":\n")[0]: part for part in re.split(r"\n(?=\S)", told)}
    for title, flag in {
        "Address": "--port",
        "Who may call": "--api-key-file",
        "Limits and times": "--drain-s",
        "Log": "--log-format",
        "Sampling, where a request leaves it open": "--top-p",
        "Model": "--kv-cache-bytes",
        "Options": "--debug",
    }.items():
        assert flag in parts[title], told


def test_a_file_without_a_key_does_not_open_the_server(cli: Program, served: list[Service], tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("# none\n\n", encoding="utf-8")
    for path in (empty, tmp_path / "nowhere", tmp_path):
        assert cli("serve", "--api-key-file", str(path)).code == 1
        with pytest.raises(ConfigError, match="api_key_file"):
            read_keys(path)
    assert served == []


# -- the environment and the files


def test_the_environment_goes_over_the_file_and_a_flag_over_both(
    cli: Program, served: list[Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("from-file\n", encoding="utf-8")
    (tmp_path / "runtime_config.yaml").write_text(
        "host: localhost\nport: 1\ndrain_s: 3\nmax_requests: 5\nmax_body_bytes: 1MiB\nlog_prompts: true\n"
        f"allowed_hosts: [a.example, b.example]\napi_key_file: {tmp_path / 'keys'}\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("LLM_DECODER_PORT", "2")
    monkeypatch.setenv("LLM_DECODER_CORS_ORIGINS", "https://a.example, https://b.example")
    cli("serve", "--config", str(tmp_path))
    cli("serve", "--config", str(tmp_path), "--port", "3", "--no-log-prompts", "--api-key", "k")
    first, second = (service.settings for service in served)
    assert (first.host, first.port, first.drain_s, first.max_requests) == ("localhost", 2, 3.0, 5)
    assert (first.max_body_bytes, first.log_prompts, first.allowed_hosts) == (1 << 20, True, ("a.example", "b.example"))
    assert first.cors_origins == ("https://a.example", "https://b.example")
    assert first.api_keys == ("from-file",)
    assert (second.port, second.log_prompts, second.api_keys) == (3, False, ("k",))


@pytest.mark.parametrize(("text", "keys"), [("k", ("k",)), ('["a", "b"]', ("a", "b")), ("[x", ("[x",))])
def test_keys_come_from_the_environment_too(
    cli: Program, served: list[Service], monkeypatch: pytest.MonkeyPatch, text: str, keys: tuple[str, ...]
) -> None:
    monkeypatch.setenv("LLM_DECODER_API_KEY", text)
    cli("serve")
    assert served[0].settings.api_keys == keys
    assert service_from_environment().settings.api_keys == keys


def test_an_application_without_a_command_line_is_made_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llm_decoder import llm

    made: list[dict[str, Any]] = []
    opened = types.SimpleNamespace(name="m", is_closed=False)
    monkeypatch.setattr(llm, "LLM", lambda **arguments: made.append(arguments) or opened)
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    (tmp_path / "paths.json").write_text(json.dumps({"model": "from/file"}), encoding="utf-8")
    for name, value in {
        "CONFIG": str(tmp_path),
        "CHAT_TEMPLATE": str(template),
        "THREADS": "3",
        "DETERMINISTIC": "1",
        "MAX_REQUESTS": "9",
        "RESUME_S": "2",
    }.items():
        monkeypatch.setenv(f"LLM_DECODER_{name}", value)
    service = service_from_environment()
    assert (service.settings.max_requests, service.settings.resume_s) == (9, 2.0)
    assert made == []
    service.start()
    assert service.wait(60)
    expected = {"model": "from/file", "chat_template": "{{ messages }}", "threads": 3, "deterministic": True}
    assert made == [expected | {"max_requests": 9, "config_dir": tmp_path}]


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "x"), ("LOG_PROMPTS", "maybe"), ("DRAIN_S", "-1"), ("LOG_FORMAT", "xml")]
)
def test_a_variable_that_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LLM_DECODER_{name}", value)
    with pytest.raises(ConfigError, match=name):
        service_from_environment()


def test_the_application_of_api_main_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_decoder.api import main

    monkeypatch.setenv("LLM_DECODER_SERVED_MODEL_NAME", "mine")
    assert "app" not in vars(main)
    app = main.app
    assert app.state.service.settings.served_model_name == "mine"
    assert app.state.service.state == "loading"
    assert main.app is app
    monkeypatch.delattr(main, "app")
    with pytest.raises(AttributeError, match="nothing"):
        _ = main.nothing  # type: ignore[attr-defined]
