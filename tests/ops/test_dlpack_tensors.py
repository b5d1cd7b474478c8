"""Tensors of other frameworks: reached through DLPack alone, let go of afterwards, answered in kind."""

from __future__ import annotations

import gc
import importlib
from typing import Any

import numpy as np
import pytest
from element_codes import encode
from exported_tensor import CUDA, ExportedTensor, NamespacedTensor, n_living_exports
from paged_batch import PagedBatch

from llm_decoder import ops
from llm_decoder.backends import dlpack_array
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops import machines
from llm_decoder.ops.tensors import current_stream, view_tensor

BATCH = PagedBatch(((2, 20), (1, 300), (9, 9)))
SHAPE = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64}


def exported(kind: type[ExportedTensor], **options: Any) -> list[Any]:
    dtypes = ["bfloat16"] * 3 + ["int32"] * 3
    return [kind(array, dtype, **options) for array, dtype in zip(BATCH.arguments(), dtypes, strict=True)]


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("version", [0, 1])
def test_tensors_in_host_memory_give_what_arrays_give_in_their_own_kind(version: int) -> None:
    want, want_lse = ops.paged_attention(*BATCH.arguments(), **BATCH.dtypes(), return_lse=True)
    out, lse = ops.paged_attention(*exported(NamespacedTensor, version=version), return_lse=True)
    assert isinstance(out, NamespacedTensor)
    assert (out.dtype, lse.dtype) == ("bfloat16", "float32")
    np.testing.assert_array_equal(out.array, want)
    np.testing.assert_array_equal(lse.array, want_lse)


@pytest.mark.usefixtures("any_machine")
def test_pages_of_fp8_and_strided_views_come_through() -> None:
    batch = PagedBatch(((2, 20),), kv_dtype="fp8")
    pool = np.stack([batch.k_cache, batch.v_cache], axis=1)
    k_cache, v_cache = (ExportedTensor(pool[:, i], "fp8") for i in range(2))
    arguments = (NamespacedTensor(batch.q, "bfloat16"), k_cache, v_cache, *batch.arguments()[3:])
    out, lse = ops.paged_attention(*arguments, return_lse=True, k_scale=0.5, v_scale=2.0)
    batch.check(out.array, lse.array, k_scale=0.5, v_scale=2.0)


@pytest.mark.usefixtures("host_machine")
def test_every_tensor_is_let_go_of_after_the_call() -> None:
    gc.collect()
    before = n_living_exports()
    out = ops.paged_attention(*exported(NamespacedTensor))
    gc.collect()
    assert n_living_exports() == before
    del out


@pytest.mark.usefixtures("host_machine")
def test_a_framework_that_cannot_make_tensors_needs_out() -> None:
    tensors = exported(ExportedTensor)
    with pytest.raises(InvalidArgumentError, match=r"results cannot be made of ExportedTensor, .*; need NumPy arrays"):
        ops.paged_attention(*tensors)
    want = ops.paged_attention(*BATCH.arguments(), **BATCH.dtypes())
    out = ExportedTensor(np.empty_like(BATCH.q), "bfloat16")
    assert ops.paged_attention(*tensors, out=out) is out
    np.testing.assert_array_equal(out.array, want)


def test_a_read_only_tensor_is_no_place_for_a_result() -> None:
    out = ExportedTensor(np.empty_like(BATCH.q), "bfloat16", version=1, is_read_only=True)
    with pytest.raises(InvalidArgumentError, match="out must be writeable"):
        ops.paged_attention(*exported(ExportedTensor), out=out)


def test_a_newer_dlpack_than_is_known_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"q: .* DLPack must be of version 1 or before, got 2"):
        ops.paged_attention(ExportedTensor(BATCH.q, "bfloat16", version=2), *BATCH.arguments()[1:])


def test_what_is_no_capsule_of_a_tensor_is_refused() -> None:
    class Taken(ExportedTensor):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            return np.zeros(1).__array_struct__

    with pytest.raises(InvalidArgumentError, match=r"q: .* must be a DLPack tensor that nobody took"):
        ops.paged_attention(Taken(BATCH.q, "bfloat16"), *BATCH.arguments()[1:])


def test_a_tensor_that_its_framework_does_not_give_is_refused_with_its_words() -> None:
    class Kept(ExportedTensor):
        def __dlpack__(self, *, stream: int | None = None) -> object:
            raise BufferError("it requires a gradient")

    with pytest.raises(InvalidArgumentError, match=r"^\[paged_attention\] q: it requires a gradient$"):
        ops.paged_attention(Kept(BATCH.q, "bfloat16"), *BATCH.arguments()[1:])


def test_memory_of_a_device_never_becomes_an_array() -> None:
    capsule = ExportedTensor(BATCH.q, "bfloat16", device=CUDA).__dlpack__()
    with pytest.raises(ValueError, match="must be in host memory, got DLPack device 2"):
        dlpack_array(capsule)


