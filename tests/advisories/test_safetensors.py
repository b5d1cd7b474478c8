"""Safetensors files whose bytes lie. Each is refused with its path before a byte of weights is believed."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_factory import encode, write_raw_safetensors, write_safetensors

from llm_decoder.errors import LLMDecoderError, MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile, to_float32

A = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
B = {"dtype": "F32", "shape": [1], "data_offsets": [16, 20]}


def write(path: Path, header: Any, body: bytes = b"\0" * 20, **options: Any) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_raw_safetensors(path / "model.safetensors", text, body, **options)
    return path / "model.safetensors"


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path, {"a": A, "b": B}, np.arange(5, dtype="<f4").tobytes()))
    np.testing.assert_array_equal(file.rows("a"), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(file.rows("a", 1, 2), [[2, 3]])


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="runs past the file"):
        SafetensorsFile(write(tmp_path, {"a": A}, header_length=10_000))


def test_a_header_of_over_100_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, MAX_HEADER_BYTES + 100)  # sparse: long enough for what it claims
    with pytest.raises(MalformedFileError, match="at most 100,000,000"):
        SafetensorsFile(path)


def test_a_header_length_of_2_to_the_64_minus_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(MalformedFileError, match="header"):
        SafetensorsFile(path)


@pytest.mark.parametrize("n_bytes", [0, 1, 4, 7])
def test_a_file_shorter_than_its_length_field_is_refused(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10" * n_bytes)
    with pytest.raises(MalformedFileError, match="at least 8 bytes"):
        SafetensorsFile(path)


def entry(**changes: Any) -> dict[str, Any]:
    return {**A, **changes}


BAD_HEADERS: dict[str, tuple[Any, str]] = {
    "offsets reversed": ({"a": entry(data_offsets=[16, 0]), "b": B}, "begin <= end"),
    "negative offsets": ({"a": entry(data_offsets=[-16, 0]), "b": B}, "data_offsets"),
    "offsets that are fractions": ({"a": entry(data_offsets=[0.0, 16.0]), "b": B}, "data_offsets"),
    "three offsets": ({"a": entry(data_offsets=[0, 8, 16]), "b": B}, "data_offsets"),
    "tensors that overlap": ({"a": A, "b": {**B, "data_offsets": [12, 16]}}, "overlap"),
    "two tensors on the same bytes": ({"a": A, "c": A, "b": B}, "overlap"),
    "a hole between tensors": ({"a": entry(shape=[3], data_offsets=[0, 12]), "b": B}, "hole"),
    "a hole before the first tensor": ({"b": B}, "hole"),
    "a tensor past the end of the file": ({"a": entry(shape=[5000], data_offsets=[0, 20000])}, "ends at byte"),
    "bytes after the last tensor": ({"a": A}, "nothing names"),
    "a shape that is not its bytes": ({"a": entry(shape=[3, 3]), "b": B}, "36 bytes"),
    "a shape whose product wraps 64 bits": ({"a": entry(shape=[2**62, 4, 2**62]), "b": B}, "bytes"),
    "a size that is no 64-bit number": ({"a": entry(shape=[2**70]), "b": B}, "shape"),
    "a negative size": ({"a": entry(shape=[-2, -2]), "b": B}, "shape"),
    "a size that is a truth value": ({"a": entry(shape=[True, 4]), "b": B}, "shape"),
    "too many dimensions": ({"a": entry(shape=[1] * 40 + [2, 2]), "b": B}, "shape"),
    "an unknown dtype": ({"a": entry(dtype="F33"), "b": B}, "dtype"),
    "a dtype that is no text": ({"a": entry(dtype=32), "b": B}, "dtype"),
    "a field too many": ({"a": entry(evil=1), "b": B}, "data_offsets"),
    "a field too few": ({"a": {"dtype": "F32", "shape": [2, 2]}, "b": B}, "data_offsets"),
    "a tensor that is no object": ({"a": 7, "b": B}, "data_offsets"),
    "a name with a NUL": ({"a\0b": A, "b": B}, "printable"),
    "an empty name": ({"": A, "b": B}, "printable"),
    "metadata that is no table of texts": ({"__metadata__": {"x": 1}, "a": A, "b": B}, "__metadata__"),
    "the same name twice": (
        b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[1],"data_offsets":[16,20]}}',
        "twice",
    ),
    "JSON nested without end": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
    "JSON cut off": (b'{"a": {"dtype"', "JSON"),
    "bytes that are no UTF-8": (b'{"\xff": 1}', "JSON"),
    "a list": (b"[1, 2]", "begins with"),
    "spaces before the header": (b' {"a": 1}', "begins with"),
    "a number beyond Python's limit of digits": (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_header_that_contradicts_itself_or_the_file_is_refused(tmp_path: Path, case: str) -> None:
    header, reason = BAD_HEADERS[case]
    path = write(tmp_path, header)
    with pytest.raises(MalformedFileError, match=reason) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def test_a_zip_appended_to_a_sound_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": A, "b": B})
    path.write_bytes(path.read_bytes() + b"PK\x03\x04 a polyglot's tail")
    with pytest.raises(MalformedFileError, match="nothing names"):
        SafetensorsFile(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": A, "b": B})
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(MalformedFileError, match="download it again"):
        SafetensorsFile(path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "model.safetensors"
    folder.mkdir()
    with pytest.raises(MalformedFileError):
        SafetensorsFile(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"absent\.safetensors"):
        SafetensorsFile(tmp_path / "absent.safetensors")


def test_integers_are_refused_as_weights(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"a": ("I64", (2,), b"\0" * 16)})
    with pytest.raises(UnsupportedModelError, match="I64"):
        SafetensorsFile(tmp_path / "m.safetensors").rows("a")


def test_what_the_reference_reader_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    def refuse(*_: object, **__: object) -> None:
        raise safetensors.SafetensorError("no")

    path = write(tmp_path, {"a": A, "b": B})
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    with pytest.raises(MalformedFileError, match="safetensors library"):
        SafetensorsFile(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bytes_raise_anything_but_our_errors(tmp_path: Path, data: st.DataObject) -> None:
    path = write(tmp_path, {"__metadata__": {"format": "pt"}, "a": A, "b": B}, np.arange(5, dtype="<f4").tobytes())
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        file = SafetensorsFile(path)
        for name in file.entries:
            file.rows(name)
    except LLMDecoderError:
        pass


def test_half_precision_becomes_float32_exactly() -> None:
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(to_float32(every_half), every_half.astype(np.float32))
    values = np.array([0.0, -0.0, 1.0, -1.5, 3.1415927, 1e-40, 3e38, np.inf, np.nan], np.float32)
    kept = to_float32(np.frombuffer(encode(values, "BF16"), "<u2"))
    np.testing.assert_allclose(kept[:7], values[:7], rtol=2**-8, atol=1e-40)
    assert np.isinf(kept[7])
    assert np.isnan(kept[8])
