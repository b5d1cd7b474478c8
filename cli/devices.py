"""llm-decoder devices: what this machine can compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, plain, size
from llm_decoder.cli._what_fits import CONTEXT, what_fits

if TYPE_CHECKING:
    from llm_decoder.backends import DeviceInfo


def devices(*, as_json: JsonFlag = False) -> None:
    """Show what this machine computes on.

    The CPU with its kernels, threads and free memory; NVIDIA GPUs with driver and memory, or why there is none to use;
    and how large a model each has room for.
    """
    from llm_decoder.backends import choose_isa
    from llm_decoder.backends import devices as find_devices

    found = [(device, choose_isa() if device.isas else "") for device in find_devices()]
    if as_json:
        emit_json({"devices": [_record(device, isa) for device, isa in found]})
        return
    for device, isa in found:
        if not device.is_usable:
            emit_line(f"{device.name}: {device.description}, not used: {device.reason}")
            continue
        emit_line(f"{device.name}: {device.description}")
        if device.isas:
            emit_line(f"  kernels  {isa} (this machine runs {', '.join(device.isas)})")
            emit_line(f"  threads  {device.threads} (this process may use {_cores(device.cores)})")
            emit_line(f"  memory   {size(device.memory_bytes)} free")
        else:
            emit_line(f"  driver   {describe_driver(device)}")
            emit_line(f"  cuBLASLt {describe_cublaslt(device)}")
            emit_line(f"  memory   {size(device.memory_bytes)} free of {size(device.total_bytes)}")
        emit_line(f"  fits     {describe_fits(device)}")


def describe_driver(gpu: DeviceInfo) -> str:
    """580.65.06, runs CUDA up to 13.0 (this build: 13.0)"""
    return f"{gpu.driver or 'version unknown'}, runs CUDA up to {gpu.driver_cuda} (this build: {gpu.runtime_cuda})"


def describe_cublaslt(gpu: DeviceInfo) -> str:
    return gpu.cublaslt or (
        "not found, and products of many rows want it: pip install 'llm_decoder[cuda]', or LLM_DECODER_GEMM=ours does "
        "without it, more slowly"
    )


def describe_fits(device: DeviceInfo) -> str:
    """14B in bfloat16, 32B in int8, 70B in int4, with a context of 8192 tokens"""
    told = [f"{name} in {precision}" for precision, name in what_fits(device).items() if name is not None]
    return f"{', '.join(told) or 'no model of 1B'}, with a context of {CONTEXT} tokens"


def _record(device: DeviceInfo, isa: str) -> dict[str, Any]:
    record = plain(device) | ({"isa": isa} if isa else {}) | {"is_usable": device.is_usable}
    return record | ({"fits": what_fits(device) | {"context": CONTEXT}} if device.is_usable else {})


def _cores(n_cores: int) -> str:
    return "1 physical core" if n_cores == 1 else f"{n_cores} physical cores"
