"""The five settings files: where they are found, who overrides whom, and every way to write one wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llm_decoder.config import find_config_dir, load_settings
from llm_decoder.config.files import FILE_NAMES, packaged_config_dir, read_table
from llm_decoder.config.schema import RuntimeSettings
from llm_decoder.errors import ConfigError


def runtime(folder: Path, text: str) -> Path:
    (folder / "runtime_config.yaml").write_text(text)
    return folder


def test_the_packaged_files_are_all_there_and_give_nothing() -> None:
    settings = load_settings(packaged_config_dir(), environment={})
    assert settings.runtime == RuntimeSettings()
    assert settings.runtime.engine_arguments() == {}
    assert settings.runtime.sampling_defaults() == {}
    assert settings.paths.model is None
    assert all((packaged_config_dir() / name).exists() for name in FILE_NAMES.values())


def test_every_key_of_the_schema_stands_in_the_packaged_file_with_a_comment() -> None:
    text = (packaged_config_dir() / "runtime_config.yaml").read_text()
    assert set(read_table(packaged_config_dir() / "runtime_config.yaml")) == {
        name for name in RuntimeSettings.__dataclass_fields__
    }
    assert text.count("#") >= 10


def test_values_are_read_with_their_types(tmp_path: Path) -> None:
    runtime(
        tmp_path, "temperature: 0.7\ntop_k: 20\nkv_cache_bytes: 512MiB\nkv_tier_bytes: 0\nthreads: 2\nmin_p: 1e-2\n"
    )
    settings = load_settings(tmp_path, environment={})
    assert settings.runtime.sampling_defaults() == {"temperature": 0.7, "top_k": 20, "min_p": 0.01}
    assert settings.runtime.engine_arguments() == {"kv_cache_bytes": 512 * 2**20, "kv_tier_bytes": 0, "threads": 2}


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    runtime(tmp_path, "temperature: 0.7\ntop_k: 20\n")
    variables = {"LLM_DECODER_TEMPERATURE": "0.2", "LLM_DECODER_MODEL": "/m", "LLM_DECODER_CACHE_DIR": "/c"}
    settings = load_settings(tmp_path, environment=variables)
    assert settings.runtime.temperature == 0.2
    assert settings.runtime.top_k == 20
    assert settings.paths.model == "/m"
    assert settings.paths.cache == "/c"


def test_an_empty_variable_is_not_given(tmp_path: Path) -> None:
    runtime(tmp_path, "temperature: 0.7\n")
    assert load_settings(tmp_path, environment={"LLM_DECODER_TEMPERATURE": ""}).runtime.temperature == 0.7


def test_chat_and_paths_are_read(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"template": "t", "system": "s", "stop": ["a"]}')
    (tmp_path / "paths.json").write_text('{"model": "m", "tokenizer": "t"}')
    settings = load_settings(tmp_path, environment={})
    assert (settings.chat.template, settings.chat.system, settings.chat.stop) == ("t", "s", ("a",))
    assert (settings.paths.model, settings.paths.tokenizer, settings.paths.weights) == ("m", "t", None)


def test_a_named_folder_goes_over_the_local_one_over_the_packaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config_dir() == packaged_config_dir()
    (tmp_path / "config").mkdir()
    assert find_config_dir() == packaged_config_dir(), "a config folder of something else"
    for name in FILE_NAMES.values():
        (tmp_path / "config" / name).write_text((packaged_config_dir() / name).read_text())
    assert find_config_dir().resolve() == tmp_path / "config"
    (tmp_path / "other").mkdir()
    assert find_config_dir(tmp_path / "other") == tmp_path / "other"


def test_the_config_of_a_weights_directory_is_that_model_s_and_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").mkdir()
    for name in FILE_NAMES.values():
        (tmp_path / "config" / name).write_text((packaged_config_dir() / name).read_text())
    (tmp_path / "final_norm.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_config_dir() == packaged_config_dir()
    assert find_config_dir("config") == Path("config")


@pytest.mark.parametrize(("text", "stop"), [("The end", ("The end",)), ('["a", "b"]', ("a", "b")), ("7", ("7",))])
def test_a_list_of_texts_is_one_text_or_a_json_list_in_the_environment(
    tmp_path: Path, text: str, stop: tuple[str, ...]
) -> None:
    assert load_settings(tmp_path, environment={"LLM_DECODER_STOP": text}).chat.stop == stop


def test_a_named_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_settings(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "nearest"), [("temprature: 1", "temperature"), ("top-k: 3", "top_k"), ("max_token: 3", "max_tokens")]
)
def test_an_unknown_key_is_refused_with_file_key_and_the_nearest_spelling(
    tmp_path: Path, text: str, nearest: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(runtime(tmp_path, text), environment={})
    message = str(caught.value)
    assert "runtime_config.yaml" in message
    assert text.partition(":")[0] in message
    assert f"did you mean {nearest!r}" in message


def test_an_unknown_key_like_no_other_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known keys: device"):
        load_settings(runtime(tmp_path, "zebra: 1"), environment={})


def test_unknown_keys_are_refused_in_every_file(tmp_path: Path) -> None:
    for name in FILE_NAMES.values():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text(json.dumps({"zebra": 1}))  # JSON is YAML too
        with pytest.raises(ConfigError, match="zebra"):
            load_settings(folder, environment={})


def test_a_misspelt_variable_is_refused_and_a_stranger_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LLM_DECODER_TEMPERATURE"):
        load_settings(tmp_path, environment={"LLM_DECODER_TEMPRATURE": "1"})
    load_settings(tmp_path, environment={"LLM_DECODER_CPU_ISA": "generic", "LLM_DECODER_SOMETHING_ELSE": "1"})


def test_no_documented_variable_is_taken_for_a_misspelling(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "environment.md").read_text()
    names = set(re.findall(r"LLM_DECODER_[A-Z_]+", text))
    assert len(names) > 30
    load_settings(tmp_path, environment=dict.fromkeys(names, ""))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TEMPERATURE", "warm"),
        ("TEMPERATURE", "nan"),
        ("TOP_K", "1.5"),
        ("THREADS", "0"),
        ("DEVICE", "tpu"),
        ("SEED", "-1"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"LLM_DECODER_{name}"):
        load_settings(tmp_path, environment={f"LLM_DECODER_{name}": text})


BAD_VALUES: list[tuple[str, Any]] = [
    *[("temperature", value) for value in (-1, "warm", [], {}, True, 1e9, ".nan", ".inf")],
    *[("top_p", value) for value in (0, 1.5, -0.1)],
    *[("top_k", value) for value in (-1, 1.5, 2**40, "x")],
    *[("page_size", value) for value in (0, 5, 17, 10**9)],
    *[("kv_cache_bytes", value) for value in (0, -1, "lots", "512XB", "1e400G", 2**80)],
    *[("kv_tier_bytes", value) for value in (-1, "lots", True)],
    *[("device", value) for value in ("tpu", 7, [])],
    *[("seed", value) for value in (-1, 2**64, "x")],
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_a_value_out_of_range_or_type_is_refused_by_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    text = value if isinstance(value, str) and value.startswith(".") else json.dumps(value)
    with pytest.raises(ConfigError, match=rf"runtime_config\.yaml: {key}\]"):
        load_settings(runtime(tmp_path, f"{key}: {text}\n"), environment={})


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

BAD_YAML = {
    "a tag that makes objects": "temperature: !!python/object/apply:os.system ['true']",
    "a tag of numpy": "temperature: !!python/name:os.system",
    "an unknown tag": "temperature: !evil 1",
    "anchors that multiply": LAUGHS,
    "a single alias": "temperature: &x 1\ntop_p: *x",
    "an anchor alone": "temperature: &x 1",
    "a merge": "<<: {temperature: 1}",
    "a key twice": "temperature: 1\ntemperature: 2",
    "a key that is no text": "7: 1",
    "a key that is a list": "? [a]\n: 1",
    "nesting without end": "temperature: " + "[" * 5000 + "]" * 5000,
    "nesting without end, in blocks": "temperature: " + "{a: " * 5000 + "1" + "}" * 5000,
    "a list": "- 1",
    "a text": "hello",
    "two documents": "temperature: 1\n---\ntop_p: 1",
    "cut off": "temperature: {",
    "tabs": "temperature:\n\t- 1",
    "a control character": "temperature: \x01",
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_yaml_that_is_more_or_less_than_a_plain_table_is_refused_by_its_file(tmp_path: Path, case: str) -> None:
    with pytest.raises(ConfigError, match=r"runtime_config\.yaml"):
        load_settings(runtime(tmp_path, BAD_YAML[case]), environment={})


BAD_JSON = {
    "a key twice": b'{"model": "a", "model": "b"}',
    "cut off": b'{"model": ',
    "a list": b"[]",
    "no UTF-8": b'{"model": "\xff"}',
    "nesting without end": b'{"model": ' + b"[" * 100_000,
    "a number for a path": b'{"model": 7}',
    "a NUL in a path": b'{"model": "a\\u0000b"}',
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_no_plain_table_is_refused_by_its_file(tmp_path: Path, case: str) -> None:
    (tmp_path / "paths.json").write_bytes(BAD_JSON[case])
    with pytest.raises(ConfigError, match=r"paths\.json"):
        load_settings(tmp_path, environment={})


def test_a_file_of_megabytes_is_refused_unread(tmp_path: Path) -> None:
    runtime(tmp_path, "#" * (9 * 2**20))
    with pytest.raises(ConfigError, match="at most"):
        load_settings(tmp_path, environment={})


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(runtime(tmp_path, "# nothing\n"), environment={}).runtime == RuntimeSettings()
