"""The model families: one small file each, found by `model_type`.

A family says how config.json becomes knobs (`config_from_hf`) and how the checkpoint names its tensors
(`tensor_names`). Adding one is a file and a line here. config.json is data: nothing it names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from llm_decoder.errors import MalformedFileError, UnsupportedModelError
from llm_decoder.fp8_checkpoint import has_fp8_rows
from llm_decoder.model_config import ModelConfig
from llm_decoder.models import llama, mistral, qwen2, qwen3
from llm_decoder.models.fields import Fields

__all__ = ["FAMILIES", "parse_config", "tensor_names"]

FAMILIES: dict[str, ModuleType] = {"llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3}


def parse_config(config: Mapping[str, Any], place: str = "config.json") -> ModelConfig:
    """A parsed config.json as knobs.

    Raises UnsupportedModelError for an unknown family and for any field that may change logits and is not understood,
    MalformedFileError for a missing field or an impossible value; both name the field. `place` names the file in
    errors.
    """
    fields = Fields(config, place)
    model_type = fields.text("model_type", "")
    if model_type not in FAMILIES:
        raise UnsupportedModelError(_unknown_family(model_type, config, place))
    _refuse_quantized(fields)
    family = FAMILIES[model_type]
    architectures = fields.texts("architectures")
    if architectures and family.ARCHITECTURE.casefold() not in [name.casefold() for name in architectures]:
        raise UnsupportedModelError(
            f"[{place}: architectures] this build runs {family.ARCHITECTURE} for {model_type}, "
            f"got {', '.join(architectures)[:120]}"
        )
    try:
        result: ModelConfig = family.config_from_hf(fields)
    except (OverflowError, ZeroDivisionError, FloatingPointError) as error:
        raise MalformedFileError(f"[{place}] its numbers cannot be computed with: {error}") from error
    fields.finish()
    return result


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of every tensor that `config` needs."""
    names: dict[str, str] = FAMILIES[config.model_type].tensor_names(config)
    return names


def _unknown_family(model_type: str, config: Mapping[str, Any], place: str) -> str:
    known = ", ".join(sorted(FAMILIES))
    code = " Its auto_map names Python code, which is never run." if "auto_map" in config else ""
    got = f"{model_type[:60]!r}" if model_type else "none"
    return f"[{place}: model_type] need one of {known}, got {got}.{code}"


def _refuse_quantized(fields: Fields) -> None:
    for name in ("quantization_config", "compression_config", "quantization"):
        table = fields.table(name)
        if table and not (name == "quantization_config" and has_fp8_rows(table)):
            method = table.get("quant_method", table.get("method", "unnamed"))
            if table.get("weight_block_size"):
                method = f"{method} in blocks"
            raise UnsupportedModelError(
                f"[{fields.place}: {name}] checkpoints quantised with {str(method)[:40]!r} are not read by this build; "
                "use the float checkpoint, it is quantised to int8 on load"
            )
