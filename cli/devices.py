"""llm-decoder devices: what this machine can compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, plain, size

if TYPE_CHECKING:
    from llm_decoder.backends import DeviceInfo


def devices(*, as_json: JsonFlag = False) -> None:
    """Show what this machine computes on.

    The CPU with its kernels, threads and free memory; NVIDIA GPUs, or why there is none to use.
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
        else:
            emit_line("  kernels  llm_decoder.ops (models are computed on the CPU)")
        emit_line(f"  memory   {size(device.memory_bytes)} free")


def _record(device: DeviceInfo, isa: str) -> dict[str, Any]:
    return plain(device) | ({"isa": isa} if isa else {}) | {"is_usable": device.is_usable}


def _cores(n_cores: int) -> str:
    return "1 physical core" if n_cores == 1 else f"{n_cores} physical cores"
