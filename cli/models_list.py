"""llm-decoder list and show: which models are on this machine, and what one of them is and needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_decoder.cli._options import ConfigFlag, JsonFlag
from llm_decoder.cli._output import emit_json, emit_line, emit_table, size

if TYPE_CHECKING:
    from llm_decoder.checkpoint import Checkpoint
    from llm_decoder.model_config import ModelConfig


@dataclass(frozen=True)
class KnownModel:
    """A model on this machine. reason: why it cannot be run, empty when it can."""

    name: str
    origin: str
    path: Path
    n_bytes: int
    family: str = ""
    context: int = 0
    reason: str = ""


def list_models(*, as_json: JsonFlag = False) -> None:
    """List the models on this machine.

    The embedded one, a weights/ directory here, and those that were fetched from a hub. Any other folder can be run by
    its path.
    """
    found = list(known_models())
    if as_json:
        emit_json({"models": found})
        return
    rows = [
        (model.name, model.origin, model.family or f"not run: {model.reason}", f"{model.context}", size(model.n_bytes))
        for model in found
    ]
    emit_table(("MODEL", "FROM", "FAMILY", "CONTEXT", "SIZE"), rows)


def show_model(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Folder or hub id. Default: the story model.")
    ] = None,
    config: ConfigFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what a model is and needs.

    Its config, sizes, context and memory, read without loading the weights and without the network.
    """
    facts = describe(name, config)
    if as_json:
        emit_json(facts)
        return
    for section, values in facts.items():
        if not isinstance(values, dict):
            emit_line(f"{section}: {values}")
            continue
        emit_line(f"{section}:")
        for key, value in values.items():
            shown = size(value) if key.endswith("_bytes") else value
            emit_line(f"  {key.removesuffix('_bytes').replace('_', ' ')}: {shown}")


def known_models() -> Iterator[KnownModel]:
    """The embedded model, ./weights, and the hub models in huggingface_hub's cache, in this order."""
    from llm_decoder.embedded import EMBEDDED_NAME, embedded_model
    from llm_decoder.weights_dir import is_weights_directory

    yield _known(EMBEDDED_NAME, "embedded", embedded_model())
    here = Path("weights")
    if here.is_dir() and is_weights_directory(here):
        yield _known("./weights", "weights directory", here)
    for name, folder in _hub_models():
        yield _known(name, "hub cache", folder)


def _hub_models() -> list[tuple[str, Path]]:
    """(hub id, folder of its newest files) of what huggingface_hub's cache holds, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in repos:
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
            found.append((repo.repo_id, Path(newest.snapshot_path)))
    return sorted(found)


def _known(name: str, origin: str, folder: Path) -> KnownModel:
    from llm_decoder.errors import LLMDecoderError

    files = [path for path in folder.rglob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    try:
        config = _read_config(folder)
    except LLMDecoderError as error:
        return KnownModel(name, origin, folder, n_bytes, reason=" ".join(str(error).split()))
    return KnownModel(name, origin, folder, n_bytes, config.model_type, config.max_model_len)


def _read_config(folder: Path) -> ModelConfig:
    """The config alone: weights are not even looked at, so that a list of many models is quick."""
    from llm_decoder.errors import ModelNotFoundError
    from llm_decoder.json_file import read_json_object
    from llm_decoder.loading import open_checkpoint
    from llm_decoder.models import parse_config
    from llm_decoder.weights_dir import is_weights_directory

    if is_weights_directory(folder):
        return open_checkpoint(folder).config
    if not (folder / "config.json").exists():
        raise ModelNotFoundError("no config.json")
    return parse_config(read_json_object(folder / "config.json"), "config.json")


def describe(name: str | None, config_dir: Path | None = None) -> dict[str, Any]:
    """What `show` prints: plain facts, sizes in bytes under names that end in _bytes."""
    from llm_decoder.config.files import describing_folder, load_settings
    from llm_decoder.embedded import EMBEDDED_NAME
    from llm_decoder.generation_config import read_generation_config, sampling_defaults
    from llm_decoder.loading import open_checkpoint

    path = find_locally(name)
    checkpoint = open_checkpoint(path, config_dir=describing_folder(load_settings(config_dir), path))
    config = checkpoint.config
    return {
        "model": name or EMBEDDED_NAME,
        "path": str(path),
        "matrices": ", ".join(checkpoint.forms),
        "config": {
            "family": config.model_type,
            "parameters": _n_parameters(config),
            "layers": config.n_layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.n_heads,
            "kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "vocabulary": config.vocab_size,
            "context": config.max_model_len,
            "window": max(config.windows) or "none",
            "tied_embeddings": config.tie_word_embeddings,
        },
        "sampling defaults": dict(sampling_defaults(read_generation_config(checkpoint.config_folder))),
        "memory": _memory(checkpoint),
    }


def find_locally(name: str | None) -> Path:
    """The model's folder, never fetched: a hub id must be in the cache already."""
    from llm_decoder.embedded import is_embedded
    from llm_decoder.errors import ModelNotFoundError
    from llm_decoder.hub import is_hub_id
    from llm_decoder.loading import find_model

    if name is None or is_embedded(name) or Path(name).expanduser().exists() or not is_hub_id(name):
        return find_model(name)
    cached = dict(_hub_models())
    if name not in cached:
        raise ModelNotFoundError(
            f"[{name}] need a folder, or a hub model that was fetched before, got neither; "
            f"llm-decoder generate --model {name} fetches it"
        )
    return cached[name]


def _n_parameters(config: ModelConfig) -> int:
    import math

    from llm_decoder.model_config import weight_shapes

    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def _memory(checkpoint: Checkpoint) -> dict[str, Any]:
    from llm_decoder.fit import available_memory_bytes, kv_bytes_per_token, memory_need, packed_bytes

    config = checkpoint.config
    per_token = kv_bytes_per_token(config, "int8")
    need = memory_need(config, "w8", is_mapped=True, kv_cache_bytes=per_token * config.max_model_len)
    return {
        "files_bytes": sum(identity.n_bytes for identity in checkpoint.identity()),
        "weights_as_int4_bytes": packed_bytes(config, "w4"),
        "weights_as_int8_bytes": packed_bytes(config, "w8"),
        "weights_as_bfloat16_bytes": packed_bytes(config, "bf16"),
        "weights_as_float32_bytes": packed_bytes(config, "f32"),
        "kv_cache_per_token_as_int8_bytes": per_token,
        "kv_cache_per_token_as_float32_bytes": kv_bytes_per_token(config, "float32"),
        "needed_with_one_full_context_as_int8_bytes": need.total_bytes,
        "free_on_this_machine_bytes": available_memory_bytes(),
    }
