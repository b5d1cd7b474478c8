"""A name -> everything the engine needs of a model: weights packed and mapped, tokenizer, template, defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llm_decoder import weight_cache
from llm_decoder.chat_template import ChatTemplate
from llm_decoder.checkpoint import Checkpoint, Part, is_weights_directory
from llm_decoder.embedded import EMBEDDED_NAME, embedded_model, is_embedded
from llm_decoder.errors import ConfigError, MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.fit import check_fit
from llm_decoder.generation_config import read_eos_token_ids, read_generation_config, sampling_defaults
from llm_decoder.hub import is_hub_id, snapshot
from llm_decoder.model_config import ModelConfig, weight_shapes
from llm_decoder.no_tokenizer import NoTokenizer, has_tokenizer
from llm_decoder.packed_tensor import MatrixLayout, PackedTensor
from llm_decoder.quantize import Progress, pack_in_memory
from llm_decoder.safetensors_checkpoint import PICKLE_SUFFIXES, SafetensorsCheckpoint
from llm_decoder.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "LoadedModel",
    "PackedTensor",
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
    work with token ids alone. `is_mapped` says that the weights are views of a file.
    """

    config: ModelConfig
    weights: Mapping[str, PackedTensor]
    tokenizer: Tokenizer | NoTokenizer
    generation_defaults: Mapping[str, float | int]
    eos_token_ids: frozenset[int]
    path: Path
    name: str
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
    kv_cache_bytes: int | None = None,
    cache_dir: str | Path | None = None,
    use_cache: bool = True,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    config_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Find, check and load a model.

    `model` is a HF folder, a `weights/` directory or a hub id; None is the embedded model. `quantization` "auto" is
    int8, or none when `dtype` is "float32" or "bfloat16". Without quantisation `dtype` "auto" is bfloat16 when all
    matrices are stored so, else float32. All but float32 weights are kept in the cache of packed weights (`cache_dir`,
    `use_cache`) and mapped from there. `tokenizer` names another folder to take the tokenizer from; `chat_template` and
    `system` replace the template's text and its system message. `config_dir` is a settings folder that describes a
    `weights/` directory without a config of its own. `kv_cache_bytes` counts in the check that all of it fits.
    `progress(n_done_bytes, n_total_bytes, what)` is called while files are fetched and weights packed,
    on this thread or a helper's.

    Raises ModelLoadError (ModelNotFoundError, UnsupportedModelError, MalformedFileError), NotEnoughMemoryError before
    anything large is read, ConfigError for an option with a bad value.
    """
    layout = choose_layout(quantization, dtype)
    for option, text in (("chat_template", chat_template), ("system", system)):
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"[{option}] must be a text, got {type(text).__name__}")
    if chat_template is not None:
        _check_template(chat_template)
    if config_dir is not None:
        from llm_decoder.weights_config import refuse_unread_settings

        refuse_unread_settings(Path(config_dir), model)
    path = find_model(model, progress=progress)
    checkpoint = open_checkpoint(path, layout, config_dir=config_dir)
    layout = layout or stored_layout(checkpoint)
    name = EMBEDDED_NAME if model is None else str(model)
    # Small files first: what is wrong with them is said before minutes of packing.
    loaded = _without_weights(checkpoint, name, Path(tokenizer) if tokenizer else None)
    loaded = _with_template(loaded, chat_template, system)
    weights, is_mapped = _load_weights(checkpoint, layout, name, kv_cache_bytes, cache_dir, use_cache, progress)
    return replace(loaded, weights=weights, is_mapped=is_mapped)


def choose_layout(quantization: str, dtype: str) -> MatrixLayout | None:
    """The layout of matrices; None = the checkpoint's own, see stored_layout. Raises ConfigError for names that are not
    known."""
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


def _without_weights(checkpoint: Checkpoint, name: str, tokenizer_folder: Path | None) -> LoadedModel:
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
    kv_cache_bytes: int | None,
    cache_dir: str | Path | None,
    use_cache: bool,
    progress: Progress | None,
) -> tuple[Mapping[str, PackedTensor], bool]:
    """(weights, whether they are mapped). float32 is the reference precision and packed into memory each time."""
    is_mapped = use_cache and layout != "f32"
    check_fit(checkpoint.config, layout, name=name, is_mapped=is_mapped, kv_cache_bytes=kv_cache_bytes)
    if is_mapped:
        weights = weight_cache.load_or_pack(checkpoint, layout, cache_dir=cache_dir, progress=progress)
        if weights is not None:
            return weights, True
        check_fit(checkpoint.config, layout, name=name, is_mapped=False, kv_cache_bytes=kv_cache_bytes)
    return pack_in_memory(checkpoint, layout, progress), False
