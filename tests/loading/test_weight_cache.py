"""The cache of packed weights: hit, miss, damage, neighbours, and disks that say no."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_factory import make_checkpoint, write_json

from llm_decoder import quantize, weight_cache
from llm_decoder.errors import ConfigError, ModelLoadError
from llm_decoder.loading import LoadedModel, load_model
from llm_decoder.packed_tensor import DATA_ALIGN
from llm_decoder.weight_cache import WeightCacheWarning, clear, list_entries, verify


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "llama", dtype="BF16")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_DECODER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same_weights(one: LoadedModel, other: LoadedModel) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        np.array_equal(one.weights[name].data, other.weights[name].data)
        and (one.weights[name].scales is None or np.array_equal(one.weights[name].scales, other.weights[name].scales))
        for name in one.weights
    )


def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(quantize, "_pack_block", fail)


def test_the_second_load_maps_what_the_first_one_packed(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_model(model)
    forbid_packing(monkeypatch)
    second = load_model(model)
    assert second.is_mapped
    assert same_weights(first, second)
    assert all(not weight.data.flags.writeable for weight in second.weights.values())
    assert all(weight.data.ctypes.data % DATA_ALIGN == 0 for weight in second.weights.values())


def test_mapped_and_packed_weights_are_the_same(model: Path, cache: Path) -> None:
    assert same_weights(load_model(model), load_model(model, use_cache=False))


def test_int4_weights_are_an_entry_of_their_own(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(model, quantization="int8")
    first = load_model(model, quantization="int4")
    assert sorted(entry.layout for entry in list_entries()) == ["w4", "w8"]
    forbid_packing(monkeypatch)
    second = load_model(model, quantization="int4")
    assert second.is_mapped
    assert same_weights(first, second)
    assert {name for name, weight in second.weights.items() if weight.layout == "w8"} == {"embedding", "lm_head"}


def test_a_rewritten_checkpoint_is_packed_again(model: Path, cache: Path) -> None:
    first = load_model(model)
    make_checkpoint(model, "llama", dtype="BF16", seed=1)
    second = load_model(model)
    assert not same_weights(first, second)
    assert same_weights(second, load_model(model, use_cache=False))


def test_a_changed_config_is_packed_again(model: Path, cache: Path) -> None:
    load_model(model)
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"rope_theta": 20000.0})
    load_model(model)
    assert len(list_entries()) == 2


def test_bfloat16_weights_are_cached_and_mapped(model: Path, cache: Path) -> None:
    first = load_model(model, dtype="bfloat16")
    assert first.is_mapped
    assert [entry.layout for entry in list_entries()] == ["bf16"]
    assert same_weights(first, load_model(model, dtype="bfloat16"))
    assert same_weights(first, load_model(model, dtype="bfloat16", use_cache=False))


def test_the_float_reference_is_not_cached(model: Path, cache: Path) -> None:
    assert not load_model(model, dtype="float32").is_mapped
    assert list_entries() == []


def damage(path: Path, how: str) -> None:
    raw = path.read_bytes()
    header_at = weight_cache._PROLOGUE.size
    path.unlink()  # a mapped file must not shrink under its readers
    path.write_bytes(
        {
            "emptied": b"",
            "cut off": raw[: len(raw) // 2],
            "longer": raw + b"\0" * 64,
            "another magic": b"X" + raw[1:],
            "another version": raw[:8] + b"\x63" + raw[9:],
            "a broken header": raw[:header_at] + b"!" + raw[header_at + 1 :],
            "a huge header length": raw[:16] + b"\xff" * 8 + raw[24:],
        }[how]
    )


@pytest.mark.parametrize(
    "how",
    ["emptied", "cut off", "longer", "another magic", "another version", "a broken header", "a huge header length"],
)
def test_a_damaged_entry_is_seen_and_packed_again(model: Path, cache: Path, how: str) -> None:
    first = load_model(model)
    damage(list_entries()[0].path, how)
    with pytest.warns(WeightCacheWarning, match="packing again"):
        second = load_model(model)
    assert same_weights(first, second)
    assert verify(list_entries()[0].path)


def test_a_flipped_byte_in_the_data_is_found_by_verify(model: Path, cache: Path) -> None:
    load_model(model)
    path = list_entries()[0].path
    assert verify(path)
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(bytes(raw))
    assert not verify(path)


def test_the_folder_is_private_even_when_it_was_not(model: Path, cache: Path) -> None:
    cache.mkdir(mode=0o755)
    load_model(model)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert list_entries()[0].path.stat().st_mode & 0o077 == 0


def test_the_longest_unused_entries_leave_when_the_bound_is_reached(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [make_checkpoint(tmp_path / f"m{seed}", "llama", seed=seed) for seed in range(3)]
    for index, model in enumerate(models[:2]):
        load_model(model)
        os.utime(list_entries()[0].path, (time.time() - 1000 + index, time.time() - 1000 + index))
    load_model(models[0])  # used again: now the second is the longest unused
    size = list_entries()[0].n_bytes
    monkeypatch.setenv("LLM_DECODER_CACHE_MAX_BYTES", str(2 * size + 100))
    load_model(models[2])
    assert {entry.model for entry in list_entries()} == {str(models[0]), str(models[2])}


def test_a_model_larger_than_the_bound_runs_from_memory(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DECODER_CACHE_MAX_BYTES", "1000")
    with pytest.warns(WeightCacheWarning, match="bounded to 1,000"):
        loaded = load_model(model)
    assert not loaded.is_mapped
    assert list_entries() == []


@pytest.mark.parametrize("value", ["many", "-1", "1e9", "9" * 40])
def test_a_bound_that_is_no_number_is_refused(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("LLM_DECODER_CACHE_MAX_BYTES", value)
    with pytest.raises(ConfigError, match="LLM_DECODER_CACHE_MAX_BYTES"):
        load_model(model)


def test_a_named_folder_that_cannot_be_used_is_an_error_with_place_and_remedy(tmp_path: Path, model: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ModelLoadError, match=r"need a folder that can be written.*name another folder"):
        load_model(model, cache_dir=blocked / "cache")


def test_a_named_folder_without_write_permission_is_an_error(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as any user but root would see it
    with pytest.raises(ModelLoadError, match="can be written"):
        load_model(model, cache_dir=tmp_path / "cache")


def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ModelLoadError, match="of your own"):
        load_model(model, cache_dir=tmp_path / "cache")


def test_a_default_folder_that_cannot_be_used_is_a_warning_and_the_model_runs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.delenv("LLM_DECODER_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(WeightCacheWarning, match="into memory"):
        loaded = load_model(model)
    assert not loaded.is_mapped
    assert same_weights(loaded, load_model(model, use_cache=False))


def test_a_full_disk_is_seen_before_writing_and_the_model_runs(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.warns(WeightCacheWarning, match="100 free"):
        assert not load_model(model).is_mapped


def test_a_disk_that_fills_while_writing_leaves_nothing_behind(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_calls = os.pwrite, 0

    def fill_up(*arguments: Any) -> int:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.warns(WeightCacheWarning, match="No space left"):
        loaded = load_model(model)
    assert not loaded.is_mapped
    assert list(cache.iterdir()) == []


def test_an_interrupt_while_writing_leaves_nothing_behind(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_model(model, progress=interrupt)
    assert list(cache.iterdir()) == []


def _load_in_process(model: str, cache: str) -> bool:
    os.environ["LLM_DECODER_CACHE_DIR"] = cache
    warnings.simplefilter("error")
    return load_model(model).is_mapped


def test_writers_at_the_same_time_all_get_the_whole_file(model: Path, cache: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert all(pool.starmap(_load_in_process, [(str(model), str(cache))] * 3))
    assert len(list_entries()) == 1
    assert len(list(cache.iterdir())) == 1
    assert verify(list_entries()[0].path)


def test_clear_frees_everything_and_a_mapped_model_lives_on(model: Path, cache: Path) -> None:
    loaded = load_model(model)
    (cache / "someone_elses.txt").write_text("kept")
    freed = clear()
    assert freed > sum(weight.data.nbytes for weight in loaded.weights.values())
    assert list_entries() == []
    assert (cache / "someone_elses.txt").exists()
    assert sum(int(weight.data.view(np.uint8).sum()) for weight in loaded.weights.values()) > 0


@pytest.fixture
def leftover(cache: Path) -> Path:
    """What a writer leaves that is killed after 10,000 bytes of an entry of a megabyte."""
    cache.mkdir(mode=0o700)
    path = cache / ".writing-dead.packed"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 10**6)
    return path


def test_what_a_killed_writer_left_is_listed_with_the_room_that_it_takes(leftover: Path) -> None:
    (entry,) = list_entries()
    assert (entry.path, entry.is_leftover) == (leftover, True)
    assert 10_000 <= entry.n_bytes < 10**6


def test_what_a_killed_writer_left_is_cleared(leftover: Path) -> None:
    assert clear() >= 10_000
    assert not leftover.exists()


def test_what_a_killed_writer_left_goes_before_anything_is_written(model: Path, leftover: Path) -> None:
    load_model(model)
    assert not leftover.exists()
    assert len(list_entries()) == 1


def test_what_is_being_written_is_neither_listed_nor_cleared(model: Path, leftover: Path) -> None:
    with leftover.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert list_entries() == []
        assert clear() == 0
        load_model(model)
        assert leftover.exists()


def test_a_writer_holds_its_lock_until_the_entry_is_there(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[int] = []
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        during.append(clear())  # as another process at the worst moment
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert load_model(model, progress=lambda done, total, what: during.append(clear())).is_mapped
    assert len(during) > 1
    assert not any(during)


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_made_again(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = fcntl.flock, []

    def flock(file: Any, operation: int) -> None:
        if not taken:
            taken.extend(cache.glob(".writing-*"))
            taken[0].unlink()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert load_model(model).is_mapped
    assert len(taken) == 1


def test_a_strange_file_among_the_entries_shows_with_a_question_mark(cache: Path) -> None:
    cache.mkdir()
    (cache / "x.packed").write_bytes(b"garbage")
    assert [entry.model for entry in list_entries()] == ["?"]


def test_listing_a_folder_that_is_not_there_is_empty(cache: Path) -> None:
    assert list_entries() == []
    assert clear() == 0


def test_a_folder_that_others_use_is_refused_and_keeps_its_mode(model: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "notes.txt").write_text("x")
    with pytest.raises(ModelLoadError, match="for packed weights alone"):
        load_model(model, cache_dir=shared)
    assert shared.stat().st_mode & 0o777 == 0o755


def test_a_name_that_is_no_path_is_a_clear_error(model: Path) -> None:
    with pytest.raises(ModelLoadError, match="embedded null"):
        load_model(model, cache_dir="a\0b")
