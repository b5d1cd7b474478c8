"""A name -> everything the engine needs of a model: weights packed and mapped, tokenizer, template, defaults."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_decoder import weight_cache
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.checkpoint import Checkpoint, Part, is_weights_directory
from llm_decoder.embedded import EMBEDDED_NAME, embedded_model, is_embedded
from llm_decoder.errors import (
    ConfigError,
    MalformedFileError,
    ModelNotFoundError,
    NotEnoughMemoryError,
    UnsupportedModelError,
)
from llm_decoder.fit import check_fit
from llm_decoder.generation_config import read_eos_token_ids, read_generation_config, sampling_defaults
from llm_decoder.gpu_weights import GpuDtype, check_gpu_precision
from llm_decoder.hub import is_hub_id, snapshot
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.no_tokenizer import NoTokenizer, has_tokenizer
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor, core_tensors
from llm_decoder.quantize import Progress, pack_in_memory, packed_chunks
from llm_decoder.safetensors_checkpoint import PICKLE_SUFFIXES, SafetensorsCheckpoint
from llm_decoder.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from llm_decoder.backends import BackendOptions, DeviceInfo
    from llm_decoder.placement import Placement

__all__ = [
    "LoadedModel",
    "PackedTensor",
    "WeightsPackedWhenRead",
    "check_precision",
    "choose_layout",
    "find_model",
    "load_model",
    "open_checkpoint",
    "stored_layout",
]


_FLOAT_LAYOUTS: dict[str, MatrixLayout] = {"float32": "f32", "bfloat16": "bf16"}
_INTEGER_LAYOUTS: dict[str, MatrixLayout] = {"int8": "w8", "int4": "w4"}
_PARTS: dict[MatrixLayout | None, Part] = {"w8": "int8", "gpu_w8": "int8", "w4": "int4", "gpu_w4": "int4"}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for a backend.

    `weights` maps core names to PackedTensor. `generation_defaults` has the sampling fields of generation_config.json.
    `eos_token_ids` end an answer, as do the texts in `stop`. A folder without tokenizer files has a NoTokenizer, for
    work with token ids alone. `is_mapped` says that the weights are views of a file. `layout`, `device` and `dtype`:
    as backends.Model has them.
    """

    config: ModelConfig
    weights: Mapping[str, PackedTensor]
    tokenizer: Tokenizer | NoTokenizer
    generation_defaults: Mapping[str, float | int]
    eos_token_ids: frozenset[int]
    path: Path
    name: str
    layout: MatrixLayout
    device: str = "cpu"
    dtype: GpuDtype | None = None
    is_mapped: bool = False
    stop: tuple[str, ...] = ()

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self.tokenizer.chat_template


