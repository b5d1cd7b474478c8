"""What computes behind llm_decoder.ops, each as one function from a Batch to codes and log-sum-exp."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from attention_cases import Batch
from device_rig import on_the_device
from element_codes import poison

from llm_decoder import _core, ops
from llm_decoder.ops import machines

Array = npt.NDArray[Any]
Result = tuple[Array, npt.NDArray[np.float32] | None]

EVERY_DTYPE = tuple(
    (q, kv) for q in ("float32", "bfloat16", "float16") for kv in ("float32", "bfloat16", "float16", "fp8", "int8")
)
GPU_DTYPES = tuple((q, kv) for q in ("bfloat16", "float16") for kv in (q, "fp8", "int8"))


@dataclasses.dataclass(frozen=True)
class Implementation:
    name: str
    machine: Callable[[], contextlib.AbstractContextManager[Any]]  # inside it arrays go there
    dtypes: tuple[tuple[str, str], ...]  # of queries and pages
    p_dtype: str = ""  # that probabilities are rounded to before they meet V; "" for that of the queries
    scales: tuple[str, ...] = ("none", "all", "head", "slot")
    int8_is_vnni: bool = False  # int8 pages meet queries in int8, and probabilities in 8 bits a page
    needs_device: bool = False
    is_gpu_on_host: bool = False  # GPU kernels on the host machine

    def attend(self, batch: Batch) -> Result:
        """Through the door. The result begins as poison."""
        out = np.full(batch.q.shape, poison(batch.q_dtype), batch.q.dtype)
        with self.machine():
            result = ops.paged_attention(
                **batch.arguments(),
                out=out,
                return_lse=batch.return_lse,
                q_dtype=batch.q_dtype,
                kv_dtype=batch.kv_dtype,
            )
        return result if batch.return_lse else (result, None)


def the_cpu(isa: str) -> contextlib.AbstractContextManager[Any]:
    return mock.patch.dict(os.environ, LLM_DECODER_CPU_ISA=isa)


def the_host_machine() -> contextlib.AbstractContextManager[Any]:
    """GPU kernels, compiled for the host."""
    return mock.patch.object(machines, "_host_memory_kernels", importlib.import_module("llm_decoder._cuda_host"))


@contextlib.contextmanager
def the_host_machine_with_warpgroups() -> Iterator[None]:
    """Many rows go to the kernel for Hopper."""
    with the_host_machine(), mock.patch.dict(os.environ, LLM_DECODER_ATTENTION_PATH="wgmma"):
        yield


IMPLEMENTATIONS = [
    *(
        Implementation(f"cpu-{isa}", functools.partial(the_cpu, isa), EVERY_DTYPE, "float32", int8_is_vnni=True)
        for isa in _core.isas()
    ),
    Implementation("cuda_host", the_host_machine, GPU_DTYPES, is_gpu_on_host=True),
    Implementation("cuda", on_the_device, GPU_DTYPES, needs_device=True),
    Implementation(
        "cuda_host_wgmma",
        the_host_machine_with_warpgroups,
        (("bfloat16", "bfloat16"), ("float16", "float16")),
        scales=("none", "all", "head"),
        is_gpu_on_host=True,
    ),
]


def attend_on_cpu(batch: Batch, isa: str = "auto", n_threads: int = 2) -> Result:
    """By the core alone, on so many threads. Results begin as poison."""
    out = np.full(batch.q.shape, poison(batch.q_dtype), batch.q.dtype)
    lse = np.full(batch.q.shape[:2], np.nan, np.float32) if batch.return_lse else None
    _core.paged_attention_op(
        batch.q,
        batch.q_dtype,
        batch.k_cache,
        batch.v_cache,
        batch.kv_dtype,
        batch.block_table,
        batch.seq_lens,
        batch.cu_seqlens_q,
        batch.scale,
        batch.causal,
        *batch.window,
        batch.softcap,
        batch.alibi_slopes,
        batch.sinks,
        batch.k_scale,
        batch.v_scale,
        out,
        lse,
        n_threads,
        isa,
    )
    return out, lse
