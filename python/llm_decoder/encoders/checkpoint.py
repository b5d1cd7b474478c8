"""A folder with an encoder: config.json and safetensors files, as our names and float32 rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llm_decoder.encoders.config import EncoderConfig, weight_shapes
from llm_decoder.encoders.families import EncoderShape, parse_encoder
from llm_decoder.encoders.head import head_shapes
from llm_decoder.errors import MalformedFileError, ModelNotFoundError, UnsupportedModelError
from llm_decoder.hub import is_hub_id
from llm_decoder.json_file import read_json_object
from llm_decoder.safetensors_checkpoint import PICKLE_SUFFIXES, open_weight_files

__all__ = ["EncoderCheckpoint", "encoder_folder"]

Floats = npt.NDArray[np.float32]
_BLOCK_FLOATS = 1 << 20  # 4 MiB of float32 a block: memory stays bounded whatever a matrix weighs


def encoder_folder(folder: str | Path) -> Path:
    """The folder that a name means. Raises ModelNotFoundError for what is none, UnsupportedModelError for a pickle."""
    if not str(folder):
        raise ModelNotFoundError("[encoder] need a folder, got an empty name")
    path = Path(folder).expanduser()
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedModelError(
            f"[{path}] pickle files can run code when opened and are never read; name a folder with safetensors"
        )
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:  # ValueError: a NUL inside
        raise ModelNotFoundError(f"[encoder] need a folder, got {str(folder)!r:.80}: {error!s:.60}") from None
    if not is_folder:
        fetch = f", or fetch it: hf download {folder} --local-dir FOLDER" if is_hub_id(str(folder)) else ""
        raise ModelNotFoundError(
            f"[{str(folder)[:200]}] need a folder with an encoder, got no such folder; check it{fetch}"
        )
    return path


class EncoderCheckpoint:
    """The reader of one folder. Checks on construction that every weight is there with its shape, and no other.

    with_head: it must be a classifier of one label; else it must be none. Raises ModelNotFoundError,
    UnsupportedModelError or MalformedFileError; each names the file and the tensor or field.
    """

    def __init__(self, folder: Path, *, with_head: bool) -> None:
        self.path = folder
        place = folder / "config.json"
        self.shape: EncoderShape = parse_encoder(read_json_object(place), str(place))
        self._refuse_other_kind(with_head)
        self._file_of = open_weight_files(folder)
        self._stored = {_spelled(name): name for name in self._file_of}
        self._parts = self._find_parts()
        if with_head:
            self._parts |= self._find_head()
        shapes = weight_shapes(self.config)
        for ours, parts in self._parts.items():
            self._check(ours, parts, shapes.get(ours) or head_shapes(self.shape.head, self.config.hidden_size)[ours])
        self._refuse_others()

    @property
    def config(self) -> EncoderConfig:
        return self.shape.config

    def names(self) -> list[str]:
        """Our name of every weight of the encoder that is there, the head's not included."""
        return [name for name in weight_shapes(self.config) if name in self._parts]

    def head_weights(self) -> Mapping[str, Floats]:
        """Our name -> each weight of the head, whole."""
        return {name: self.read(name) for name in head_shapes(self.shape.head, self.config.hidden_size)}

    def read(self, name: str) -> Floats:
        """A whole weight as float32. Raises MalformedFileError when it holds a NaN or an infinity."""
        return np.concatenate([rows for _, rows in self.blocks(name)])

    def blocks(self, name: str) -> Iterator[tuple[int, Floats]]:
        """A weight's rows in blocks, each with the number of its first row, float32. Raises as `read`."""
        top = 0
        for theirs in self._parts[name]:
            file = self._file_of[theirs]
            shape = file.entries[theirs].shape
            step = shape[0] if len(shape) == 1 else max(1, _BLOCK_FLOATS // shape[1])
            for begin in range(0, shape[0], step):
                rows = file.rows(theirs, begin, begin + step)
                if not np.isfinite(rows).all():
                    raise MalformedFileError(
                        f"[{file.path}: {theirs}] need finite weights, got NaN or infinity; download it again"
                    )
                yield top + begin, rows
            top += shape[0]

    def _refuse_other_kind(self, with_head: bool) -> None:
        architecture = self.shape.architecture
        if with_head and architecture and not self.shape.is_classifier:
            is_sentences = (self.path / "modules.json").exists()
            what = "a sentence encoder" if is_sentences else "an encoder without the head of a cross-encoder"
            raise UnsupportedModelError(
                f"[{self.path}] need a cross-encoder (...ForSequenceClassification), got {what} ({architecture[:60]}); "
                + ("it makes vectors: open it with SentenceEncoder" if is_sentences else "finetune it into one")
            )
        if not with_head and self.shape.is_classifier:
            raise UnsupportedModelError(
                f"[{self.path}] need a sentence encoder, got a classifier ({architecture[:60]}); "
                "a cross-encoder scores pairs: open it with CrossEncoder"
            )

    def _find_parts(self) -> dict[str, tuple[str, ...]]:
        prefix = self.shape.family.PREFIX
        inside = prefix if any(name.startswith(prefix) for name in self._stored) else ""
        parts = {
            ours: tuple(self._stored.get(inside + name, inside + name) for name in theirs)
            for ours, theirs in self.shape.tensor_names.items()
        }
        unknown = set(weight_shapes(self.config)) - set(parts)
        assert all(name.endswith(".bias") for name in unknown), unknown  # matrices of this family have none
        return parts

    def _find_head(self) -> dict[str, tuple[str, ...]]:
        theirs = self.shape.family.head_names(self.shape.head)
        classifier = self._stored.get(theirs["classifier"])
        if classifier is None:
            raise UnsupportedModelError(
                f"[{self.path}] need a cross-encoder, got an encoder without a classifier "
                f"(no tensor {theirs['classifier']!r}); finetune it into one, or open it with SentenceEncoder"
            )
        n_labels = self._file_of[classifier].entries[classifier].shape[:1]
        if n_labels != (1,):
            raise UnsupportedModelError(
                f"[{self._file_of[classifier].path}: {classifier}] need one label, the score of a pair, "
                f"got {n_labels[0] if n_labels else 'none'}; classifiers of several labels are no rerankers"
            )
        shapes = head_shapes(self.shape.head, self.config.hidden_size)
        return {ours: (self._stored.get(theirs[ours], theirs[ours]),) for ours in shapes}

    def _check(self, ours: str, parts: tuple[str, ...], shape: tuple[int, ...]) -> None:
        need = (shape[0] // len(parts), *shape[1:])
        for name in parts:
            if name not in self._file_of:
                raise MalformedFileError(
                    f"[{self.path}] need the tensor {name!r} of shape {list(need)}, got none; is the download complete?"
                )
            file = self._file_of[name]
            if file.entries[name].shape != need:
                raise MalformedFileError(
                    f"[{file.path}: {name}] need shape {list(need)} as config.json says, "
                    f"got {list(file.entries[name].shape)}"
                )
            file.rows(name, 0, 0)  # refuses dtypes that are no floats

    def _refuse_others(self) -> None:
        family = self.shape.family
        used = {name for parts in self._parts.values() for name in parts}
        extra = [
            name
            for name in self._file_of
            if name not in used and not name.removeprefix(family.PREFIX).startswith(family.UNUSED)
        ]
        if extra:
            raise UnsupportedModelError(
                f"[{self.path}] {len(extra)} tensors have no place in a {self.shape.model_type} encoder with this "
                f"config, first {min(extra)[:100]!r}; running without them would change the output"
            )


def _spelled(name: str) -> str:
    """A tensor's name as transformers spells it today: norms once had a gamma and a beta."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new) if name.endswith(old) else name
    return name