def load_model(
    model: str | Path | None = None,
    *,
    quantization: str = "auto",
    dtype: str = "auto",
    options: BackendOptions | None = None,
    cache_dir: str | Path | None = None,
    use_cache: bool = True,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    config_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Find, check and load a model.

    `model` is a HF folder, a `weights/` directory or a hub id; None is the embedded model. `options` (None = the
    defaults) say on which device it will run (placement.py) and with what beside it that must fit too. On the CPU
    `quantization` "auto" is int8, or none when `dtype` is "float32" or "bfloat16"; without quantisation `dtype` "auto"
    is bfloat16 when all matrices are stored so, else float32. On a GPU "auto" quantises nothing, and `dtype` is
    "bfloat16" or "float16", "auto" being float16 when all matrices are stored so. All but float32 weights are kept in
    the cache of packed weights (`cache_dir`, `use_cache`) and mapped from there. `tokenizer` names another folder to
    take the tokenizer from; `chat_template` and `system` replace the template's text and its system message.
    `config_dir` is a settings folder that describes a `weights/` directory without a config of its own.
    `progress(n_done_bytes, n_total_bytes, what)` is called while files are fetched and weights packed, on this thread
    or a helper's.

    Raises ModelLoadError (ModelNotFoundError, UnsupportedModelError, MalformedFileError), NotEnoughMemoryError before
    anything large is read, ConfigError for an option with a bad value, BackendError for a device that is not there.
    """
    # The compiled core comes with it, which a look at a model does without.
    from llm_decoder.backends import BackendOptions, check_no_tier
    from llm_decoder.placement import gpus_for

    options = options or BackendOptions()
    gpus = gpus_for(options, quantization, dtype)
    first_gpu = next(gpus, None)
    if first_gpu is None:
        choose_layout(quantization, dtype)
        check_no_tier(options)
    else:
        gpus = itertools.chain((first_gpu,), gpus)
    for option, text in (("chat_template", chat_template), ("system", system)):
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"[{option}] must be a text, got {type(text).__name__}")
    if chat_template is not None:
        _check_template(chat_template)
    if config_dir is not None:
        from llm_decoder.weights_config import refuse_unread_settings

        refuse_unread_settings(Path(config_dir), model)
    path = find_model(model, progress=progress)
    name = EMBEDDED_NAME if model is None else str(model)
    checkpoint, placement = _place(path, gpus, options, quantization, dtype, name, config_dir)
    # Small files first: what is wrong with them is said before minutes of packing.
    loaded = _without_weights(checkpoint, placement, name, Path(tokenizer) if tokenizer else None)
    loaded = _with_template(loaded, chat_template, system)
    load = _load_weights if placement.device == "cpu" else _load_gpu_weights
    weights, is_mapped = load(checkpoint, placement.layout, name, options, cache_dir, use_cache, progress)
    return replace(loaded, weights=weights, is_mapped=is_mapped)


def check_precision(device: str, quantization: str, dtype: str) -> None:
    """Raises ConfigError for names that a device ("auto", "cpu" or a GPU) does not know."""
    if device != "cpu":
        try:
            check_gpu_precision(quantization, dtype)
        except ConfigError:
            if device != "auto":
                raise
        else:
            return
    choose_layout(quantization, dtype)


def _place(
    path: Path,
    gpus: Iterable[DeviceInfo],
    options: BackendOptions,
    quantization: str,
    dtype: str,
    name: str,
    config_dir: str | Path | None,
) -> tuple[Checkpoint, Placement]:
    """The reader of the files that are nearest to what the device wants, and how the model lies there."""
    from llm_decoder.backends import check_kv_dtype, choose_device
    from llm_decoder.placement import Placement, place_on_gpu

    for gpu in gpus:
        checkpoint = open_checkpoint(path, _INTEGER_LAYOUTS.get(quantization), config_dir=config_dir)
        try:
            return checkpoint, place_on_gpu(checkpoint, gpu, options, quantization, dtype, name=name)
        except (NotEnoughMemoryError, UnsupportedModelError):
            if choose_device(options.device) != "auto":
                raise
    check_kv_dtype("cpu", options.kv_cache_dtype)
    layout = choose_layout(quantization, dtype)
    checkpoint = open_checkpoint(path, layout, config_dir=config_dir)
    return checkpoint, Placement("cpu", layout or stored_layout(checkpoint))


def choose_layout(quantization: str, dtype: str) -> MatrixLayout | None:
    """The layout of matrices; None = the checkpoint's own, see stored_layout. Raises ConfigError for names that are not
    known."""
    if quantization == "fp8":
        raise ConfigError("[quantization] fp8 is for GPUs, got the CPU; use int8")
    if quantization not in ("auto", "none", *_INTEGER_LAYOUTS):
        raise ConfigError(f"[quantization] need auto, none, {', '.join(_INTEGER_LAYOUTS)}, got {quantization!r:.60}")
    if dtype not in ("auto", *_FLOAT_LAYOUTS):
        raise ConfigError(f"[dtype] need auto, float32 or bfloat16 on the CPU, got {dtype!r:.60}")
    if quantization == "auto":
        quantization = "int8" if dtype == "auto" else "none"
    return _FLOAT_LAYOUTS.get(dtype) if quantization == "none" else _INTEGER_LAYOUTS[quantization]


def stored_layout(checkpoint: Checkpoint) -> MatrixLayout:
    """The smallest float layout that changes no weight. A float16 has three bits more than bfloat16 would keep."""
    matrices = [name for name, shape in weight_shapes(checkpoint.config).items() if len(shape) == 2]
    return "bf16" if all(checkpoint.stored_dtype(name) == "bfloat16" for name in matrices) else "f32"


def find_model(model: str | Path | None, *, progress: Progress | None = None) -> Path:
    """The folder that a model's name means: the embedded one (also by its name), a path, or a hub id's local copy."""
    if is_embedded(model):
        return embedded_model()
    text = str(model)
    if not text or "\0" in text:
        raise ModelNotFoundError(f"[model] need a folder or a hub id, got {text!r:.60}")
    path = _expanded(text)
    if path.is_dir():
        return path
    if path.is_file():
        raise _not_a_folder(path)
    looks_like_path = isinstance(model, Path) or text.startswith(("/", ".", "~")) or text.count("/") > 1
    if looks_like_path or not is_hub_id(text):
        raise ModelNotFoundError(f"[{text[:200]}] need a folder with a model, got no such path; check it")
    return snapshot(text, progress=progress)


def _expanded(text: str) -> Path:
    """The path that a model's name may be. Raises ModelNotFoundError when the system takes no such path."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        raise ModelNotFoundError(f"[model] need a folder or a hub id, got {text!r:.60}: {error!s:.60}") from None
    return path


def open_checkpoint(
    path: Path, layout: MatrixLayout | None = "w8", *, config_dir: str | Path | None = None
) -> Checkpoint:
    """The reader of a model folder, by what lies in it. Of a weights directory: the files nearest to `layout`, None =
    the floats; `config_dir` describes one that has no config of its own."""
    if is_weights_directory(path):
        from llm_decoder.weights_dir import WeightsDirectory  # brings in a YAML reader that HF folders do without

        return WeightsDirectory(path, _PARTS.get(layout, "float"), config_dir=Path(config_dir) if config_dir else None)
    return SafetensorsCheckpoint(path)


def _not_a_folder(path: Path) -> Exception:
    if path.suffix == ".gguf":
        return UnsupportedModelError(f"[{path}] GGUF files are not read by this build; use the model's HF folder")
    if path.suffix in PICKLE_SUFFIXES:
        return UnsupportedModelError(
            f"[{path}] pickle files can run code when opened and are never read; "
            "convert it to safetensors where you trust it"
        )
    return ModelNotFoundError(f"[{path}] need a model folder, got a file; name the folder it lies in")


def _check_template(source: str) -> None:
    try:
        ChatTemplate(source).check()
    except MalformedFileError as error:
        raise ConfigError(f"[chat_template] {str(error).removeprefix('[chat template] ')}") from error


def _without_weights(
    checkpoint: Checkpoint, placement: Placement, name: str, tokenizer_folder: Path | None
) -> LoadedModel:
    """`tokenizer_folder`: where the tokenizer must be; None = beside the model, which may have none."""
    folder, config = checkpoint.config_folder, checkpoint.config
    generation_config = read_generation_config(folder)
    tokenizer: Tokenizer | NoTokenizer
    if tokenizer_folder is None and not has_tokenizer(folder):
        tokenizer = NoTokenizer(folder)
    else:
        tokenizer = load_tokenizer(tokenizer_folder or folder)
    eos_token_ids = read_eos_token_ids(
        generation_config, checkpoint.hf_config, config.vocab_size, tokenizer.eos_token_ids
    )
    template = tokenizer.chat_template
    return LoadedModel(
        config=config,
        weights={},
        tokenizer=tokenizer,
        generation_defaults=sampling_defaults(generation_config),
        eos_token_ids=eos_token_ids,
        path=checkpoint.path,
        name=name,
        layout=placement.layout,
        device=placement.device,
        dtype=placement.dtype,
        stop=template.stop if template else (),
    )


def _with_template(loaded: LoadedModel, source: str | None, system: str | None) -> LoadedModel:
    tokenizer = loaded.tokenizer
    if isinstance(tokenizer, NoTokenizer):
        if source is not None:
            raise ConfigError(f"[chat_template] needs a tokenizer, got none. {tokenizer.missing()}")
        return loaded
    template = tokenizer.chat_template
    if source is not None:
        system = template.system if system is None and template is not None else system
        template = ChatTemplate(source, {}, tokenizer.special_tokens, system)
    elif system is not None and template is not None:
        template = replace(template, system=system)
    tokenizer.chat_template = template
    return loaded


def _load_weights(
    checkpoint: Checkpoint,
    layout: MatrixLayout,
    name: str,
    options: BackendOptions,
    cache_dir: str | Path | None,
    use_cache: bool,
    progress: Progress | None,
) -> tuple[Mapping[str, PackedTensor], bool]:
    """(weights, whether they are mapped). float32 is the reference precision and packed into memory each time."""
    is_mapped = use_cache and layout != "f32"
    pool_bytes = options.kv_cache_bytes
    check_fit(checkpoint.config, layout, name=name, is_mapped=is_mapped, kv_cache_bytes=pool_bytes)
    if is_mapped:
        weights = weight_cache.load_or_pack(checkpoint, layout, cache_dir=cache_dir, progress=progress)
        if weights is not None:
            return weights, True
        check_fit(checkpoint.config, layout, name=name, is_mapped=False, kv_cache_bytes=pool_bytes)
    return pack_in_memory(checkpoint, layout, progress), False


def _load_gpu_weights(
    checkpoint: Checkpoint,
    layout: MatrixLayout,
    name: str,
    options: BackendOptions,
    cache_dir: str | Path | None,
    use_cache: bool,
    progress: Progress | None,
) -> tuple[Mapping[str, PackedTensor], bool]:
    """As _load_weights. The host needs room for one weight at a time, as it is copied to the device."""
    if use_cache:
        weights = weight_cache.load_or_pack(checkpoint, layout, cache_dir=cache_dir, progress=progress)
        if weights is not None:
            return weights, True
    return WeightsPackedWhenRead(checkpoint, layout), False


class WeightsPackedWhenRead(Mapping[str, PackedTensor]):
    """The weights of a checkpoint by core name, each packed when it is asked for and kept by nobody here."""

    def __init__(self, checkpoint: Checkpoint, layout: MatrixLayout) -> None:
        self._checkpoint = checkpoint
        self._tensors = {tensor.name: tensor for tensor in core_tensors(checkpoint.config, layout)}

    def __getitem__(self, name: str) -> PackedTensor:
        tensor = self._tensors[name]
        chunks = list(packed_chunks(self._checkpoint, [tensor], None))
        scales = [chunk.scales for chunk in chunks if chunk.scales is not None]
        data = np.concatenate([chunk.data for chunk in chunks])
        return PackedTensor(tensor.layout, tensor.shape, data, np.concatenate(scales) if scales else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