@pytest.mark.usefixtures("fake_device")
class TestOnADevice:
    """Kernels and results there; the host machine plays the device."""

    def want(self) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machines, "_host_memory_kernels", importlib.import_module("llm_decoder._cuda_host"))
            return ops.paged_attention(*BATCH.arguments(), **BATCH.dtypes())

    def test_all_tensors_there(self) -> None:
        out = ops.paged_attention(*exported(NamespacedTensor, device=CUDA))
        assert out.device == CUDA
        np.testing.assert_array_equal(out.array, self.want())

    def test_lengths_and_small_arrays_may_be_in_host_memory(self) -> None:
        tensors = exported(NamespacedTensor, device=CUDA)[:3]
        sinks = np.array([0.5, 1.0, -1.0, 0.0], np.float32)
        options = {"sinks": sinks, "k_scale": np.array([0.5, 0.25], np.float32), "return_lse": True}
        out, lse = ops.paged_attention(*tensors, *BATCH.arguments()[3:], **options)
        BATCH.check(out.array, lse.array, sinks=sinks, k_scale=options["k_scale"])

    def test_a_plan_for_the_device(self) -> None:
        plan = ops.plan_attention(BATCH.seq_lens, BATCH.cu_seqlens_q, device="cuda", **SHAPE)
        assert plan.device == "cuda:0"
        out = ops.paged_attention(*exported(NamespacedTensor, device=CUDA), plan=plan)
        np.testing.assert_array_equal(out.array, self.want())
        there = exported(NamespacedTensor, device=CUDA)
        assert ops.plan_attention(*there[4:], **SHAPE).device == "cuda:0"

    def test_states_merge_there(self) -> None:
        random = np.random.default_rng(0)
        parts = random.normal(size=(2, 3, 4, 8)).astype(np.float32)
        lses = random.normal(size=(2, 3, 4)).astype(np.float32)
        merged = ops.merge_states(
            [NamespacedTensor(part, device=CUDA) for part in parts],
            [NamespacedTensor(part_lse, device=CUDA) for part_lse in lses],
        )
        weights = np.exp(lses) / np.exp(lses).sum(axis=0)
        np.testing.assert_allclose(merged.array, (weights[..., None] * parts).sum(axis=0), rtol=1e-5, atol=1e-6)

    def test_each_tensor_is_asked_to_be_ready_for_the_stream_that_will_use_it(self) -> None:
        tensors = exported(NamespacedTensor, device=CUDA)
        ops.paged_attention(*tensors)
        assert {stream for tensor in tensors for stream in tensor.streams} == {1}  # DLPack's word for the default one

    def test_pages_that_a_host_table_names_are_checked_too(self) -> None:
        table = BATCH.block_table.copy()
        table[1, 3] = BATCH.n_pages
        with pytest.raises(InvalidArgumentError, match=r"block_table\[1, 3\] must be in \[0, "):
            ops.paged_attention(*exported(NamespacedTensor, device=CUDA)[:3], table, *BATCH.arguments()[4:])


def test_the_stream_is_the_one_on_which_the_framework_works() -> None:
    class Framework:
        class cuda:
            @staticmethod
            def current_stream(index: int) -> Any:
                return type("Stream", (), {"cuda_stream": 4096 + index})

    class Value:
        def __array_namespace__(self) -> type[Framework]:
            return Framework

    assert current_stream(Value(), 1) == 4097
    assert current_stream(NamespacedTensor(BATCH.q), 0) == 0
    assert current_stream(BATCH.q, 0) == 0


def test_dtypes_of_ml_dtypes_are_known_by_name() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert view_tensor("here", "q", BATCH.q.view(ml_dtypes.bfloat16)).dtype == "bfloat16"
    fp8 = encode(np.ones(3), "fp8").view(ml_dtypes.float8_e4m3fn)
    tensor = view_tensor("here", "k", fp8)
    assert (tensor.dtype, tensor.array().dtype) == ("fp8", np.uint8)


@pytest.mark.judge
@pytest.mark.usefixtures("any_machine")
def test_torch_tensors_come_and_go_as_they_are() -> None:
    torch = pytest.importorskip("torch")
    want, want_lse = ops.paged_attention(*BATCH.arguments(), **BATCH.dtypes(), return_lse=True)
    arrays = BATCH.arguments()
    halves = [torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) for array in arrays[:3]]
    out, lse = ops.paged_attention(*halves, *(torch.from_numpy(array) for array in arrays[3:]), return_lse=True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    np.testing.assert_array_equal(out.view(torch.int16).numpy().view(np.uint16), want)
    np.testing.assert_array_equal(lse.numpy(), want_lse)
    pages = [half.to(torch.float8_e4m3fn) for half in halves[1:]]
    as_bytes = [page.view(torch.uint8) for page in pages]
    rest = [torch.from_numpy(array) for array in arrays[3:]]
    from_bytes = ops.paged_attention(halves[0], *as_bytes, *rest, kv_dtype="fp8")
    assert torch.isfinite(from_bytes.float()).all()
