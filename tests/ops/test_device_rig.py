"""The rig that puts a GPU in the place of the host machine, tried with the host machine as the GPU: its memory is apart
from that of the arrays, and new memory is NaN."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_rig import DeviceRig, extent, rigged
from element_codes import decode
from exported_tensor import ExportedTensor
from paged_batch import PagedBatch
from test_fused_moe_op import check, problem

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops.tensors import view_tensor


def machine() -> Any:
    return importlib.import_module("llm_decoder._cuda_host")


@pytest.fixture
def rig() -> Iterator[DeviceRig]:
    with rigged(machine()) as found:
        yield found


def test_arrays_of_a_call_are_mirrored_and_results_come_back(rig: DeviceRig) -> None:
    batch = PagedBatch()
    address = view_tensor("here", "q", batch.q).address
    assert address != batch.q.ctypes.data
    assert address % 256 == batch.q.ctypes.data % 256
    batch.check(*ops.paged_attention(*batch.arguments(), **batch.dtypes(), return_lse=True))


def test_views_into_one_array_come_back_without_harming_each_other(rig: DeviceRig) -> None:
    key = np.arange(2 * 1 * 8, dtype=np.float32).reshape(2, 1, 8)
    pool = np.full((2, 2, 16, 1, 8), 9, np.float16)
    ops.reshape_and_cache(key, -key, pool[:, 0], pool[:, 1], np.array([3, 17]))
    np.testing.assert_array_equal(pool[[0, 1], 0, [3, 1], 0], key[:, 0])
    np.testing.assert_array_equal(pool[[0, 1], 1, [3, 1], 0], -key[:, 0])
    assert (pool == 9).sum() == pool.size - 4 * 8 + (np.abs(key) == 9).sum()


def test_a_result_in_the_place_of_its_rows_comes_back(rig: DeviceRig) -> None:
    p = problem()
    hidden = p["hidden"].copy()
    ops.fused_moe(**p | {"hidden": hidden}, out=hidden)
    check(hidden, p)


def test_what_the_host_writes_between_calls_stays(rig: DeviceRig) -> None:
    part, lse = np.ones((1, 1, 8), np.float32), np.zeros((1, 1), np.float32)
    first = ops.merge_states([part], [lse])
    first[...] = 5
    part[...] = 2
    assert (ops.merge_states([part], [lse]) == 2).all()
    assert (first == 5).all()


def test_a_call_that_was_refused_leaves_nothing_behind(rig: DeviceRig) -> None:
    part, lse, out = np.ones((1, 1, 8), np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1, 8), np.float32)
    with pytest.raises(InvalidArgumentError, match="out must"):
        ops.merge_states([part], [lse], out=out.astype(np.float16))
    part[...] = 3
    out[...] = 7
    assert (ops.merge_states([part], [lse]) == 3).all()
    assert (out == 7).all()
    assert (part == 3).all()


def test_what_a_kernel_wrote_is_not_taken_for_what_the_host_has(rig: DeviceRig) -> None:
    key = np.ones((1, 1, 8), np.float32)
    cache = np.zeros((1, 16, 1, 8), np.float16)
    ops.reshape_and_cache(key, key, cache, cache.copy(), np.array([3]))
    cache[...] = 0
    ops.reshape_and_cache(key, key, cache, cache.copy(), np.array([5]))
    assert cache[0, 5].all()
    assert not np.delete(cache, 5, axis=1).any()


def test_files_that_are_mapped_to_be_read_are_not_written(rig: DeviceRig, tmp_path: Path) -> None:
    np.full(8, 2, np.float32).tofile(tmp_path / "part")
    part = np.memmap(tmp_path / "part", np.float32, "r", shape=(1, 1, 8))
    assert (ops.merge_states([np.asarray(part)], [np.zeros((1, 1), np.float32)]) == 2).all()


def test_read_only_arrays_and_tensors_of_other_frameworks_are_mirrored_too(rig: DeviceRig) -> None:
    batch = PagedBatch(((2, 20),))
    for array in batch.arguments():
        array.flags.writeable = False
    want, _ = batch.reference()
    tensors = [ExportedTensor(array, "bfloat16") for array in batch.arguments()[:3]]
    out = np.zeros_like(batch.q)
    ops.paged_attention(*tensors, *batch.arguments()[3:], out=ExportedTensor(out, "bfloat16"))
    np.testing.assert_allclose(decode(out, "bfloat16"), want, atol=0.05)


def test_a_strided_tensor_spans_its_first_to_its_last_byte() -> None:
    array = np.zeros((4, 6), np.int16)
    assert extent(view_tensor("here", "x", array[1:3, 2:4])) == (array[1:, 2:].ctypes.data, 12 + 4)
    assert extent(view_tensor("here", "x", array[::-1])) == (array.ctypes.data, 48)


def test_outside_of_the_rig_nothing_is_mirrored() -> None:
    with rigged(machine()):
        pass
    gc.collect()
    array = np.zeros(3, np.float32)
    assert view_tensor("here", "x", array).address == array.ctypes.data
