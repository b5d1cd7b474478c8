"""Settings files: a flag goes over the environment, over a file, over a default."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Program

import llm_decoder
from llm_decoder.__main__ import main as program
from llm_decoder.cli import _open
from llm_decoder.cli._options import ModelOptions
from llm_decoder.cli.main import main

open_llm = _open.open_llm  # the fixture `cli` replaces it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two of the five files; the others have their defaults."""
    (tmp_path / "runtime_config.yaml").write_text(
        "threads: 3\nmax_tokens: 9\ntemperature: 0.5\nseed: 4\nkv_cache_bytes: 2MiB\n", encoding="utf-8"
    )
    (tmp_path / "paths.json").write_text(json.dumps({"model": "from/file"}), encoding="utf-8")
    (tmp_path / "chat_template.json").write_text(json.dumps({"system": "Be kind.", "stop": ["END"]}), encoding="utf-8")
    return tmp_path


@pytest.fixture
def engine_arguments(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What LLM was made with; nothing is loaded."""
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(llm_decoder, "LLM", lambda **arguments: made.append(arguments), raising=False)
    return made


def test_settings_files_reach_the_engine(folder: Path, engine_arguments: list[dict[str, Any]]) -> None:
    open_llm(ModelOptions(config=folder))
    (arguments,) = engine_arguments
    assert arguments.pop("progress") is None
    assert arguments == {
        "model": "from/file",
        "config_dir": folder,
        "system": "Be kind.",
        "threads": 3,
        "seed": 4,
        "kv_cache_bytes": 2 << 20,
        "sampling_defaults": {"max_tokens": 9, "temperature": 0.5},
    }


def test_the_environment_goes_over_a_file_and_a_flag_over_both(
    folder: Path, engine_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DECODER_THREADS", "5")
    monkeypatch.setenv("LLM_DECODER_MODEL", "from/environment")
    open_llm(ModelOptions(config=folder, model="from/flag"))
    assert (engine_arguments[0]["threads"], engine_arguments[0]["model"]) == (5, "from/flag")
    open_llm(ModelOptions(config=folder, threads=7))
    assert (engine_arguments[1]["threads"], engine_arguments[1]["model"]) == (7, "from/environment")


def test_without_settings_nothing_is_said_to_the_engine(
    tmp_path: Path, engine_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_llm(ModelOptions())
    assert engine_arguments == [{"progress": None}]


def test_max_tokens_and_stop_of_the_settings_reach_the_request(cli: Program, folder: Path) -> None:
    cli("chat", "--config", str(folder), stdin="Hello\n")
    cli("chat", "--config", str(folder), "--max-tokens", "5", "--stop", "x", stdin="Hello\n")
    first, second = (params for _, params in cli.llm.asked)
    assert (first.max_tokens, first.stop) == (9, ("END",))
    assert (second.max_tokens, second.stop) == (5, ("x",))


def test_the_stop_beside_the_chat_template_ends_chats_alone(cli: Program, folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n{"prompt": "Hi"}\n', encoding="utf-8")
    cli("generate", "Hello", "--config", str(folder))
    cli("stream", "Hello", "--config", str(folder))
    cli("batch", str(lines), "--concurrency", "1", "--config", str(folder))
    assert [params.stop for _, params in cli.llm.asked] == [None, None, ("END",), None]


def test_flags_go_over_the_files_for_what_belongs_to_a_chat_and_where_things_lie(
    engine_arguments: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    flags = {
        "tokenizer": "t",
        "reranker": "r",
        "embedder": "e",
        "cache_dir": "c",
        "system": "Be brief.",
        "max_requests": 3,
        "deterministic": True,
    }
    open_llm(ModelOptions(config=folder, chat_template=str(template), **flags))  # type: ignore[arg-type]
    assert flags | {"chat_template": "{{ messages }}"} == {
        name: value for name, value in engine_arguments[0].items() if name in (*flags, "chat_template")
    }
    open_llm(ModelOptions(chat_template="{{ bos_token }}"))
    assert engine_arguments[1]["chat_template"] == "{{ bos_token }}"


def test_a_folder_called_config_here_is_read(
    cli: Program, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("place")
    (place / "config").symlink_to(folder)
    monkeypatch.chdir(place)
    cli("generate", "Hello")
    assert cli.llm.asked[0][1].max_tokens == 9


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("runtime_config.yaml", "thraeds: 3\n", "thraeds"),
        ("runtime_config.yaml", "threads: many\n", "threads"),
        ("paths.json", "{", "paths.json"),
    ],
)
def test_a_bad_settings_file_is_one_line_that_names_it(
    cli: Program, tmp_path: Path, name: str, content: str, named: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    ran = cli("generate", "Hello", "--config", str(tmp_path))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert named in ran.err


def test_a_settings_folder_that_is_not_there_is_an_error(cli: Program, tmp_path: Path) -> None:
    ran = cli("generate", "Hello", "--config", str(tmp_path / "nowhere"))
    assert ran.code == 1
    assert "nowhere" in ran.err


def test_offline_is_said_before_a_hub_is_asked(
    engine_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    open_llm(ModelOptions(offline=True))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("name", ["MIN_TOKENS", "N", "BAD_TOKEN_IDS", "STOP_TOKEN_IDS", "MAX_NUM_SEQS", "LOGPROBS"])
def test_the_variable_of_a_flag_is_no_misspelt_setting(
    cli: Program, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"LLM_DECODER_{name}", "1")
    assert cli("generate", "Hello").err.startswith("4 tokens")


def test_the_cache_verbs_look_where_the_settings_say(cli: Program, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "old.packed").write_bytes(b"12345")
    (tmp_path / "paths.json").write_text(json.dumps({"cache": str(kept)}), encoding="utf-8")
    by_flag = json.loads(cli("cache", "ls", "--json", "--cache-dir", str(kept)).out)
    assert (by_flag["folder"], by_flag["n_bytes"]) == (str(kept), 5)
    listed = json.loads(cli("cache", "ls", "--json", "--config", str(tmp_path)).out)
    assert (listed["folder"], listed["n_bytes"], len(listed["entries"])) == (str(kept), 5, 1)
    assert "1 models, 5 B" in cli("cache", "ls", "--config", str(tmp_path)).out
    assert cli("cache", "clear", "--config", str(tmp_path)).out == f"{kept}: 5 B freed\n"
    assert list(kept.iterdir()) == []


def write_project(folder: Path, paths: dict[str, str]) -> Path:
    """config/ beside weights/: the files of a settings folder that describes a weights directory."""
    (folder / "config").mkdir()
    (folder / "config" / "model_config.yaml").write_text("architecture: {model_type: llama}\n", encoding="utf-8")
    (folder / "config" / "runtime_config.yaml").write_text("threads: 3\n", encoding="utf-8")
    (folder / "config" / "paths.json").write_text(json.dumps(paths), encoding="utf-8")
    return folder


def test_the_settings_describe_the_weights_that_they_name(
    tmp_path: Path, engine_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_project(tmp_path, {"weights": "weights"}))
    described = {"config_dir": Path("config"), "threads": 3, "progress": None}
    open_llm(ModelOptions())
    assert engine_arguments[-1] == described | {"model": Path("weights")}
    for model in ("weights", str(tmp_path / "weights")):
        open_llm(ModelOptions(model=model))
        assert engine_arguments[-1] == described | {"model": model}


def test_settings_that_name_their_weights_say_nothing_of_another_model_that_a_flag_names(
    tmp_path: Path, engine_arguments: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_project(tmp_path, {"weights": "weights"}))
    open_llm(ModelOptions(model="storyteller"))
    assert engine_arguments == [{"model": "storyteller", "threads": 3, "progress": None}]


@pytest.mark.parametrize("verb", ["generate", "chat", "stream", "batch", "bench"])
def test_an_architecture_that_no_model_reads_is_refused_by_every_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.chdir(write_project(tmp_path, {}))
    prompt = ["Hello"] if verb in ("generate", "stream") else []
    assert main([verb, *prompt]) == 1
    error = capsys.readouterr().err
    assert "config/model_config.yaml: architecture] need null" in error
    assert "or in paths.json" in error


def test_what_a_killed_process_left_in_the_cache_is_shown_and_cleared(cli: Program, tmp_path: Path) -> None:
    (tmp_path / ".writing-x.packed").write_bytes(b"x" * 10_000)
    shown = cli("cache", "ls", "--cache-dir", str(tmp_path)).out
    assert "left by a killed process" in shown
    assert "0 models, 1" in shown
    (entry,) = json.loads(cli("cache", "ls", "--json", "--cache-dir", str(tmp_path)).out)["entries"]
    assert entry["is_leftover"] is True
    assert cli("cache", "clear", "--cache-dir", str(tmp_path)).code == 0
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_the_program_is_imported_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str, *others: Any) -> Any:
        if name == "llm_decoder.cli.main":
            raise KeyboardInterrupt
        return real_import(name, *others)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert program() == 130
