"""llm-decoder devices: what this machine can compute on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from llm_decoder.cli._options import JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, plain, size

if TYPE_CHECKING:
    from llm_decoder.backends import DeviceInfo


def devices(*, as_json: JsonFlag = False) -> None:
    """Show what this machine computes on.

    The CPU with its kernels, threads and free memory, and why a GPU is not used.
    """
    from llm_decoder.backends import devices as find_devices

    found = [(device, _chosen_isa(device)) for device in find_devices()]
    if as_json:
        emit_json({"devices": [_record(device, isa) for device, isa in found]})
        return
    for device, isa in found:
        if not device.is_usable:
            emit_line(f"{device.name}: {device.description}, not used: {device.reason}")
            continue
        emit_line(f"{device.name}: {device.description}")
        emit_line(f"  kernels  {isa} (this machine runs {', '.join(device.isas)})")
        emit_line(f"  threads  {device.threads}")
        emit_line(f"  memory   {size(device.memory_bytes)} free")


def _chosen_isa(device: DeviceInfo) -> str:
    """The kernels that a decoder would get: the best, or those that LLM_DECODER_CPU_ISA forces."""
    from llm_decoder.errors import ConfigError

    forced = os.environ.get("LLM_DECODER_CPU_ISA", "")
    if not device.isas or forced in ("", "auto"):
        return device.isas[0] if device.isas else ""
    if forced not in device.isas:
        raise ConfigError(f"[LLM_DECODER_CPU_ISA] must be one of {', '.join(device.isas)}, got {forced!r}")
    return forced


def _record(device: DeviceInfo, isa: str) -> dict[str, Any]:
    return plain(device) | ({"isa": isa} if isa else {}) | {"is_usable": device.is_usable}
