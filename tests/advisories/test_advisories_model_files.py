"""Files of models that lie: about their bytes, their numbers, their tokens, or about being data at all. safetensors and
the weights directory have pages of their own (test_safetensors.py, loading/test_weights_directory.py)."""

from __future__ import annotations

import builtins
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from models_factory import hf_config, make_checkpoint, make_tokenizer, write_json

from llm_decoder import LLM, SamplingParams
from llm_decoder.errors import InvalidRequestError, MalformedFileError, ModelLoadError, UnsupportedModelError
from llm_decoder.loading import find_model, load_model
from llm_decoder.models import parse_config
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint
from llm_decoder.tokenizer import load_tokenizer


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", 7, "x\0.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    folder = make_checkpoint(tmp_path / "m", "llama", n_shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(MalformedFileError, match="weight_map"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_checkpoints_are_refused_unread_with_how_to_convert(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "config.json", hf_config("llama"))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    with pytest.raises(UnsupportedModelError, match="save_pretrained"):
        SafetensorsCheckpoint(tmp_path)
    with pytest.raises(UnsupportedModelError, match="pickle"):
        find_model(tmp_path / name)


def test_gguf_files_are_refused_clearly(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedModelError, match="GGUF"):
        load_model(str(path))


def test_auto_map_and_trust_flags_are_never_followed_for_a_known_family(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", lambda name, *_: imported.append(name))
    code = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    config = hf_config(
        "llama", auto_map=code, trust_remote_code=True, _attn_implementation_internal="evil/kernel", _name_or_path="x"
    )
    assert parse_config(config) == parse_config(hf_config("llama"))
    assert imported == []


def test_auto_map_of_an_unknown_family_is_refused_and_said_never_to_run() -> None:
    with pytest.raises(UnsupportedModelError, match="never run"):
        parse_config({"model_type": "evil", "auto_map": {"AutoModel": "modeling_evil.Evil"}})


def change_model(content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**content, "model": {**content["model"], **fields}}


BROKEN: dict[str, Any] = {
    "cut off": lambda content: json.dumps(content)[:500],
    "an empty file": lambda content: "",
    "an empty object": lambda content: "{}",
    "a merge of tokens that are not in the vocabulary": lambda content: change_model(content, merges=[["a", "zz"]]),
    "an id that is no number": lambda content: change_model(content, vocab={"a": "1"}),
    "a negative id": lambda content: change_model(content, vocab={"a": -1}),
    "an id of 2^40": lambda content: change_model(content, vocab={"a": 2**40}),
    "an unknown kind of model": lambda content: change_model(content, type="Evil"),
    "JSON nested without end": lambda content: '{"model":' * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tokenizer_file_is_refused_by_its_path(tmp_path: Path, case: str) -> None:
    make_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    broken = BROKEN[case](content)
    (tmp_path / "tokenizer.json").write_text(broken if isinstance(broken, str) else json.dumps(broken))
    with pytest.raises(MalformedFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_byte_token_out_of_range_stays_text(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    for token in ("<0x-1>", "<0xZZ>", "<0x1FF>"):
        content["added_tokens"].append(
            {**content["added_tokens"][0], "id": len(content["model"]["vocab"]), "content": token}
        )
        content["model"]["vocab"][token] = len(content["model"]["vocab"])
    write_json(tmp_path / "tokenizer.json", content)
    tokenizer = load_tokenizer(tmp_path)
    id_ = tokenizer.token_id("<0x-1>")
    assert id_ is not None
    assert tokenizer.token_bytes(id_) == b"<0x-1>"


# -- GGUF: not read by this build, so nothing in such a file can be believed


def gguf(version: int, n_tensors: int, n_kv: int, *rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_kv) + b"".join(rest)


def text(value: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if claimed is None else claimed) + value


GGUFS = {
    "four bytes": b"GGUF",
    "an empty file": b"",
    "another magic": b"GGML" + b"\0" * 60,
    "a version of the future": gguf(999, 0, 0),
    "2^64-1 keys": gguf(3, 0, 2**64 - 1),
    "2^64-1 tensors": gguf(3, 2**64 - 1, 0),
    "a key longer than the file": gguf(3, 0, 1, text(b"a", 2**63)),
    "an alignment of 0": gguf(3, 0, 1, text(b"general.alignment"), struct.pack("<II", 4, 0)),
    "an array of an unknown type": gguf(3, 0, 1, text(b"a"), struct.pack("<IIQ", 9, 99, 2**62)),
    "dims whose product wraps": gguf(3, 1, 0, text(b"t"), struct.pack("<IQQQQIQ", 4, 2**32, 2**32, 2, 2, 0, 0)),
    "an offset past the end": gguf(3, 1, 0, text(b"t"), struct.pack("<IQIQ", 1, 32, 0, 2**63)),
    "a template that reaches for code": gguf(
        3, 0, 1, text(b"tokenizer.chat_template"), struct.pack("<I", 8), text(b"{{ cycler.__init__.__globals__ }}")
    ),
}


@pytest.mark.parametrize("case", GGUFS)
def test_no_byte_of_a_gguf_file_is_read(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUFS[case])
    opened: list[str] = []
    open_file = builtins.open

    def watch(file: Any, *more: Any, **named: Any) -> Any:
        opened.append(str(file))
        return open_file(file, *more, **named)

    monkeypatch.setattr(builtins, "open", watch)
    for place in (path, tmp_path):
        with pytest.raises(ModelLoadError) as caught:
            load_model(place)
        assert "GGUF" in str(caught.value) or "config.json" in str(caught.value)
    assert not [name for name in opened if name.endswith(".gguf")]


# -- pickle by other names


class Opens:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.open, (str(self._mark), "w"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "weights.npy", "model.ckpt"])
@pytest.mark.parametrize("is_zip", [False, True])
def test_a_pickle_under_another_name_is_never_loaded(tmp_path: Path, name: str, is_zip: bool) -> None:
    mark = tmp_path / "loaded"
    folder = make_checkpoint(tmp_path / "m", "llama")
    (folder / name).unlink(missing_ok=True)
    if is_zip:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Opens(mark)))
    else:
        (folder / name).write_bytes(pickle.dumps(Opens(mark)))
    if (folder / name).suffix in (".json", ".safetensors"):
        with pytest.raises(ModelLoadError):
            load_model(folder)
    else:
        load_model(folder)  # a file that nobody asks for
    assert not mark.exists()


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    folder = make_checkpoint(tmp_path / "m", "llama")
    for name in ("modeling_llama.py", "tokenization_evil.py", "configuration_llama.py", "__init__.py", "setup.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_llama.C", "AutoModelForCausalLM": "modeling_llama.M"}
    write_json(folder / "config.json", config | {"auto_map": code, "trust_remote_code": True})
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}, "tokenizer_class": "tokenization_evil.T"}
    write_json(folder / "tokenizer_config.json", settings)
    assert load_model(folder).config.vocab_size
    assert not mark.exists()


# -- the tokenizer


@pytest.mark.parametrize(
    "added",
    [
        [{"id": 10**12, "content": "<x>"}],
        [{"id": -1, "content": "<x>"}],
        [{"id": 1.5, "content": "<x>"}],
        [{"id": "1", "content": "<x>"}],
        [{"content": "<x>"}],
        ["<x>"],
        {"id": 1},
    ],
    ids=repr,
)
def test_added_tokens_that_are_none_are_refused(tmp_path: Path, added: Any) -> None:
    make_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", content | {"added_tokens": added})
    with pytest.raises(MalformedFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_tokens_beyond_the_model_reach_no_row_of_it(tmp_path: Path) -> None:
    """The tokenizer has more tokens than the model has rows."""
    folder = make_checkpoint(tmp_path, "llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    more = [{**content["added_tokens"][0], "id": 400 + i, "content": f"<far{i}>"} for i in range(20)]
    write_json(folder / "tokenizer.json", content | {"added_tokens": content["added_tokens"] + more})
    with LLM(str(folder), threads=1) as llm:
        id_ = llm.tokenizer.token_id("<far19>")
        assert id_ is not None
        assert id_ >= llm.vocab_size
        for prompt in ([1, id_], [id_]):
            with pytest.raises(InvalidRequestError, match="token ids"):
                llm.generate([prompt])
        assert llm.generate([[1, 2]], SamplingParams(max_tokens=1))[0].outputs[0].token_ids
